"""This file knows how one run writes conversations with tools: by its chat template, or by an agent template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from swift.catalog.agents import AGENT_TEMPLATES, CHECKPOINTS_ONLY
from swift.catalog.layout import Layout
from swift.chat.calls import read_calls
from swift.chat.messages import Conversation, Message
from swift.chat.seams import parted, sewn
from swift.chat.skeletons import Cutter, Pieces, TextPiece
from swift.chat.template import ChatTemplate
from swift.chat.tools import ToolFormat, has_tools, read_call, with_tools
from swift.chat.tools_native import CALL, Arguments, arguments_of, cut_native, written_call
from swift.chat.tools_plugin import BaseAgentTemplate, format_of
from swift.core.errors import DataError, UsageError
from swift.core.logs import get_logger

DEFAULT = "react_en"
"""The agent template where neither the run, nor the checkpoint, nor a layout names one."""


def tool_format(name: str) -> ToolFormat:
    """The agent template of a name. Raises UsageError for names that are unknown or whose wording is."""
    if name in CHECKPOINTS_ONLY and name not in AGENT_TEMPLATES:
        raise UsageError(
            f"--agent_template {name}: only the chat template of its checkpoints has the wording of this format. "
            "Use such a checkpoint without --template, or choose another --agent_template: "
            f"{', '.join(sorted(AGENT_TEMPLATES))}."
        )
    found = AGENT_TEMPLATES[name]
    if isinstance(found, ToolFormat):
        return found
    if isinstance(found, type) and issubclass(found, BaseAgentTemplate):
        return format_of(name, found())
    raise UsageError(f"--agent_template {name}: a plugin must register a subclass of BaseAgentTemplate, got {found!r}.")


class ToolTurns:
    """Conversations with tools, written and taken apart.

    template: the chat template; None for plain text.
    named: the agent template that --agent_template names.
    layout: the layout of the model's family, which may name one too.

    form: the agent template in use; None where the chat template writes tools itself, or where none is known.
    """

    def __init__(self, template: ChatTemplate | None, named: str | None, layout: Layout | None) -> None:
        self._template = template
        self._arguments: Arguments | None = None
        self._wanted = named
        if named is None and template is not None and template.reads_tools:
            self._arguments = arguments_of(template.with_tools)
        used = layout if template is None or template.layout is None else template.layout
        self._name = named or (used.agent_template if used else DEFAULT)
        self._lead = template.layout.lead if template and template.layout else ""
        self._opens = template is None or template.layout is None or template.layout.prefixed != "after_user"
        self.form: ToolFormat | None = None
        if named or (self._arguments is None and self._name not in CHECKPOINTS_ONLY):
            self.form = tool_format(self._name)
        self._has_told = False

    def prepared(self, conversation: Conversation) -> Conversation:
        """The conversation as it is edited and learnt: with calls and results written, or checked.

        Raises DataError when it cannot be written.
        """
        if not has_tools(conversation):
            return conversation
        if self._template is None and conversation.tools:
            raise DataError("Plain text (--use_chat_template false) has no place for `tools`.")
        self._tell()
        if self._arguments is not None:
            return replace(conversation, messages=_opened(conversation.messages))
        if self.form is None:
            self.form = tool_format(self._name)
        return with_tools(conversation, self.form, self._template.default_system if self._template else "")

    def cut(self, cutter: Cutter, conversation: Conversation, *, is_prompt: bool) -> Pieces:
        """The pieces of a prepared conversation; see `Cutter.cut`. Raises DataError when the template refuses it."""
        messages, template = conversation.messages, self._template
        if not has_tools(conversation) and not self._ends(messages):
            return cutter.cut(messages)
        if template is not None and self._arguments is not None:
            render = template.continued_with_tools if is_prompt else template.with_tools
            return cut_native(conversation, render, self._arguments, template.stop_words, is_prompt=is_prompt)
        assert self.form is not None, "messages with tools are prepared first"
        made = sewn(messages, self.form, self._lead)
        cut = cutter.cut(made.messages)
        if is_prompt:
            _check_seams(cut, made.parts)
        pieces = parted(cut, made)
        if is_prompt and template is not None and made.messages[-1].role == "assistant" and self._opens:
            pieces = pieces._replace(pieces=[*pieces.pieces, TextPiece(template.opening)])
        return pieces

    def stop_words(self, conversation: Conversation) -> tuple[str, ...]:
        """What ends generation in this conversation because it has tools."""
        return self.form.stop_words if self.form and has_tools(conversation) else ()

    def reading(self) -> ToolFormat | None:
        """The format in which calls are read from replies; None when the chat template's own is not among ours."""
        if self._arguments is None or self._template is None:
            return self.form
        asked, said = written_call(self._template.with_tools, self._arguments)
        for name in (self._name, *AGENT_TEMPLATES):
            form = None if name in CHECKPOINTS_ONLY else tool_format(name)
            if form and read_calls(said, form.syntax, [asked]).calls == (CALL,):
                return form
        return None

    def _ends(self, messages: Sequence[Message]) -> bool:
        """Whether the last reply ends with the format's own ending, behind which the template writes nothing."""
        return self.form is not None and bool(self.form.ends) and messages[-1].content.endswith(self.form.ends)

    def _tell(self) -> None:
        if self._has_told:
            return
        self._has_told = True
        if self._arguments is not None:
            get_logger().info("Tools are written by the chat template.")
        elif self._wanted is None:
            get_logger().info(
                "Tools are written by the agent template %s; --agent_template chooses another.", self._name
            )


def _opened(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with an empty word of the assistant in front of calls that have none. Raises DataError."""
    opened: list[Message] = []
    for number, message in enumerate(messages, 1):
        if message.role == "tool_call":
            read_call(message, number)
            if not opened or opened[-1].role not in ("assistant", "tool_call"):
                opened.append(Message("assistant", "", message.loss))
        elif message.role == "tool_response" and (not opened or opened[-1].role in ("system", "user")):
            raise DataError(f"Message {number} is a tool_response, and no call of the assistant stands before it.")
        opened.append(message)
    return tuple(opened)


def _check_seams(cut: Pieces, parts: Sequence[Sequence[object]]) -> None:
    """Refuse a prompt in which the template has changed a turn with results in it."""
    for turn, flaw in cut.flaws.items():
        if len(parts[turn]) > 1:
            raise DataError(
                f"Calls and results of tools in turn {turn + 1} cannot be given to this chat template: {flaw}. "
                "Choose an --agent_template whose results are turns of the user, such as hermes."
            )
