"""This file knows what of a conversation is learnt, and how much: --loss_scale as a base strategy and refinements.

A refinement parts what is said in a reply into pieces and gives each a weight; several follow one another, and the
weights multiply. What ends a reply weighs 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from swift.chat.messages import Message
from swift.chat.patterns import Patterns, patterns_of, read_patterns
from swift.core.errors import UsageError
from swift.core.registry import Registry, did_you_mean

Base = Literal["default", "last_round", "all"]
BASES: tuple[Base, ...] = ("default", "last_round", "all")


class LossScale:
    """A strategy that gives every piece of a reply its weight; this one leaves all at 1.

    base_strategy: `default` every reply is learnt, `last_round` what is said after the last user message, `all` every
    token.
    """

    def __init__(self, base_strategy: Base = "default") -> None:
        self.base_strategy: Base = base_strategy

    @property
    def is_binary(self) -> bool:
        """Whether every weight is 0 or 1."""
        return True

    def get_loss_scale(self, context: str, *, query: str | None = None) -> tuple[list[str], list[float]]:
        """The pieces of `context`, which joined give it again, and the weight of each.

        context: a reply, or a piece of one.
        query: what the user said before it.
        """
        del query  # for strategies that look at what was asked
        return [context], [1.0]


class ConfigLossScale(LossScale):
    """A strategy of patterns: a mapping, or the path of a JSON file.

    Give them to the constructor, or in a subclass as `loss_scale_config`.
    """

    loss_scale_config: ClassVar[str | dict] = {}

    def __init__(self, base_strategy: Base = "default", config: str | dict | None = None) -> None:
        super().__init__(base_strategy)
        given = self.loss_scale_config if config is None else config
        self._patterns: Patterns = read_patterns(given) if isinstance(given, str) else patterns_of(given, "")

    @property
    def is_binary(self) -> bool:
        """Whether every weight is 0 or 1."""
        return self._patterns.is_binary

    def get_loss_scale(self, context: str, *, query: str | None = None) -> tuple[list[str], list[float]]:
        """The pieces of `context` and their weights, as the patterns say."""
        return self._patterns.weigh(context, query)


_ACTING = {"Action:": [2, 2], "Action Input:": [2, 2]}
_ANSWERING = {"Thought:": [1, 1], "Final Answer:": [1, 1], "Observation:": [2, 0]}
_NAMING = (
    "Name:", "Action:", "ACTION:", "Tool:", "Command", "Arguments:", "action input", "ACTION_INPUT:", "Action Input:",
)  # fmt: skip
_ASKING = (
    "What is the tool you want to use", "What are the required parameter names", "What is the value of",
)  # fmt: skip
_SEED_BUDGET = (
    r"<seed:think><seed:cot_budget_reflect>The current thinking budget is 0, so I will directly start answering the "
    r"question\.</seed:cot_budget_reflect>\s*</seed:think>\s*"
)
_CONFIGS: dict[str, dict] = {
    "ignore_empty_think": {
        r"^\s*<think>\s*</think>\s*": [0],
        r"^\s*</think>\s*": [0],
        f"^{_SEED_BUDGET}": [0],
        r"^<\|channel>thought\s*<channel\|>\s*": [0],
        r"^</mm:think>\s*": [0],
    },
    "ignore_think_prefix": {r"^<think>\n?": [0]},
    "hermes": {r"<tool_call>.+?</tool_call>": [2]},
    "react": {**_ACTING, **_ANSWERING},
    "alpha_umi": {**_ACTING, **_ANSWERING, "Next:": [2, 2]},
    "qwen": {"✿FUNCTION✿:": [2, 2], "✿ARGS✿:": [2, 2], "✿RETURN✿:": [1, 1], "✿RESULT✿:": [2, 0]},
    "agentflan": {
        "response": {**{word: [1, 3] for word in _NAMING}, **_ANSWERING},
        "query": {phrase: [3] for phrase in _ASKING},
    },
}


def _configured(name: str) -> Callable[[Base], LossScale]:
    return lambda base="default": ConfigLossScale(base, _CONFIGS[name])


LOSS_SCALES: Registry[Callable[[Base], LossScale]] = Registry(
    "loss_scale", {"base": LossScale, **{name: _configured(name) for name in _CONFIGS}}
)
"""Name in --loss_scale -> what makes the strategy from a base strategy."""


@dataclass(frozen=True, slots=True)
class LossPlan:
    """The value of --loss_scale: a base strategy, and refinements in their order."""

    base: Base = "default"
    refinements: tuple[LossScale, ...] = ()

    @property
    def is_binary(self) -> bool:
        """Whether every weight is 0 or 1, so that labels say all."""
        return all(refinement.is_binary for refinement in self.refinements)


def parse_loss_scale(text: str) -> LossPlan:
    """Read `[base+]name+...`, where a name may be a JSON file or, alone, JSON text.

    Raises UsageError for names that are unknown or repeated, a base that is not in front, a config that is wrong.
    """
    front, brace, _ = text.partition("{")
    names = [name.strip() for name in (front.rstrip("+ ") if brace else text).split("+")]
    names = names if names != [""] or not brace else []
    base: Base = "default"
    if names and names[0] in BASES:
        base = cast("Base", names.pop(0))
    problems = [problem for i, name in enumerate(names) if (problem := _problem(name, names[:i]))]
    if problems:
        raise UsageError(*(f"--loss_scale {text}: {problem}" for problem in problems))
    refinements = [
        ConfigLossScale(base, name) if name.endswith(".json") else LOSS_SCALES[name](base)
        for name in names
        if name != "base"
    ]
    if brace:
        refinements.append(ConfigLossScale(base, text[len(front) :]))
    return LossPlan(base, tuple(refinements))


def _problem(name: str, before: list[str]) -> str | None:
    if name in BASES:
        return f"the base strategy ({', '.join(BASES)}) stands in front and is one; {name} comes too late."
    if name in before:
        return f"{name} is named twice."
    if name in LOSS_SCALES or name.endswith(".json"):
        return None
    known = [*BASES, *LOSS_SCALES]
    return f"unknown strategy {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}, and JSON files."


def is_learnt(messages: Sequence[Message], base: Base) -> list[bool]:
    """Whether each message is learnt; what an assistant message says of itself (`loss`) comes first."""
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    after = users[-1] if users and base == "last_round" else -1
    learnt = []
    for i, message in enumerate(messages):
        if message.role in ("assistant", "tool_call"):
            learnt.append(i > after if message.loss is None else message.loss)
        else:
            learnt.append(base == "all")
    return learnt
