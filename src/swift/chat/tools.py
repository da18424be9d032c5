"""This file knows how tools, calls and results of a conversation become plain turns, by a format of writing them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from swift.chat.calls import CallSyntax, ToolCall, literal
from swift.chat.messages import Conversation, Message
from swift.core.errors import DataError

Tool = dict[str, Any]
"""A tool as OpenAI describes it: `{"type": "function", "function": {"name", "description", "parameters"}}`."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How tools are told to a model, and how calls and results are written: an agent template.

    name: as `--agent_template` says it.
    tell: the tools and a system text -> the system text that tells of them. With `tells_user` it is given the first
        text of the user instead.
    write: calls -> what the assistant says to make them.
    respond: what the assistant has said, and the results -> what it has said, and how the results come back to it.
    syntax: how calls are found in what the assistant says.
    glue: what stands between the words of the assistant and the calls that follow.
    is_turn: whether results come back as a turn of the user. If not, `respond` gives everything that stands between
        one word of the assistant and its next.
    takes_lead: whether calls without words stand directly behind what opens a reply, without what replies begin with.
    ends: what a call ends with that also ends generation; nothing is put after it.
    stop_words: words that end generation when there are tools.

    Everything in it can be pickled, for processes that prepare data.
    """

    name: str
    tell: Callable[[Sequence[Tool], str], str]
    write: Callable[[Sequence[ToolCall]], str]
    respond: Callable[[str, Sequence[str]], tuple[str, str]]
    syntax: CallSyntax
    glue: str = "\n"
    is_turn: bool = False
    tells_user: bool = False
    takes_lead: bool = False
    ends: str = ""
    stop_words: tuple[str, ...] = ()


def has_tools(conversation: Conversation) -> bool:
    """Whether a conversation knows of tools, or uses some."""
    return bool(conversation.tools) or any(m.role in ("tool_call", "tool_response") for m in conversation.messages)


def function(tool: Tool) -> dict[str, Any]:
    """What a tool does: the object with its name, description and parameters."""
    return tool.get("function", tool)


def dumps(value: Any) -> str:
    """A value as JSON, as chat templates write it."""
    return json.dumps(value, ensure_ascii=False)


def with_tools(conversation: Conversation, form: ToolFormat, default_system: str = "") -> Conversation:
    """The conversation with its tools told, its calls written and its results answered, as one format does it.

    What comes out has no tools. Its calls are part of what the assistant says; a message of the role tool_call is left
    where calls stand on their own (`ToolFormat.takes_lead`) or are learnt otherwise than the words before them. The
    messages of the role tool_response hold what the results look like in the text.

    default_system: the system text of conversations that bring none.
    Raises DataError for calls that cannot be read and for results without a call.
    """
    if not has_tools(conversation):
        return conversation
    messages = _written(conversation.messages, form)
    if conversation.tools:
        messages = _told(messages, conversation, form, default_system)
    return replace(conversation, messages=tuple(messages), tools=())


def observe(reply: str, results: Sequence[str], *, keyword: str = "Observation:") -> tuple[str, str]:
    """Results in the manner of ReAct: the assistant goes on speaking behind a keyword and the result."""
    if not reply.endswith(keyword):
        reply += keyword if reply.endswith("\n") else "\n" + keyword
    lines = [result if result.endswith("\n") else result + "\n" for result in results]
    return reply, keyword.join(lines)


def answers(form: ToolFormat, reply: str) -> ToolFormat:
    """The format in which a reply is answered: as in ReAct where the reply itself calls in that manner."""
    is_react = "Action:" in reply and "Action Input:" in reply
    return replace(form, respond=observe, is_turn=False) if is_react else form


def read_call(message: Message, number: int) -> ToolCall:
    """The call that a message of the role tool_call holds. Raises DataError with the number of the message."""

    def wrong(what: str) -> DataError:
        return DataError(f"Message {number} (tool_call) {what}: {message.content[:200]!r}. Write {_EXAMPLE}.")

    try:
        value = literal(message.content)
    except ValueError:
        raise wrong("is neither JSON nor a Python literal") from None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise wrong("is no object with the name of a tool")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = literal(arguments)
        except ValueError:
            raise wrong("has arguments that are neither JSON nor a Python literal") from None
    if not isinstance(arguments or {}, dict):
        raise wrong("has arguments that are no object")
    return ToolCall(value["name"], arguments or {})


_EXAMPLE = '{"name": "weather", "arguments": {"city": "Rome"}}'


def _written(messages: Sequence[Message], form: ToolFormat) -> list[Message]:
    """The messages with calls and results written out; neighbours of the same kind are one."""
    written: list[Message] = []
    for role, run in groupby(enumerate(messages, 1), key=lambda numbered: numbered[1].role):
        if role == "tool_call":
            _add_calls(written, list(run), form)
        elif role == "tool_response":
            _add_results(written, list(run), form)
        else:
            written += [message for _, message in run]
    return written


def _add_calls(written: list[Message], run: Sequence[tuple[int, Message]], form: ToolFormat) -> None:
    text = form.write([read_call(message, number) for number, message in run])
    loss = common_loss(run)
    if not written or written[-1].role != "assistant":
        written.append(Message("tool_call" if form.takes_lead else "assistant", text, loss))
        return
    words = written[-1].content
    text = text if not words or (form.glue.isspace() and words.endswith("\n")) else form.glue + text
    if written[-1].loss == loss:
        written[-1] = replace(written[-1], content=words + text)
    else:
        written.append(Message("tool_call", text, loss))


def common_loss(run: Sequence[tuple[int, Message]]) -> bool | None:
    """The wish of calls that are made at once. Raises DataError when they differ."""
    wishes = {message.loss for _, message in run}
    if len(wishes) > 1:
        raise DataError(
            f"Messages {run[0][0]} to {run[-1][0]} are calls made at once, which are learnt together or not at all: "
            'give them the same "loss".'
        )
    return wishes.pop()


def _add_results(written: list[Message], run: Sequence[tuple[int, Message]], form: ToolFormat) -> None:
    if not written or written[-1].role not in ("assistant", "tool_call"):
        raise DataError(f"Message {run[0][0]} is a tool_response, and no call of the assistant stands before it.")
    spoken = written[-1]
    reply, text = answers(form, spoken.content).respond(spoken.content, [message.content for _, message in run])
    written[-1] = replace(spoken, content=reply)
    written.append(Message("tool_response", text))


def _told(messages: list[Message], conversation: Conversation, form: ToolFormat, default_system: str) -> list[Message]:
    """The messages with the tools told in front."""
    if form.tells_user:
        first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
        if first is None:
            raise DataError(f"The agent template {form.name} tells of tools in a user message, and there is none.")
        told = replace(messages[first], content=form.tell(conversation.tools, messages[first].content))
        return [*messages[:first], told, *messages[first + 1 :]]
    given = conversation.system
    told = Message("system", form.tell(conversation.tools, default_system if given is None else given))
    return [told, *(messages if given is None else messages[1:])]
