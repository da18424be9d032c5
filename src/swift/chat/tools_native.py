"""This file knows how a chat template that renders tools itself is given them, and which of its text replies are.

Conversations go to such a template as OpenAI writes them. Where a reply ends that makes calls is found by rendering
other calls in their place: what follows is the same, up to the word that ends generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from swift.chat.calls import ToolCall
from swift.chat.messages import Conversation, Message
from swift.chat.skeletons import Pieces, TextPiece, remarks
from swift.chat.spans import Span, pieces_of, sentinels, start_of, stop_after
from swift.chat.thinking import thoughts
from swift.chat.tools import Tool, dumps, read_call
from swift.core.errors import DataError

Arguments = Literal["object", "text"]
"""How a template wants the arguments of a call: as an object, or as JSON text."""


class RenderTools(Protocol):
    """A chat template with everything fixed but messages and tools."""

    def __call__(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Tool], *, add_generation_prompt: bool
    ) -> str:
        """The text of a conversation as OpenAI writes it; raises DataError when the template refuses it."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of the conversation: words and, of the assistant, calls.

    number: of its first message.
    """

    number: int
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    calls: tuple[ToolCall, ...] = ()


CALL = ToolCall("Qtool1", {"Qk1": "Qv1"})
"""The call with which templates are asked."""
_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": CALL.name,
        "description": "Qd1",
        "parameters": {"type": "object", "properties": {"Qk1": {"type": "string"}}},
    },
}
_ASKED = (Turn(0, "user", "Qu1"), Turn(1, "assistant", "", (CALL,)))


def arguments_of(render: RenderTools) -> Arguments | None:
    """How a template wants arguments; None when it does not write tools, calls and results."""
    turns = [*_ASKED, Turn(2, "tool", "Qr1"), Turn(3, "assistant", "Qa1")]
    kinds: tuple[Arguments, ...] = ("object", "text")
    for kind in kinds:
        try:
            told = render(_openai(turns[:1], kind), (_TOOL,), add_generation_prompt=True)
            text = render(_openai(turns, kind), (), add_generation_prompt=False)
        except DataError:
            continue
        is_repr, is_escaped = "{'Qk1'" in text, '\\"Qk1' in text
        if "Qd1" in told and all(word in text for word in ("Qtool1", "Qv1", "Qr1")) and not (is_repr or is_escaped):
            return kind
    return None


def written_call(render: RenderTools, arguments: Arguments) -> tuple[Tool, str]:
    """A tool, and the text with which a template writes `CALL`, a call of it."""
    text = render(_openai(_ASKED, arguments), (), add_generation_prompt=False)
    return _TOOL, text.partition("Qu1")[2]


def replies(messages: Sequence[Message]) -> list[Turn]:
    """The turns of a conversation: calls belong to the assistant's words before them.

    Raises DataError for calls that cannot be read, and for words and calls of one turn that are learnt differently.
    """
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        if message.role == "tool_call":
            call = read_call(message, number + 1)
            if turns and turns[-1].role == "assistant":
                last = turns.pop()
                if messages[last.number].loss != message.loss:
                    raise DataError(
                        f"Message {number + 1} (tool_call) is one reply with message {last.number + 1}, and this chat "
                        'template writes them as one: give them the same "loss", or choose an --agent_template.'
                    )
                turns.append(Turn(last.number, "assistant", last.content, (*last.calls, call)))
            else:
                turns.append(Turn(number, "assistant", "", (call,)))
        elif message.role == "tool_response":
            turns.append(Turn(number, "tool", message.content))
        else:
            turns.append(Turn(number, message.role, message.content))
    return turns


def cut_native(
    conversation: Conversation, render: RenderTools, arguments: Arguments, stops: Sequence[str], *, is_prompt: bool
) -> Pieces:
    """The pieces of a conversation with tools, as its template renders it; see `Cutter.cut`."""
    turns = replies(conversation.messages)

    def rendered(turns: Sequence[Turn], *, add_generation_prompt: bool) -> str:
        is_whole = is_prompt and turns[-1].role != "assistant"
        return render(
            _openai(turns, arguments), conversation.tools, add_generation_prompt=add_generation_prompt or is_whole
        )

    text = rendered(turns, add_generation_prompt=False)
    spans: list[Span] = []
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            spans.append(_span(rendered, turns, i, text, stops, spans[-1].end if spans else 0))
    pieces = [TextPiece(text[p.start : p.end], p.turn, p.is_empty_thinking) for p in pieces_of(text, spans)]
    return Pieces(pieces, *remarks(spans))


class _Rendered(Protocol):
    def __call__(self, turns: Sequence[Turn], *, add_generation_prompt: bool) -> str: ...


def _span(render: _Rendered, turns: Sequence[Turn], i: int, text: str, stops: Sequence[str], begin: int) -> Span:
    """The characters of one reply, its calls and the word that ends it included."""
    turn = turns[i]
    prompt = render(turns[:i], add_generation_prompt=True)
    start = start_of(prompt, text)
    if start is None:
        return Span(turn.number, 0, 0, "what stands before it is not the prompt that the model would be given there")
    if start < begin:
        return Span(turn.number, 0, 0, "it begins before the reply in front of it has ended")
    same = _same_behind(render, turns, i, text)
    if same is None or same < start:
        return Span(turn.number, 0, 0, "how the template writes it depends on what it says")
    end = _first_stop(text, same, stops) if turn.calls else stop_after(text, same, stops)
    said = text[start:end]
    missing = [call.name for call in turn.calls if call.name not in said]
    if missing:
        return Span(turn.number, start, end, f"the template does not write its call of {missing[0]}")
    if any(thought not in said for thought in thoughts(turn.content)):
        return Span(turn.number, start, end, "the template leaves out what it thinks")
    if turn.content.rpartition("</think>")[2].strip() not in said:
        return Span(turn.number, start, end, "the template changes what it says")
    return Span(turn.number, start, end, is_unopened=start < len(prompt))


def _same_behind(render: _Rendered, turns: Sequence[Turn], i: int, text: str) -> int | None:
    """From where on the text stays the same when the end of a reply says something else."""
    turn = turns[i]
    mark = sentinels([Message("user", text)], 1)[0]
    if turn.calls:
        probe = Turn(
            turn.number, turn.role, turn.content, (*turn.calls[:-1], ToolCall(turn.calls[-1].name, {mark: mark}))
        )
    else:
        probe = Turn(turn.number, turn.role, turn.content + mark)
    other = render([*turns[:i], probe, *turns[i + 1 :]], add_generation_prompt=False)
    if mark not in other:
        return None
    return len(text) - _shared_end(text, other.rpartition(mark)[2])


def _first_stop(text: str, begin: int, stops: Sequence[str]) -> int:
    """The end of the first word that ends generation; the end of the text when there is none."""
    found = [(at, -len(stop)) for stop in stops if stop and (at := text.find(stop, begin)) >= 0]
    at, length = min(found, default=(len(text), 0))
    return at - length


def _shared_end(one: str, other: str) -> int:
    """How many characters two texts end with in common."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[len(one) - middle :] == other[len(other) - middle :]:
            least = middle
        else:
            most = middle - 1
    return least


def _openai(turns: Sequence[Turn], arguments: Arguments) -> list[dict[str, Any]]:
    """Messages as OpenAI writes them; the ids of calls are nine characters long, which some templates insist on."""
    asked: Iterator[tuple[str, str]] = iter(())
    messages: list[dict[str, Any]] = []
    count = 0
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.calls:
            ids = [f"call{count + k:05d}" for k in range(len(turn.calls))]
            count += len(ids)
            asked = iter([(name, call.name) for name, call in zip(ids, turn.calls, strict=True)])
            message["tool_calls"] = [
                {"id": name, "type": "function", "function": {"name": call.name, "arguments": _given(call, arguments)}}
                for name, call in zip(ids, turn.calls, strict=True)
            ]
        elif turn.role == "tool":
            found = next(asked, None)
            if found:
                message |= {"tool_call_id": found[0], "name": found[1]}
        messages.append(message)
    return messages


def _given(call: ToolCall, arguments: Arguments) -> Any:
    return dumps(call.arguments) if arguments == "text" else call.arguments
