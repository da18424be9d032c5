"""This file knows what a check has found: the page as plain data, without a word on how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Proof:
    """One claim about a run, and whether it holds.

    claim: what should be so.
    found: what was found, with numbers.
    advice: what to do when it does not hold.
    examples: places and texts that show it, a few at most.
    """

    claim: str
    holds: bool
    found: str
    advice: str = ""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """A name, its value, and where it comes from or what it means; "" when there is nothing to add."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Stretch:
    """A part of a rendered row, and whether it is learnt."""

    text: str
    is_learnt: bool


@dataclass(frozen=True)
class ShownRow:
    """A row as the model will see it.

    title: the data set, and the part of the row where a row has several (chosen, rejected).
    place: file and line.
    """

    title: str
    place: str
    tokens: int
    learnt: int
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class DatasetFacts:
    """What one data set brings.

    samples: how many are used, after cutting and leaving out; one row may give several.
    tokens, learnt: of these samples.
    """

    name: str
    split: str
    samples: int
    tokens: int
    learnt: int


@dataclass(frozen=True)
class Bar:
    """Samples whose length lies from `low` to `high`, both included."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class LeftOut:
    """Rows that are left out for one cause, and the first of them."""

    count: int
    cause: str
    example: str


@dataclass
class CheckReport:
    """All that `swift check` has found about one command line; filled from top to bottom.

    decided: the options that were given or derived, each with its source.
    rows: the first rows of every data set.
    max_length, longer: the limit, and how many rows are longer; None without a limit.
    """

    command: str
    decided: list[Fact] = field(default_factory=list)
    model: list[Fact] = field(default_factory=list)
    rows: list[ShownRow] = field(default_factory=list)
    datasets: list[DatasetFacts] = field(default_factory=list)
    lengths: list[Bar] = field(default_factory=list)
    max_length: int | None = None
    longer: int = 0
    read: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    schedule: list[Fact] = field(default_factory=list)
    machine: list[Fact] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every proof holds."""
        return all(proof.holds for proof in self.proofs)

    @property
    def failed(self) -> list[Proof]:
        """The proofs that do not hold."""
        return [proof for proof in self.proofs if not proof.holds]


def counted(count: int, noun: str) -> str:
    """`1 row`, `1,234 rows`, `2 processes`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("s") else "s")


def share(part: int, whole: int) -> str:
    """A part of a whole in percent, with as many digits as say something."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def shortened(text: str, limit: int = 100) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def histogram(lengths: Sequence[int], bars: int = 12) -> list[Bar]:
    """Lengths counted in at most `bars` ranges of one round width; [] without lengths."""
    if not len(lengths):
        return []
    longest = max(lengths)
    width = next(w for w in _round_widths() if longest <= w * bars)
    counts = [0] * (-(-longest // width) or 1)
    for length in lengths:
        counts[max(length - 1, 0) // width] += 1
    return [Bar(i * width + 1, (i + 1) * width, count) for i, count in enumerate(counts)]


def _round_widths() -> list[int]:
    """1, 2, 5, 10, 20, 50, ..."""
    return [digit * 10**power for power in range(12) for digit in (1, 2, 5)]
