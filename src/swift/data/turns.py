"""This file knows how the turns of a conversation are written in a row: messages, ShareGPT pairs, query and history."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from typing import Any

from swift.chat.messages import ROLES, Message, Role
from swift.data.rows import RowError, shown

ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "tool_call": "tool_call",
    "function_call": "tool_call",
    "tool_response": "tool_response",
    "tool": "tool_response",
    "function_response": "tool_response",
    "observation": "tool_response",
    "observations": "tool_response",
}
"""Every name a role has in data, hyphens written as underscores."""

_USER_KEYS = ("user", "human")
_ASSISTANT_KEYS = ("assistant", "gpt", "bot")
_SPEAKS = frozenset({"assistant", "tool_call"})
_TOOL_ROLES = frozenset({"tool_call", "tool_response"})
_KEYS = frozenset({"role", "from", "content", "value", "loss", "tool_calls", "tool_call_id"})
_MEDIA_PARTS = {"image": "images", "image_url": "images", "video": "videos", "video_url": "videos", "audio": "audios",
                "audio_url": "audios"}  # fmt: skip


@dataclass(slots=True)
class Turns:
    """Messages in order, and the media that stood inside them, by the column they belong to."""

    messages: list[Message] = field(default_factory=list)
    media: dict[str, list[Any]] = field(default_factory=dict)


def read_messages(value: Any, path: str, unread: set[str]) -> Turns:
    """The turns of a `messages` column: a list of messages or of ShareGPT pairs, or the text of such a list.

    path: where the list stands in the row, for messages of errors.
    unread: receives the keys of messages that mean nothing here.
    Raises RowError.
    """
    if isinstance(value, str):
        value = from_text(value, path)
    if not isinstance(value, (list, tuple)):
        raise RowError(path, "is no list of messages", shown(value))
    if not value:
        raise RowError(path, "is empty")
    turns = Turns()
    read = _read_pair if _is_pair(value[0]) else _read_message
    for index, raw in enumerate(value):
        if not isinstance(raw, dict):
            raise RowError(f"{path}[{index}]", "is no object with a role and a content", shown(raw))
        read(raw, f"{path}[{index}]", turns, unread)
    return turns


def read_history(value: Any) -> list[Message]:
    """Past turns: a list of [query, reply] pairs, or the text of one; what is null is left out. Raises RowError."""
    if isinstance(value, str):
        value = from_text(value, "history") if value.strip() else []
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise RowError("history", "is no list of [query, response] pairs", shown(value))
    messages: list[Message] = []
    for index, pair in enumerate(value):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowError(f"history[{index}]", "is no pair of query and response", shown(pair))
        messages += said(pair[0], "user", f"history[{index}][0]") + said(pair[1], "assistant", f"history[{index}][1]")
    return messages


def said(value: Any, role: Role, path: str) -> list[Message]:
    """One message, or none when there is nothing: null. Numbers are written out. Raises RowError for other things."""
    if value is None:
        return []
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RowError(path, "is no text", shown(value))
    return [Message(role, value)]


def from_text(text: str, path: str) -> Any:
    """The value that a text spells as JSON or, failing that, as a Python literal. Raises RowError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise RowError(path, "is neither JSON nor a Python literal", shown(text)) from None


def _is_pair(first: Any) -> bool:
    """Whether a list holds ShareGPT pairs: its first element has no key of a message."""
    return (
        isinstance(first, dict)
        and not any(first.get(key) is not None for key in ("role", "from", "content", "value", "tool_calls"))
        and any(key in first for key in _USER_KEYS + _ASSISTANT_KEYS)
    )


def _read_pair(raw: dict[str, Any], path: str, turns: Turns, unread: set[str]) -> None:
    """`{"human": ..., "gpt": ...}`: what the user said and what came back."""
    sides: tuple[tuple[Role, tuple[str, ...]], ...] = (("user", _USER_KEYS), ("assistant", _ASSISTANT_KEYS))
    for role, keys in sides:
        found = [key for key in keys if raw.get(key) is not None]
        if len(found) != 1:
            there = ", ".join(found) or ", ".join(raw)
            raise RowError(path, f"needs exactly one of {', '.join(keys)}", f"there: {there}")
        turns.messages += said(raw[found[0]], role, f"{path}.{found[0]}")
    unread.update(key for key in raw if key not in _USER_KEYS + _ASSISTANT_KEYS)


def _read_message(raw: dict[str, Any], path: str, turns: Turns, unread: set[str]) -> None:
    """`{"role": ..., "content": ...}` or `{"from": ..., "value": ...}`, with `loss` and `tool_calls` where given."""
    role = _role(raw, path)
    content = raw.get("content")
    if content is None:
        content = raw.get("value")
    calls = raw.get("tool_calls")
    loss = _loss(raw, role, path)
    if len(raw) > 2:
        unread.update(key for key in raw if key not in _KEYS and raw[key] is not None)
    if calls and role != "assistant":
        raise RowError(f"{path}.tool_calls", "belongs to an assistant message", f"the role is {role}")
    if content is None and not calls:
        key = "value" if "value" in raw and "content" not in raw else "content"
        raise RowError(f"{path}.{key}", "is null" if key in raw else "is missing")
    if content or not calls:
        if isinstance(content, list) and role not in _TOOL_ROLES:
            _read_blocks(content, role, f"{path}.content", turns, loss)
        else:
            turns.messages.append(Message(role, _content(content, role, path), loss))
    if calls:
        turns.messages += _calls(calls, f"{path}.tool_calls", loss)


def _role(raw: dict[str, Any], path: str) -> Role:
    key = "role" if raw.get("role") is not None else "from"
    name = raw.get(key)
    if name is None:
        raise RowError(f"{path}.role", "is missing")
    role = ROLE_NAMES.get(name) or ROLE_NAMES.get(name.replace("-", "_")) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"{path}.{key}", "unknown role", f"{shown(name)}; roles are {', '.join(ROLES)}")
    return role


def _content(content: Any, role: Role, path: str) -> str:
    if isinstance(content, str):
        return content
    if role in _TOOL_ROLES:
        return json.dumps(content, ensure_ascii=False)
    raise RowError(f"{path}.content", "is no text", shown(content))


def _read_blocks(blocks: list[Any], role: Role, path: str, turns: Turns, loss: bool | None) -> None:
    """A content in blocks, as OpenAI and Anthropic write it: text and media, `tool_use` and `tool_result`.

    Neighbouring texts and media are one message; every use and result of a tool is a message of its own.
    """
    texts: list[str] = []
    messages: list[Message] = []

    def close() -> None:
        if texts:
            messages.append(Message(role, "".join(texts), loss))
            texts.clear()

    for index, block in enumerate(blocks):
        place = f"{path}[{index}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            close()
            messages.append(_use(block, role, place, loss))
        elif kind == "tool_result":
            close()
            messages.append(_result(block, role, place, turns))
        else:
            texts.append(_part(block, place, turns))
    close()
    turns.messages += messages or [Message(role, "", loss)]


def _use(block: dict[str, Any], role: Role, path: str, loss: bool | None) -> Message:
    """A call: `{"type": "tool_use", "name": ..., "input": {...}}`."""
    if role != "assistant":
        raise RowError(path, "is a tool_use, which belongs to an assistant message", f"the role is {role}")
    if not isinstance(block.get("name"), str):
        raise RowError(path, "is a tool_use without a name", shown(block))
    given = block.get("input")
    text = json.dumps({"name": block["name"], "arguments": {} if given is None else given}, ensure_ascii=False)
    return Message("tool_call", text, loss)


def _result(block: dict[str, Any], role: Role, path: str, turns: Turns) -> Message:
    """What a call gave back: `{"type": "tool_result", "content": text or blocks of text and images}`."""
    if role != "user":
        raise RowError(path, "is a tool_result, which belongs to a user message", f"the role is {role}")
    content = block.get("content")
    if isinstance(content, list):
        parts = (_part(part, f"{path}.content[{index}]", turns) for index, part in enumerate(content))
        return Message("tool_response", "".join(parts))
    if content is not None and not isinstance(content, str):
        raise RowError(f"{path}.content", "is neither a text nor a list of blocks", shown(content))
    return Message("tool_response", content or "")


def _part(part: Any, path: str, turns: Turns) -> str:
    """The text of one block of a content; a medium becomes its tag and is put beside the messages."""
    kind = str(part.get("type")) if isinstance(part, dict) else ""
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    column = _MEDIA_PARTS.get(kind)
    medium = None if column is None else _medium(part, kind)
    if column is None or medium is None:
        raise RowError(path, "is no block of type text, image, video, audio, tool_use or tool_result", shown(part))
    turns.media.setdefault(column, []).append(medium)
    return f"<{column.removesuffix('s')}>"


def _medium(part: dict[str, Any], kind: str) -> Any:
    """The reference in a block: under the name of its type, or, as Anthropic writes it, a source of bytes or a URL."""
    medium, source = part.get(kind), part.get("source")
    if medium is None and isinstance(source, dict):
        if source.get("type") == "base64" and isinstance(source.get("data"), str):
            return f"data:{source.get('media_type') or kind};base64,{source['data']}"
        return source.get("url")
    if kind.endswith("_url") and isinstance(medium, dict):
        return medium.get("url")
    return medium


def _loss(raw: dict[str, Any], role: Role, path: str) -> bool | None:
    loss = raw.get("loss")
    if loss is None:
        return None
    if loss not in (0, 1):  # True and False are 1 and 0
        raise RowError(f"{path}.loss", "is neither true nor false", shown(loss))
    if role in _SPEAKS:
        return bool(loss)
    if loss:
        raise RowError(f"{path}.loss", "only the assistant's messages can be learnt", f"the role is {role}")
    return None


def _calls(calls: Any, path: str, loss: bool | None) -> list[Message]:
    """One message per call of an assistant message as OpenAI writes it: `{"function": {"name", "arguments"}}`."""
    if not isinstance(calls, list):
        raise RowError(path, "is no list of calls", shown(calls))
    messages = []
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"{path}[{index}]", "is no call of a function with a name", shown(call))
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = from_text(arguments, f"{path}[{index}].function.arguments") if arguments.strip() else {}
        text = json.dumps({"name": function["name"], "arguments": arguments or {}}, ensure_ascii=False)
        messages.append(Message("tool_call", text, loss))
    return messages
