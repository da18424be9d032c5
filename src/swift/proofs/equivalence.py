"""This file knows when two trainings are the same training: what of their traces is compared, and how near it must be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from swift.proofs.trace import BEGIN, END, GRADIENT, LOGITS, OPTIMIZER, Trace


@dataclass(frozen=True)
class Limits:
    """How far two trainings may be apart that should be one.

    loss, norm: of any step, as a share of the number itself.
    gradient: |g - h| / |g| over all trained parameters, in the first step.
    weights: |w - v| / |w - w_0| after the last step, w_0 being the beginning; None where nothing can be said: of
        gradients rounded to half precision, Adam makes steps of any sign where they are near zero.
    logits: |y - z| / |y| of a position.
    """

    loss: float
    norm: float
    gradient: float
    weights: float | None
    logits: float


LIMITS = {
    "float32": Limits(loss=1e-5, norm=1e-4, gradient=1e-4, weights=2e-2, logits=1e-4),
    "bfloat16": Limits(loss=1e-2, norm=5e-2, gradient=1e-1, weights=None, logits=4e-2),
    "float16": Limits(loss=5e-3, norm=2e-2, gradient=5e-2, weights=None, logits=2e-2),
}
"""Type of the weights -> limits: above what another order of summation does in that type, far below what a wrong
weight of rows, a lost row or a wrong mask does."""
SAME = Limits(loss=0, norm=0, gradient=0, weights=0, logits=0)
"""Of trainings that compute the same things in the same order."""


@dataclass(frozen=True)
class Difference:
    """One quantity of two trainings.

    found, limit: how far apart it is, and may be.
    where: the first step or the parameter where it is too far apart, with both values; "" when it is not.
    """

    what: str
    found: float
    limit: float
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is near enough; a difference that is not a number is not."""
        return self.found <= self.limit


@dataclass(frozen=True)
class Finding:
    """Two trainings held against each other.

    left_out: why they were not, when they were not. error: how one of them failed.
    """

    name: str
    against: str
    differences: tuple[Difference, ...] = ()
    left_out: str = ""
    error: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.error and all(difference.holds for difference in self.differences)


@dataclass
class Report:
    """What was proven of one command line. notes: what was changed for the proof, and what cannot be proven."""

    proof: str
    command: str
    device: str
    dtype: str
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every finding holds, and there is one that says something."""
        return all(finding.holds for finding in self.findings) and any(f.differences for f in self.findings)


@dataclass(frozen=True)
class Record:
    """What a training left in its folder: the traces of its processes, and tensors by file."""

    folder: Path

    @property
    def traces(self) -> list[Trace]:
        """Of all processes, in order of rank."""
        return [Trace.read(file) for file in sorted(self.folder.glob("trace-*.json"))]

    @property
    def trace(self) -> Trace:
        """Of the first process."""
        return Trace.read(self.folder / "trace-0.json")

    def tokens(self) -> list[list[int]]:
        """The tokens of each step over all processes, sorted: what was learnt from, in whatever order."""
        steps = zip(*(trace.tokens for trace in self.traces), strict=True)
        return [sorted(token for part in parts for token in part) for parts in steps]


def same_steps(base: Record, other: Record, limits: Limits, *, rows_count: bool = True) -> Iterator[Difference]:
    """What must be equal when a step is cut up in another way: its rows, loss and gradient, and what they lead to.

    rows_count: whether the tokens of both can be compared.
    """
    ours, theirs = base.trace, other.trace
    if rows_count:
        yield _of_steps("rows of each step", base.tokens(), other.tokens())
    yield _of_numbers("loss", ours.losses, theirs.losses, limits.loss)
    yield _of_numbers("gradient norm", ours.norms, theirs.norms, limits.norm)
    yield _of_tensors("gradient of step 1", base.folder / GRADIENT, other.folder / GRADIENT, limits.gradient)
    if limits.weights is not None:
        yield _of_tensors(
            f"weights after {len(ours.losses)} steps", base.folder / END, other.folder / END, limits.weights,
            start=base.folder / BEGIN,
        )  # fmt: skip


def resumed(whole: Record, before: Record, after: Record, limits: Limits) -> Iterator[Difference]:
    """What must be equal when a training is interrupted and resumed: everything, in the same order."""
    ours, first, second = whole.trace, before.trace, after.trace
    step = second.first - 1
    yield Difference(
        "step it goes on from", abs(step - len(first.losses)), 0,
        "" if step == len(first.losses) else f"interrupted after step {len(first.losses)}, went on after step {step}",
    )  # fmt: skip
    orders = [record.trace.order() for record in (whole, before, after)]
    yield _of_steps("rows and their order", orders[0], orders[1] + orders[2])
    yield _of_numbers("loss", ours.losses, first.losses + second.losses, limits.loss)
    yield _of_numbers("gradient norm", ours.norms, first.norms + second.norms, limits.norm)
    yield _of_numbers("learning rate", ours.rates, first.rates + second.rates, 0)
    weights = limits.weights if limits.weights is not None else 1e-1
    yield _of_tensors(
        f"weights after {len(ours.losses)} steps", whole.folder / END, after.folder / END, weights,
        start=whole.folder / BEGIN,
    )  # fmt: skip
    yield _of_tensors("state of the optimizer", whole.folder / OPTIMIZER, after.folder / OPTIMIZER, weights)


def same_logits(what: str, expected_TV: Tensor, found_TV: Tensor, limit: float) -> Difference:
    """|y - z| / |y| of the position where it is largest."""
    if expected_TV.shape != found_TV.shape:
        return Difference(what, math.inf, limit, f"shapes {list(expected_TV.shape)} and {list(found_TV.shape)}")
    errors_T = (expected_TV - found_TV).norm(dim=-1) / expected_TV.norm(dim=-1).clamp(min=1e-30)
    worst = int(errors_T.argmax())
    found = float(errors_T[worst])
    return Difference(what, found, limit, "" if found <= limit else f"position {worst}")


def logits_of(folder: Path) -> Tensor:
    """The logits that a training left at its end, [T, V]."""
    with safe_open(folder / LOGITS, framework="pt") as file:
        return file.get_tensor("logits")


def _of_steps(what: str, ours: Sequence[object], theirs: Sequence[object]) -> Difference:
    """How many steps differ in something that is equal or not."""
    count = abs(len(ours) - len(theirs)) + sum(a != b for a, b in zip(ours, theirs, strict=False))
    first = next((step for step, (a, b) in enumerate(zip(ours, theirs, strict=False), 1) if a != b), None)
    where = f"step {first}" if first else f"{len(ours)} and {len(theirs)} steps" if count else ""
    return Difference(what, count, 0, where)


def _of_numbers(what: str, ours: Sequence[float], theirs: Sequence[float], limit: float) -> Difference:
    """The largest |a - b| / |a| of all steps; `where` is the first step that is beyond the limit."""
    if len(ours) != len(theirs):
        return Difference(what, math.inf, limit, f"{len(ours)} and {len(theirs)} steps")
    shares = [abs(a - b) / max(abs(a), 1e-30) if a != b else 0.0 for a, b in zip(ours, theirs, strict=True)]
    first = next((step for step, share in enumerate(shares) if not share <= limit), None)
    where = "" if first is None else f"step {first + 1}: {ours[first]:.6g} and {theirs[first]:.6g}"
    largest = max(shares, key=lambda share: (math.isnan(share), share), default=math.nan)
    return Difference(what, largest, limit, where)


def _of_tensors(what: str, ours: Path, theirs: Path, limit: float, start: Path | None = None) -> Difference:
    """|a - b| / |a| over all tensors of two files, or |a - b| / |a - start|; `where` is the tensor that differs most.

    One tensor of each file is in memory at a time.
    """
    apart, size, worst = 0.0, 0.0, (0.0, "", 0.0)
    with safe_open(ours, framework="pt") as mine, safe_open(theirs, framework="pt") as others:
        names = sorted(mine.keys())
        strangers = sorted(set(names) ^ set(others.keys()))
        if strangers:
            return Difference(what, math.inf, limit, f"only one of them has {strangers[0]}")
        for name in names:
            a, b = mine.get_tensor(name).double(), others.get_tensor(name).double()
            difference = float((a - b).norm())
            length = float((a - _beginning(start, name)).norm())
            apart, size = apart + difference**2, size + length**2
            if not difference <= worst[0]:
                worst = (difference, name, length)
    found = math.sqrt(apart / size) if size else math.inf if apart else 0.0
    return Difference(what, found, limit, "" if found <= limit else f"{worst[1]}: {worst[0]:.2g} of {worst[2]:.2g}")


def _beginning(file: Path | None, name: str) -> Tensor | float:
    """Where a parameter began; 0 where nobody has kept it."""
    if file is None:
        return 0.0
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name).double() if name in opened.keys() else 0.0  # noqa: SIM118 (no mapping)
