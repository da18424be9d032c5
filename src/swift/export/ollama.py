"""This file knows what Ollama is told of a model: a Modelfile, whose prompts are those that the model was trained with.

The template is written from what a renderer puts around words, and then proven: what Ollama would send for a number of
conversations is compared with the prompts of the renderer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from swift.chat.messages import Conversation, Message
from swift.core.errors import RunError, UsageError
from swift.export.go_template import Action, render, write
from swift.export.turns import Render, Turns

THOUGHT = ("<think>\n", "\n</think>\n\n")
"""What stands around thinking in a reply that is gone on with."""
_LAST_USER = "$lastUser"


@dataclass(frozen=True)
class Prompts:
    """What a model is prompted with.

    turns: the layout. generations: what asks for a reply when thinking is said to be on, and off; () where the template
    does not tell them apart. thinks: whether replies think, and past thinking is left out of prompts.
    """

    turns: Turns
    generations: tuple[str, str] | tuple[()] = ()
    thinks: bool = False


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says. model: the folder behind FROM. parameters: name and value, some names several times."""

    model: str
    template: str
    system: str = ""
    parameters: Sequence[tuple[str, str | int | float]] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def text(self) -> str:
        """The file. Raises UsageError for texts that a Modelfile cannot hold."""
        folder = _value(self.model) if " " in self.model else self.model
        lines = [*(f"# {note}" for note in self.notes), f"FROM {folder}", f'TEMPLATE """{self.template}"""']
        if self.system:
            lines.append(f"SYSTEM {_value(self.system)}")
        return "\n".join([*lines, *(f"PARAMETER {name} {_value(value)}" for name, value in self.parameters)]) + "\n"


def template_of(prompts: Prompts) -> str:
    """The template in the language of Ollama."""
    return write([*_front(prompts), *_messages(prompts)])


def _front(prompts: Prompts) -> Iterator[str | Action]:
    """What stands in front of all turns, and the number of the last turn of the user where somebody needs it."""
    turns = prompts.turns
    if turns.system is None or turns.system_last:
        yield turns.prefix
    elif turns.system and turns.prefix:
        yield from (Action("if .System"), turns.system[0], Action(".System"), turns.system[1])
        yield from (Action("else"), turns.prefix, Action("end"))
    else:
        yield from (Action("if .System"), turns.system[0], Action(".System"), turns.system[1], Action("end"))
    if turns.system_last or prompts.thinks:
        yield Action(f"{_LAST_USER} := -1")
        yield from (Action("range $i, $m := .Messages"), Action('if eq $m.Role "user"'))
        yield from (Action(f"{_LAST_USER} = $i"), Action("end"), Action("end"))


def _messages(prompts: Prompts) -> Iterator[str | Action]:
    turns = prompts.turns
    yield Action("range $i, $m := .Messages")
    yield Action("$last := eq (len (slice $.Messages $i)) 1")
    yield from (Action('if eq .Role "user"'), turns.user[0])
    if turns.system is not None and turns.system_last:
        yield Action(f"if and $.System (eq $i {_LAST_USER})")
        yield from (turns.system[0], Action("$.System"), turns.system[1], Action("end"))
    yield from (Action(".Content"), turns.user[1])
    yield from (Action('else if eq .Role "assistant"'), turns.opening)
    if prompts.thinks:
        yield from (Action(f"if and .Thinking (gt $i {_LAST_USER})"), THOUGHT[0], Action(".Thinking"), THOUGHT[1])
        yield Action("end")
    yield Action(".Content")
    if turns.separator:
        yield from (Action("if not $last"), turns.separator, Action("end"))
    yield Action("end")
    yield from (Action('if and $last (ne .Role "assistant")'), *_generation(prompts), Action("end"))
    yield Action("end")


def _generation(prompts: Prompts) -> Iterator[str | Action]:
    """What asks for a reply, by what the caller says of thinking."""
    if not prompts.generations:
        yield prompts.turns.generation
        return
    said, unsaid = prompts.generations, prompts.turns.generation
    if unsaid == said[0]:
        yield from (Action("if and $.IsThinkSet (not $.Think)"), said[1], Action("else"), said[0], Action("end"))
    elif unsaid == said[1]:
        yield from (Action("if $.Think"), said[0], Action("else"), said[1], Action("end"))
    else:
        yield from (Action("if not $.IsThinkSet"), unsaid, Action("else if $.Think"), said[0])
        yield from (Action("else"), said[1], Action("end"))


# ---------------------------------------------------------------------------------------------------------------- proof


def sent(template: str, system: str, conversation: Conversation, think: bool | None = None) -> str:
    """The text that Ollama sends to the model for a conversation; see `values_for`."""
    return render(template, values_for(system, conversation, think))


def values_for(system: str, conversation: Conversation, think: bool | None = None) -> dict[str, Any]:
    """What Ollama gives to a template for a conversation.

    As its server does, it puts the SYSTEM of the Modelfile in front where no system message is, and makes one message
    of neighbours of one role. think: what the caller says of thinking; None says nothing.
    """
    messages = conversation.messages
    if system and (not messages or messages[0].role != "system"):
        messages = (Message("system", system), *messages)
    given: list[dict[str, Any]] = [
        {"Role": role, "Content": "\n\n".join(message.content for message in run)}
        for role, run in groupby(messages, key=lambda message: message.role)
    ]
    systems = "\n\n".join(message.content for message in messages if message.role == "system")
    return {"System": systems, "Messages": given, "Think": bool(think), "IsThinkSet": think is not None, "Response": ""}


def require_same(template: str, system: str, prompted: Mapping[bool | None, Render], *, takes_system: bool) -> int:
    """Compare what Ollama would send with the prompts of the renderer, for every conversation of the proof.

    prompted: what is said of thinking -> the renderer of prompts. Returns how many were compared. Raises RunError with
    the first difference in its neighbourhood.
    """
    compared = 0
    for conversation in conversations(takes_system=takes_system):
        for think, prompt in prompted.items():
            wanted, found = prompt(conversation), sent(template, system, conversation, think)
            compared += 1
            if wanted != found:
                raise RunError(
                    "The chat template cannot be written for Ollama: for a conversation of "
                    f"{len(conversation.messages)} messages {difference(wanted, found)}. Nothing was written."
                )
    return compared


def difference(wanted: str, found: str) -> str:
    """Where two texts begin to differ, with what stands around."""
    pairs = zip(wanted, found, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(found)))
    place = slice(max(at - 24, 0), at + 24)
    return f"it is prompted with {wanted[place]!r}, and Ollama would send {found[place]!r}"


def conversations(*, takes_system: bool) -> Iterator[Conversation]:
    """What is compared: one to four rounds, with and without a system text, words of several kinds."""
    words = (
        "What is two and two?", "Four.", 'Say "hello" in Go: {{ .Name }}', "One line.\nAnother line.\n\nA third.", "你好，世界！",
        "<b>&amp;</b> 100% \\n", "Thank you.",
    )  # fmt: skip
    for rounds in range(1, 5):
        roles = ["user", "assistant"] * (rounds - 1) + ["user"]
        said = tuple(Message(role, word) for role, word in zip(roles, words, strict=False))  # type: ignore[arg-type]  # of two names, both are roles
        yield Conversation(said)
        if takes_system:
            yield Conversation((Message("system", "You are a pirate.\nAnswer in one line."), *said))


def without_bos(turns: Turns, bos: str) -> Turns:
    """The layout without the token that Ollama itself puts in front of every prompt."""
    system = turns.system
    if system is not None and not turns.system_last:
        system = (system[0].removeprefix(bos), system[1])
    return replace(turns, prefix=turns.prefix.removeprefix(bos), system=system)


def _value(value: str | int | float) -> str:
    """A value as it stands in a Modelfile, which knows no escapes."""
    if not isinstance(value, str):
        return str(value)
    if '"""' in value:
        raise UsageError(f"A Modelfile cannot hold three quotation marks in a row, which stand in {value[:40]!r}.")
    if '"' in value or not value.isprintable():
        return f'"""{value}"""'
    return f'"{value}"'
