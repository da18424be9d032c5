"""This file knows the folder of a run: its version, its checkpoints, and which of them can be continued."""

from __future__ import annotations

import os
import re
import tempfile
from datetime import datetime
from pathlib import Path

from swift.core.errors import RunError
from swift.core.logs import get_logger

VERSION = re.compile(r"v(\d+)-")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
WEIGHTS = (
    "adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
PROGRESS = ("optimizer.pt", "scheduler.pt")
"""What a checkpoint needs beside weights and state to be continued: absent with `--save_only_model`."""


def next_version(folder: Path, now: datetime) -> Path:
    """`<folder>/v{N}-{YYYYmmdd-HHMMSS}`, N one more than the highest there, from 0."""
    taken = [int(found[1]) for child in folder.glob("v*-*") if (found := VERSION.match(child.name))]
    return folder / f"v{max(taken, default=-1) + 1}-{now:%Y%m%d-%H%M%S}"


def make_folder(folder: Path) -> Path:
    """Create the folder of a run and try to write there. Raises RunError naming it when that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(
            f"--output_dir {folder} cannot be written to: {os.strerror(error.errno or 0)}. Choose another folder, or "
            f"make this one writable."
        ) from error
    return folder


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest step first, whole or not."""
    found = [(int(match[1]), child) for child in folder.glob("checkpoint-*") if (match := _checkpoint(child))]
    return [child for _, child in sorted(found)]


def missing_from(checkpoint: Path) -> list[str]:
    """What a folder lacks to be a checkpoint that training can be continued from; [] when it is one."""
    lacking = (
        [] if any((checkpoint / name).is_file() for name in WEIGHTS) else [f"weights ({WEIGHTS[0]}, {WEIGHTS[2]})"]
    )
    return lacking + [name for name in (*PROGRESS, STATE) if not (checkpoint / name).is_file()]


def resumable(name: str) -> Path:
    """The checkpoint that `--resume_from_checkpoint` names: a checkpoint, or the newest whole one in a run's folder.

    Raises RunError saying what is missing.
    """
    folder = Path(name).expanduser().absolute()
    if not folder.is_dir():
        raise RunError(f"--resume_from_checkpoint {name} is no folder. Pass a checkpoint-<step> folder of a run.")
    inside = checkpoints(folder)
    if not inside:
        _require_whole(folder)
        return folder
    whole = [checkpoint for checkpoint in inside if not missing_from(checkpoint)]
    if not whole:
        _require_whole(inside[-1])
    for checkpoint in inside[inside.index(whole[-1]) + 1 :]:
        lacking = ", ".join(missing_from(checkpoint))
        get_logger().warning("%s is not whole (it lacks %s); going on from %s", checkpoint, lacking, whole[-1].name)
    return whole[-1]


def _require_whole(checkpoint: Path) -> None:
    lacking = missing_from(checkpoint)
    if not lacking:
        return
    reason = f"--resume_from_checkpoint {checkpoint} cannot be continued: it lacks {', '.join(lacking)}."
    if lacking == [*PROGRESS]:
        reason += (
            " It was saved with --save_only_model, without the state of the optimizer. To start a new run from its "
            "weights, pass it with --adapters (an adapter) or --model (a whole model)."
        )
    else:
        reason += " Pass a checkpoint-<step> folder of a run, or the folder that holds several of them."
    raise RunError(reason)


def _checkpoint(child: Path) -> re.Match[str] | None:
    return CHECKPOINT.fullmatch(child.name) if child.is_dir() else None
