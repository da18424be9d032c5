"""This file knows how the gradient of a matrix is projected to a low rank, and when the projection is made anew.

Axes: M rows and N columns of the weight, R the rank, S singular values of the gradient.

GaLore (Zhao et al. 2024, arXiv 2403.03507) keeps the states of an optimizer for P'G instead of G. Q-GaLore (Zhang et
al. 2024, arXiv 2407.08296) keeps P in a few bits, and makes it anew less and less often once it hardly turns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Side = Literal["left", "right"]
State = dict[str, Any]
"""What is kept of one weight's projection: tensors and numbers, which a checkpoint saves as they are."""


@dataclass(frozen=True)
class Lazily:
    """Q-GaLore's schedule (section 3.2): when the last `memory` turns of the projection were similar on average, by
    `threshold` or more, the gap to the next one grows `growth` times."""

    threshold: float
    growth: float
    memory: int


@dataclass(frozen=True)
class Quantized:
    """Values in `bits` bits, each `group` of them between its own least and greatest."""

    bits: int
    group: int


@dataclass(frozen=True)
class Projecting:
    """How the gradients of matrices are projected.

    kind: std (the short side is kept), reverse_std (the long one), left, right, full (both sides are cut to R).
    gap: steps for which a projection serves.
    """

    rank: int
    gap: int
    kind: str = "std"
    lazily: Lazily | None = None
    quantized: Quantized | None = None


def _short(rows: int, columns: int) -> tuple[Side, ...]:
    return ("right",) if rows >= columns else ("left",)


def _long(rows: int, columns: int) -> tuple[Side, ...]:
    return ("left",) if rows >= columns else ("right",)


SIDES = {
    "std": _short,
    "reverse_std": _long,
    "left": lambda *_: ("left",),
    "right": lambda *_: ("right",),
    "full": lambda *_: ("left", "right"),
}
"""`galore_proj_type` -> the sides on which a matrix of M rows and N columns is multiplied."""


def low_shape(rows: int, columns: int, projecting: Projecting) -> tuple[int, int]:
    """The shape of the projected gradient."""
    rank, sides = min(projecting.rank, rows, columns), SIDES[projecting.kind](rows, columns)
    return (rank if "left" in sides else rows), (rank if "right" in sides else columns)


def project(gradient_MN: Tensor, state: State, projecting: Projecting) -> Tensor:
    """L'GR', with the projection in `state`, which is made when there is none and made anew when it has served.

    L [M, R] and R [R, N] hold the leading singular vectors of the gradient (GaLore, eq. 12 and 13).
    """
    if not state or state["age"] >= state["gap"]:
        _renew(gradient_MN, state, projecting)
    state["age"] += 1
    low = gradient_MN
    if "left" in state:
        low = read(state["left"], low).mT @ low
    if "right" in state:
        low = low @ read(state["right"], low).mT
    return low


def project_back(low: Tensor, state: State) -> Tensor:
    """L low R, [M, N]."""
    full = low
    if "left" in state:
        full = read(state["left"], full) @ full
    if "right" in state:
        full = full @ read(state["right"], full)
    return full


def _renew(gradient_MN: Tensor, state: State, projecting: Projecting) -> None:
    """Put a new projection into `state`, and the time for which it serves."""
    rank = min(projecting.rank, *gradient_MN.shape)
    U_MS, _, V_SN = torch.linalg.svd(gradient_MN.float(), full_matrices=False)
    vectors = {"left": U_MS[:, :rank], "right": V_SN[:rank]}
    made = {side: _agreed(vectors[side]) for side in SIDES[projecting.kind](*gradient_MN.shape)}
    leading = made["left"][:, 0] if "left" in made else made["right"][0]
    gap, similar = state.get("gap", projecting.gap), [*state.get("similar", ())]
    if projecting.lazily is not None:
        if "leading" in state:
            # a singular vector is as good as its opposite
            similar.append(abs(float(state["leading"] @ leading)))
        similar = similar[-projecting.lazily.memory :]
        if len(similar) == projecting.lazily.memory and sum(similar) >= projecting.lazily.threshold * len(similar):
            gap = max(gap, int(gap * projecting.lazily.growth))
        state |= {"leading": leading.clone(), "similar": similar}
    for side, matrix in made.items():
        state[side] = {"whole": matrix.to(gradient_MN.dtype)} if projecting.quantized is None else pack(matrix, projecting.quantized)  # fmt: skip
    state |= {"gap": gap, "age": 0}


def _agreed(matrix: Tensor) -> Tensor:
    """The matrix of the first process, on all of them: their weights would part if they projected differently."""
    whole = matrix.contiguous()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(whole, 0)
    return whole


def pack(values: Tensor, quantized: Quantized) -> dict[str, Any]:
    """The values in few bits: `code = round((value - least) / step)` of each group, several codes in a byte."""
    levels, each = 2**quantized.bits - 1, 8 // quantized.bits
    flat = values.float().flatten()
    groups = torch.cat([flat, flat[-1:].expand(-len(flat) % quantized.group)]).view(-1, quantized.group)
    least = groups.amin(1, keepdim=True)
    step = ((groups.amax(1, keepdim=True) - least) / levels).clamp(min=torch.finfo(torch.float32).tiny)
    codes = ((groups - least) / step).round().to(torch.uint8).flatten()[: len(flat)]
    codes = torch.cat([codes, codes.new_zeros(-len(codes) % each)]).view(-1, each)
    return {
        "codes": (codes << _shifts(quantized.bits, codes)).sum(1, dtype=torch.uint8), "bits": quantized.bits,
        "least": least.squeeze(1), "step": step.squeeze(1), "group": quantized.group, "shape": list(values.shape),
    }  # fmt: skip


def read(stored: dict[str, Any], like: Tensor) -> Tensor:
    """A stored matrix as numbers, of the type and on the device of `like`."""
    if "whole" in stored:
        return stored["whole"].to(like)
    bits, shape, count = stored["bits"], stored["shape"], math.prod(stored["shape"])
    codes = (stored["codes"][:, None] >> _shifts(bits, stored["codes"])) & (2**bits - 1)
    step, least = (stored[name].repeat_interleave(stored["group"])[:count] for name in ("step", "least"))
    return (codes.flatten()[:count] * step + least).view(shape).to(like)


def _shifts(bits: int, codes: Tensor) -> Tensor:
    """Where each code of a byte begins."""
    return torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)
