"""This file knows how to say when an option has an effect: conditions that can be tested and put into words.

A condition looks at the flat values of a complete command (flag name -> value), in which `command` is the name of
the command itself. A flag the command does not have counts as unset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]
CanBe = Callable[[str, tuple[Any, ...]], bool]
"""Whether a flag can have one of these values in this version, or with () anything but its default."""


TRAINING = ("pt", "sft", "rlhf")
"""The commands that train."""


@dataclass(frozen=True)
class Words:
    """One sentence or phrase in both languages of the interface."""

    en: str
    zh: str

    def say(self, language: str) -> str:
        """The text in `language`: zh, or English for everything else."""
        return self.zh if language == "zh" else self.en


@dataclass(frozen=True)
class Condition:
    """A test of a command's values, and the phrase that completes "has an effect only when ...".

    can_hold: whether it can hold at all, told which values of which flags are available.
    """

    holds: Callable[[Values], bool]
    words: Words
    can_hold: Callable[[CanBe], bool] = lambda _: True

    def __and__(self, other: Condition) -> Condition:
        """Both hold."""
        return Condition(
            lambda values: self.holds(values) and other.holds(values),
            Words(f"{self.words.en} and {other.words.en}", f"{self.words.zh} 且 {other.words.zh}"),
            lambda can_be: self.can_hold(can_be) and other.can_hold(can_be),
        )

    def __or__(self, other: Condition) -> Condition:
        """At least one holds."""
        return Condition(
            lambda values: self.holds(values) or other.holds(values),
            Words(f"{self.words.en}, or {other.words.en}", f"{self.words.zh}，或 {other.words.zh}"),
            lambda can_be: self.can_hold(can_be) or other.can_hold(can_be),
        )


def equals(flag: str, *wanted: Any) -> Condition:
    """The flag has one of these values."""
    names = [str(value).lower() if isinstance(value, bool) else str(value) for value in wanted]
    return Condition(
        lambda values: values.get(flag) in wanted,
        Words(f"--{flag} is {_either(names, 'or')}", f"--{flag} 为 {_either(names, '或')}"),
        lambda can_be: can_be(flag, wanted),
    )


def given(*flags: str) -> Condition:
    """One of the flags is set to something: not null, not false, not zero, not empty."""
    names = [f"--{flag}" for flag in flags]
    return Condition(
        lambda values: any(values.get(flag) for flag in flags),
        Words(f"{_either(names, 'or')} is set", f"设置了 {_either(names, '或')}"),
        lambda can_be: any(can_be(flag, ()) for flag in flags),
    )


def absent(flag: str) -> Condition:
    """The flag is unset, false, zero or empty."""
    return Condition(lambda values: not values.get(flag), Words(f"--{flag} is not set", f"未设置 --{flag}"))


def command(*names: str) -> Condition:
    """The command is one of these."""
    shown = [f"swift {name}" for name in names]
    return Condition(
        lambda values: values["command"] in names,
        Words(f"the command is {_either(shown, 'or')}", f"命令为 {_either(shown, '或')}"),
        lambda can_be: can_be("command", names),
    )


def contains(flag: str, *wanted: str) -> Condition:
    """The flag's text, or one item of its list, contains one of these words."""

    def holds(values: Values) -> bool:
        value = values.get(flag) or ()
        items = [value] if isinstance(value, str) else [str(item) for item in value]
        return any(word in item for word in wanted for item in items)

    names = list(wanted)
    return Condition(
        holds,
        Words(f"--{flag} contains {_either(names, 'or')}", f"--{flag} 包含 {_either(names, '或')}"),
        lambda can_be: can_be(flag, wanted),
    )


def _either(names: list[str], conjunction: str) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {conjunction} {names[-1]}"
