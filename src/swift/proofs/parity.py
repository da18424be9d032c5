"""This file knows when a server answers what was trained: token ids, log-probabilities, and the first difference in words.

Log-probabilities are natural logarithms, of single tokens, before temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Decode = Callable[[Sequence[int]], str]

LIMITS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
"""Type of the weights -> how far log-probabilities may be apart on average, by other orders of summation in that type."""
SINGLE = 10
"""How many times as far a single one may be apart."""
NO_ADAPTER = "The server may not have loaded the adapter, or be asked by another name"
AROUND = 6
"""Tokens of the neighbourhood that are shown on either side of a difference."""


@dataclass(frozen=True)
class Comparison:
    """Two sides held against each other.

    found: the figures, in words. wrong: what does not hold, the first of each kind. left_out: why nothing was compared.
    """

    what: str
    found: str = ""
    wrong: tuple[str, ...] = ()
    left_out: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.wrong


@dataclass
class ParityReport:
    """All comparisons of one model. notes: what else a reader should know."""

    model: str
    against: str
    dtype: str
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every comparison holds, and one said something."""
        return all(each.holds for each in self.comparisons) and any(each.found for each in self.comparisons)


@dataclass(frozen=True)
class Said:
    """A reply as two sides see it, token by token: their texts, and both log-probabilities.

    row: number of the conversation, from 1. parted: where the sides chose different tokens, and what both thought of it.
    bare: log-probabilities of the model without its adapter; () where there is none.
    """

    row: int
    tokens: Sequence[str]
    ours: Sequence[float]
    theirs: Sequence[float]
    parted: str = ""
    bare: Sequence[float] = ()


def same_ids(what: str, pairs: Sequence[tuple[int, Sequence[int], Sequence[int]]], decode: Decode) -> Comparison:
    """Token ids, as (row, ours, theirs): all are equal, or the first difference is shown."""
    different = [(row, ours, theirs) for row, ours, theirs in pairs if list(ours) != list(theirs)]
    found = f"{len(pairs) - len(different)} of {len(pairs)} equal"
    if not different:
        return Comparison(what, found)
    row, ours, theirs = different[0]
    return Comparison(what, found, (f"row {row}: {first_difference(ours, theirs, decode)}",))


def first_difference(ours: Sequence[int], theirs: Sequence[int], decode: Decode) -> str:
    """Where two lists of token ids part, in words, with their neighbourhood."""
    pairs = zip(ours, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    before = decode(ours[max(at - AROUND, 0) : at])

    def side(ids: Sequence[int]) -> str:
        if at == len(ids):
            return "ends"
        return f"has {ids[at]} ({decode([ids[at]])!r}, going on {decode(ids[at : at + AROUND])!r})"

    return f"behind token {at} (… {before!r}) ours {side(ours)} and theirs {side(theirs)}"


def same_counts(what: str, pairs: Sequence[tuple[int, int, int]]) -> Comparison:
    """Numbers of prompt tokens, as (row, ours, theirs), where a server tells no more."""
    different = [(row, ours, theirs) for row, ours, theirs in pairs if ours != theirs]
    found = f"{len(pairs) - len(different)} of {len(pairs)} have as many (the server tells no ids)"
    wrong = [f"row {row}: ours has {ours} tokens and theirs {theirs}" for row, ours, theirs in different[:1]]
    return Comparison(what, found, tuple(wrong))


def same_logprobs(what: str, said: Sequence[Said], limit: float) -> Comparison:
    """Log-probabilities of replies: near on average, near one by one, and no token chosen by one side alone."""
    gaps = [
        (abs(a - b), each, place)
        for each in said
        for place, (a, b) in enumerate(zip(each.ours, each.theirs, strict=True))
    ]
    parted = [f"row {each.row}: {each.parted}" for each in said if each.parted]
    if not gaps:
        empty = Comparison(what, left_out="no token was said")
        return Comparison(what, "no token in common", tuple(parted[:1])) if parted else empty
    mean = sum(gap for gap, _, _ in gaps) / len(gaps)
    largest, each, place = max(gaps, key=lambda found: (math.isnan(found[0]), found[0]))
    found = f"apart by {mean:.2g} on average, {largest:.2g} at most, of {len(gaps)} tokens (limits {limit:.2g}, {SINGLE * limit:.2g})"
    wrong = list(parted[:1])
    if not (mean <= limit and largest <= SINGLE * limit):
        around = "".join(each.tokens[max(place - AROUND, 0) : place])
        wrong.append(
            f"row {each.row}: behind {around!r} the token {each.tokens[place]!r} has {each.ours[place]:.4f} here and "
            f"{each.theirs[place]:.4f} there{_explained(said, mean)}"
        )
    return Comparison(what, found, tuple(wrong))


def _explained(said: Sequence[Said], mean: float) -> str:
    """A word on a difference that the adapter explains: the other side may answer without it."""
    gaps = [abs(a - b) for each in said if each.bare for a, b in zip(each.bare, each.theirs, strict=True)]
    if not gaps or not sum(gaps) / len(gaps) < mean / 2:
        return ""
    return f". It is nearer to the model without its adapter. {NO_ADAPTER}"


def effect(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], moved: float) -> Comparison:
    """What an adapter changes: log-probabilities of the same tokens without and with it, a list for each row.

    moved: how far it moves the logits, as a share of their norm.
    """
    what = "the adapter has an effect"
    ones, others = [v for row in before for v in row], [v for row in after for v in row]
    if not ones:
        return Comparison(what, f"logits move by {moved:.2g} of their norm", _none(moved))
    means = (sum(ones) / len(ones), sum(others) / len(others))
    words = f"logits move by {moved:.2g} of their norm; a token of the replies has {means[0]:.3f} without it, {means[1]:.3f} with it"
    return Comparison(what, words, _none(moved))


def _none(moved: float) -> tuple[str, ...]:
    return () if moved > 0 else ("the model answers as it does without the adapter",)
