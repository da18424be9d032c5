"""This file knows how the optimizer that DeepSpeed has divided among some processes is taken up by others.

Every process has written its part: for each group of parameters a flat vector of float32 values, and vectors of as many
moments beside it. Where which parameter lies in them is written too, by name. So the parts of this run are cut from those
of the other one, and handed to DeepSpeed in the form of its own files. Files are mapped into memory and not read, so a
process holds no more than its own part.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from swift.core.errors import RunError
from swift.core.logs import get_logger
from swift.trainers.optimizer_state import MADE_BY

PART = re.compile(r".*zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt")
VALUES = "float32"
"""What the values of the parameters are called beside the moments."""
COUNTERS = ("global_steps", "global_samples", "skipped_steps")
SCALING = ("loss_scaler", "dynamic_loss_scale", "overflow")


@dataclass(frozen=True)
class Piece:
    """Where `count` numbers of a parameter lie in the vectors of one process: from `start` on, in each of them."""

    vectors: Mapping[str, Tensor]
    start: int
    count: int


@dataclass
class Saved:
    """The optimizer in a checkpoint.

    pieces: of each parameter, in their order. scalars: what the optimizer keeps of it that is no vector, as its step.
    settings: of each group of parameters, without the parameters.
    """

    settings: list[dict[str, Any]]
    made_by: str | None
    scaling: dict[str, Any]
    counters: dict[str, Any]
    schedule: dict[str, Any] | None
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    scalars: dict[str, dict[str, Any]] = field(default_factory=dict)

    def moments(self, name: str) -> list[str]:
        """What the optimizer keeps of each number of a parameter."""
        return [kind for kind in self.pieces[name][0].vectors if kind != VALUES]

    def cut(self, name: str, kind: str, start: int, count: int) -> Tensor:
        """`count` numbers of a parameter from `start` on, laid out flat; zeros behind its end."""
        cut = torch.zeros(count, dtype=self.pieces[name][0].vectors[kind].dtype)
        first = 0
        for piece in self.pieces[name]:
            here, end = max(first, start), min(first + piece.count, start + count)
            if here < end:
                offset = piece.start + here - first
                cut[here - start : end - start] = piece.vectors[kind][offset : offset + end - here]
            first += piece.count
        return cut


@dataclass(frozen=True)
class Share:
    """The numbers of a parameter that this process is to hold: `count` from `start` on, at `place` of its vectors."""

    name: str
    start: int
    count: int
    place: int


def take_up(engine: Any, checkpoint: Path) -> None:
    """Let the optimizer of DeepSpeed's engine go on from a checkpoint of any number of processes, and any stage from 1.

    Trained weights are those of the checkpoint afterwards. All processes call this.

    Raises RunError when the checkpoint is of another optimizer, or has other parameters.
    """
    optimizer, saved = engine.optimizer, read_parts(checkpoint)
    third = engine.zero_optimization_partition_weights()
    state = optimizer.state_dict()
    held_under, values_under = _KEYS[third]
    found = state[held_under]
    _require_same(saved, found, set(engine.param_names.values()), checkpoint)
    vectors = optimizer.fp32_partitioned_groups_flat if third else optimizer.single_partition_of_fp32_groups
    shares = _shares_of_weights(engine) if third else _shares_of_optimizer(engine, state)
    held = [Vector(saved, each, len(vector)) for each, vector in zip(shares, vectors, strict=True)]
    state |= saved.scaling
    state[values_under] = [each.filled(VALUES) for each in held]
    state[held_under] = {
        **found,
        "state": {number: each.state() for number, each in enumerate(held)},
        "param_groups": [
            {**settings, "params": group["params"]}
            for settings, group in zip(saved.settings, found["param_groups"], strict=True)
        ],
    }  # fmt: skip
    listed: list[Any] = [None] * dist.get_world_size(optimizer.dp_process_group)
    own = dist.get_rank(optimizer.dp_process_group)
    listed[own] = state  # no process looks at the state of another one
    optimizer.load_state_dict(listed)
    if not third:
        optimizer.update_lp_params()
    engine.global_steps, engine.global_samples, engine.skipped_steps = (saved.counters[name] for name in COUNTERS)
    if engine.lr_scheduler is not None and saved.schedule is not None:
        engine.lr_scheduler.load_state_dict(saved.schedule)
    get_logger().info("the optimizer of %s is divided anew, among %d processes", checkpoint, len(listed))


@dataclass(frozen=True)
class Vector:
    """What this process holds of a group of parameters: `length` numbers of each kind, filled with its shares."""

    saved: Saved
    shares: Sequence[Share]
    length: int

    def filled(self, kind: str) -> Tensor:
        """The values, or the moments of one kind."""
        vector = torch.zeros(self.length)
        for share in self.shares:
            vector[share.place : share.place + share.count] = self.saved.cut(share.name, kind, share.start, share.count)
        return vector

    def state(self) -> dict[str, Any]:
        """What the optimizer keeps of these parameters."""
        first = next((share.name for share in self.shares), next(iter(self.saved.pieces)))
        return {**self.saved.scalars[first], **{kind: self.filled(kind) for kind in self.saved.moments(first)}}


def _require_same(saved: Saved, found: Mapping[str, Any], names: set[str], checkpoint: Path) -> None:
    made_by = found.get(MADE_BY)
    if None not in (saved.made_by, made_by) and saved.made_by != made_by:
        raise RunError(
            f"{checkpoint} was saved by another optimizer, {saved.made_by}, and this run has {made_by}. Use the --optim and "
            "--optimizer of the checkpoint, which its args.json names."
        )
    unknown = sorted(saved.pieces.keys() - names)
    if unknown or len(saved.settings) != len(found["param_groups"]):
        raise RunError(
            f"{checkpoint} was saved with other groups of parameters than this run trains"
            + (f", among them {unknown[0]}" if unknown else "")
            + ". Train the same parameters by the same --optimizer."
        )


# ------------------------------------------------------------------------------------------------ what is held here


def _shares_of_optimizer(engine: Any, state: Mapping[str, Any]) -> Iterator[list[Share]]:
    """Of stages 1 and 2, where a process has a stretch of all parameters of a group, laid one behind another."""
    for parameters, places in zip(engine.optimizer.bit16_groups, state["param_slice_mappings"], strict=True):
        shares: list[Share] = []
        for parameter in parameters:
            name = engine.param_names[parameter]
            if name in places:
                start = parameter._hp_mapping.lp_fragment_address.start
                shares.append(Share(name, start, places[name].numel, places[name].start))
        yield shares


def _shares_of_weights(engine: Any) -> Iterator[list[Share]]:
    """Of stage 3, where a process has an equal part of each parameter; the last one may be filled up with zeros."""
    group = engine.optimizer.dp_process_group
    rank, processes = dist.get_rank(group), dist.get_world_size(group)
    for parameters in engine.optimizer.fp16_groups:
        counts = [math.ceil(parameter.ds_numel / processes) for parameter in parameters]
        places = itertools.accumulate(counts, initial=0)
        yield [
            Share(engine.param_names[parameter], rank * count, count, place)
            for parameter, count, place in zip(parameters, counts, places, strict=False)
        ]


# ---------------------------------------------------------------------------------------------------------- reading


def read_parts(checkpoint: Path) -> Saved:
    """The optimizer that DeepSpeed has written into a checkpoint, in parts."""
    folder = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
    parts = {int(match[1]): file for file in folder.iterdir() if (match := PART.fullmatch(file.name))}
    states = [_load(parts[rank])["optimizer_state_dict"] for rank in sorted(parts)]
    model = _load(min(folder.glob("*_model_states.pt")))
    third = "fp32_flat_groups" in states[0]
    held_under, values_under = _KEYS[third]
    first = states[0][held_under]
    saved = Saved(
        settings=[
            {name: value for name, value in group.items() if name != "params"} for group in first["param_groups"]
        ],
        made_by=first.get(MADE_BY),
        scaling={name: states[0][name] for name in SCALING},
        counters={name: model[name] for name in COUNTERS},
        schedule=model["lr_scheduler"],
    )
    for state in states:
        held, values = state[held_under]["state"], state[values_under]
        for number, vector in enumerate(values):
            kept = held.get(number, {})
            vectors = {VALUES: vector, **{kind: value for kind, value in kept.items() if _is_vector(value)}}
            places = (
                _places_in_stage_3(model["param_shapes"][number], len(states))
                if third
                else [(name, place.start, place.numel) for name, place in state["param_slice_mappings"][number].items()]
            )
            for name, start, count in places:
                saved.pieces.setdefault(name, []).append(Piece(vectors, start, count))
                saved.scalars[name] = {kind: value for kind, value in kept.items() if not _is_vector(value)}
    return saved


def _places_in_stage_3(shapes: Mapping[str, Sequence[int]], processes: int) -> list[tuple[str, int, int]]:
    """Name, start and count of the parameters in a vector of one of the processes."""
    counts = [math.ceil(math.prod(shape) / processes) for shape in shapes.values()]
    return list(zip(shapes, itertools.accumulate(counts, initial=0), counts, strict=False))


def _is_vector(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1


def _load(file: Path) -> dict[str, Any]:
    """A file of DeepSpeed, which holds objects of its own; the manifest has proved that it is as it was written."""
    return torch.load(file, map_location="cpu", weights_only=False, mmap=True)


_KEYS = {False: ("base_optimizer_state", "single_partition_of_fp32_groups"),
         True: ("optimizer_state_dict", "fp32_flat_groups")}  # fmt: skip
"""Whether weights are divided too (stage 3) -> the names under which DeepSpeed keeps the optimizer, and the values."""
