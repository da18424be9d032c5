"""This file knows what a rule between options looks at, and how rules are put into a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swift.options.conditions import Words
from swift.options.declare import Command


@dataclass(frozen=True)
class Case:
    """A complete command as a rule sees it: flat values, what the user asked for, the extra training arguments."""

    command: str
    values: Mapping[str, Any]
    asked: frozenset[str]
    extra: Mapping[str, Any]

    def __getitem__(self, flag: str) -> Any:
        """The value of an option; None where the command does not have it."""
        return self.values.get(flag)

    def asks(self, *names: str) -> bool:
        """Whether the user asked for all of these, and not for nothing."""
        return all(name in self.asked and bool(self[name]) for name in names)


def case_of(command: Command) -> Case:
    """What rules look at in this command."""
    asked = frozenset(name for name, source in command.sources.items() if source.asked_for)
    return Case(command.name, command.values(), asked, command.extra)


Check = Callable[[Case], Words | None]
"""A rule: the sentence that says how it is broken, or None."""


class Rules:
    """A table of rules, each for some commands or for all; filled by decorating functions with it."""

    def __init__(self) -> None:
        self._rows: list[tuple[tuple[str, ...], Check]] = []

    def __call__(self, *commands: str) -> Callable[[Check], Check]:
        """Register the function below for these commands, or for all when none is named."""

        def register(check: Check) -> Check:
            self._rows.append((commands, check))
            return check

        return register

    def __iter__(self) -> Iterator[Check]:
        """Every rule of the table."""
        return (check for _, check in self._rows)

    def broken(self, case: Case) -> list[Words]:
        """What the rules of this command say."""
        said = [check(case) for commands, check in self._rows if not commands or case.command in commands]
        return [words for words in said if words is not None]


def exclusive(case: Case, first: str, second: str, en: str, zh: str) -> Words | None:
    """Broken when the user asked for both options; `en` and `zh` say why they exclude each other."""
    if not case.asks(first, second):
        return None
    return Words(
        f"--{first} and --{second} cannot be used together: {en}. Remove one of them.",
        f"--{first} 与 --{second} 不能同时使用：{zh}。请去掉其中一个。",
    )
