"""This file knows a conversation at the terminal: what is typed, what is a command, and how a reply appears."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from swift.chat.messages import Conversation, Message
from swift.chat.render import Prompt
from swift.core.errors import EngineError, SwiftError
from swift.core.logs import get_logger
from swift.engines.base import Completion, Sampling
from swift.engines.chat import Chat

with suppress(ImportError):  # not on every platform; plain lines work without
    import readline  # noqa: F401 - lets `input` edit the line and remember earlier ones

HELP = """\
Type a question and press Enter. Commands, each on a line of its own:
  exit, quit     leave (so does Ctrl-D)
  multi-line     questions of several lines, the last one ending with #
  single-line    one line is one question again
  reset-system   the next input is the system text; default-system restores the template's, nothing means none
  clear          forget what was said so far
Ctrl-C stops a reply; at the prompt it leaves.
"""
DEFAULT_SYSTEM = "default-system"
TOOL = "tool:"


@dataclass(frozen=True)
class Exchange:
    """What was said up to and with a question, and the reply to it."""

    conversation: Conversation
    completion: Completion


@dataclass
class Dialogue:
    """A conversation in progress.

    stream: show replies while they are generated.
    keeps_history: False for a model that merely continues text; then every question stands alone.
    fitted: cuts a prompt that is too long, or gives None for one that must not be cut.
    heard: told of every exchange.
    read: gives one line for a prompt; raises EOFError when there is no more.
    """

    chat: Chat
    sampling: Sampling
    fitted: Callable[[Prompt], Prompt | None]
    stream: bool = True
    keeps_history: bool = True
    heard: Callable[[Exchange], None] | None = None
    read: Callable[[str], str] = input
    messages: list[Message] = field(default_factory=list)
    system: str | None = None
    multi_line: bool = False
    turns: int = 0

    def run(self) -> None:
        """Talk until `exit`, the end of the input, or Ctrl-C at the prompt."""
        _show(HELP)
        try:
            while (query := self._ask()) is not None:
                if query:
                    self._answer(query)
        except (EOFError, KeyboardInterrupt):
            _show("\n")

    def _ask(self) -> str | None:
        """The next question; "" when there is none to answer, None to leave."""
        first = self.read("<<<[M] " if self.multi_line else "<<< ")
        word = first.strip().lower()
        if word in ("exit", "quit"):
            return None
        if word in self._commands():
            self._commands()[word]()
            return ""
        return (self._rest(first) if self.multi_line else first).strip()

    def _commands(self) -> dict[str, Callable[[], None]]:
        return {
            "multi-line": self._several_lines,
            "single-line": self._one_line,
            "reset-system": self._reset_system,
            "clear": self._clear,
        }

    def _several_lines(self) -> None:
        self.multi_line = True
        _show("End a question with # at the end of its last line.\n")

    def _one_line(self) -> None:
        self.multi_line = False

    def _clear(self) -> None:
        self.messages.clear()

    def _reset_system(self) -> None:
        text = self.read("<<<[MS] " if self.multi_line else "<<<[S] ")
        text = (self._rest(text) if self.multi_line else text).strip()
        self.system = None if text == DEFAULT_SYSTEM else text
        self._clear()

    def _rest(self, line: str) -> str:
        """The text from this line to the one that ends with #, without that mark."""
        lines = [line]
        while not lines[-1].rstrip().endswith("#"):
            lines.append(self.read(""))
        lines[-1] = lines[-1].rstrip()[:-1]
        return "\n".join(lines)

    def _answer(self, query: str) -> None:
        said = _question(query)
        messages = (*self.messages, said) if self.keeps_history else (said,)
        try:
            prompt = self.fitted(self.chat.prompt(self._conversation(messages)))
            if prompt is None:
                raise EngineError("The conversation has become longer than --max_length; type clear to begin anew.")
            completion = self._reply(prompt)
        except SwiftError as error:
            get_logger().error("%s", error)
            return
        self.turns += 1
        if completion is None:
            return
        self.messages = [*messages, Message("assistant", completion.text)]
        if self.heard is not None:
            self.heard(Exchange(self._conversation(messages), completion))

    def _conversation(self, messages: tuple[Message, ...]) -> Conversation:
        system = () if self.system is None else (Message("system", self.system),)
        return Conversation((*system, *messages))

    def _reply(self, prompt: Prompt) -> Completion | None:
        """The reply, shown; what there was of it when it was stopped; None when there was nothing."""
        sampling = self.sampling
        if sampling.seed is not None:  # the same question may have another answer next time, the same session not
            sampling = replace(sampling, seed=sampling.seed + self.turns)
        shown = ""
        try:
            if not self.stream:
                (completion,) = self.chat.complete([prompt], sampling)[0]
                _show(completion.text + "\n")
                return completion
            for delta in self.chat.stream(prompt, sampling):
                _show(delta.text)
                shown += delta.text
                if delta.completion is not None:
                    _show("\n")
                    return delta.completion
        except KeyboardInterrupt:
            _show(" [stopped]\n")
        return Completion([], shown, "stop") if shown else None


def _question(query: str) -> Message:
    if query.startswith(TOOL):
        return Message("tool_response", query.removeprefix(TOOL).lstrip())
    return Message("user", query)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
