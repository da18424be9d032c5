"""This file knows what of a conversation is learnt: --loss_scale as a base strategy and refinements of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from swift.chat.messages import Message
from swift.core.errors import UsageError
from swift.core.registry import nearest

Base = Literal["default", "last_round", "all"]
BASES: tuple[Base, ...] = ("default", "last_round", "all")
WORKING = ("ignore_empty_think",)
PLANNED = ("hermes", "react", "qwen", "agentflan", "alpha_umi", "ignore_think_prefix")


@dataclass(frozen=True, slots=True)
class LossScale:
    """What is learnt.

    base: `default` every reply, `last_round` what is said after the last user message, `all` every token.
    ignore_empty_think: a block of thinking in which nothing is thought is not learnt.
    """

    base: Base = "default"
    ignore_empty_think: bool = False


def parse_loss_scale(text: str) -> LossScale:
    """Read `[base+]name+...`, the value of --loss_scale.

    Raises UsageError for names that are unknown, repeated, not available yet, or a base that is not in front.
    """
    names = [name.strip() for name in text.split("+")]
    base: Base = "default"
    if names[0] in BASES:
        base = cast("Base", names.pop(0))
    problems = [problem for i, name in enumerate(names) if (problem := _problem(name, names[:i]))]
    if problems:
        raise UsageError(*(f"--loss_scale {text}: {problem}" for problem in problems))
    return LossScale(base, ignore_empty_think="ignore_empty_think" in names)


def _problem(name: str, before: list[str]) -> str | None:
    if name in BASES:
        return f"the base strategy ({', '.join(BASES)}) stands in front and is one; {name} comes too late."
    if name in before:
        return f"{name} is named twice."
    if name in PLANNED:
        return f"not available yet: {name}. There are: {', '.join((*BASES, *WORKING))}."
    if name not in WORKING:
        known = [*BASES, *WORKING, *PLANNED]
        hint = f" Did you mean: {guess[0]}?" if (guess := nearest(name, known)) else ""
        return f"unknown strategy {name!r}.{hint} There are: {', '.join((*BASES, *WORKING))}."
    return None


def is_learnt(messages: Sequence[Message], base: Base) -> list[bool]:
    """Whether each message is learnt; what an assistant message says of itself (`loss`) comes first."""
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    after = users[-1] if users and base == "last_round" else -1
    learnt = []
    for i, message in enumerate(messages):
        if message.role == "assistant":
            learnt.append(i > after if message.loss is None else message.loss)
        else:
            learnt.append(base == "all")
    return learnt
