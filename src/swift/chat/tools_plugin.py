"""This file knows how an agent template that a plugin writes as a class becomes a format of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from swift.chat.calls import CallSyntax, NotACall, Scan, ToolCall, literal, read_calls
from swift.chat.tools import Tool, ToolFormat, dumps
from swift.chat.tools_legacy import REACT_EN


@dataclass(frozen=True, slots=True)
class Function:
    """A call found in a reply.

    arguments: JSON text.
    """

    name: str
    arguments: str


class BaseAgentTemplate:
    """An agent template of your own: override what differs from ReAct in English.

    begins: marks with which a call begins in a reply. While a reply is streamed it is given out up to the first of
        them; what follows is given to `get_toolcall` when it has ended. Without marks nothing is streamed.
    stop_words: words that end generation when there are tools.
    """

    begins: tuple[str, ...] = ()
    stop_words: tuple[str, ...] = ()

    def _format_tools(
        self, tools: Sequence[Tool], system: str | None = None, user_message: dict[str, str] | None = None
    ) -> str:
        """The system text that tells of the tools, from the system text of the conversation."""
        del user_message  # the first message of the user, for those who want to see it
        return REACT_EN.tell(tools, system or "")

    def _format_tool_calls(self, tool_call_messages: Sequence[dict[str, Any]]) -> str:
        """What the assistant says to call; each message has the call as JSON text in `content`."""
        return REACT_EN.write([self._call(message) for message in tool_call_messages])

    def _format_tool_responses(
        self, assistant_content: str, tool_messages: Sequence[dict[str, Any]]
    ) -> tuple[str, list[str]]:
        """What the assistant has said, and the pieces of text between that and what it says next."""
        said, between = REACT_EN.respond(assistant_content, [message["content"] for message in tool_messages])
        return said, [between]

    def get_toolcall(self, response: str) -> list[Function]:
        """The calls that a reply makes."""
        return [
            Function(call.name, call.arguments if isinstance(call.arguments, str) else dumps(call.arguments))
            for call in read_calls(response, REACT_EN.syntax).calls
        ]

    def _call(self, message: dict[str, Any]) -> ToolCall:
        value = literal(message["content"])
        return ToolCall(value["name"], value["arguments"])


def format_of(name: str, agent: BaseAgentTemplate) -> ToolFormat:
    """The format of an agent template that is a class."""
    syntax = CallSyntax(agent.begins, partial(_read, agent), is_bare=not agent.begins)
    return ToolFormat(
        name, agent._format_tools, partial(_write, agent), partial(_respond, agent), syntax, stop_words=agent.stop_words
    )


def _write(agent: BaseAgentTemplate, calls: Sequence[ToolCall]) -> str:
    contents = [dumps({"name": call.name, "arguments": call.arguments}) for call in calls]
    return agent._format_tool_calls([{"role": "tool_call", "content": content} for content in contents])


def _respond(agent: BaseAgentTemplate, reply: str, results: Sequence[str]) -> tuple[str, str]:
    said, between = agent._format_tool_responses(reply, [{"role": "tool", "content": result} for result in results])
    return said, "".join(between)


def _read(agent: BaseAgentTemplate, scan: Scan) -> list[ToolCall]:
    """The calls from here to the end of the reply."""
    functions = agent.get_toolcall(scan.rest())
    if not functions:
        raise NotACall
    return [ToolCall(found.name, _object(found.arguments)) for found in functions]


def _object(arguments: Any) -> dict[str, Any] | str:
    if isinstance(arguments, dict):
        return arguments
    try:
        value = literal(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments
