"""This file knows the folder of a run: its version, its checkpoints, and which of them can be continued."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from swift.core.errors import RunError
from swift.core.logs import get_logger
from swift.trainers.checkpoints import MANIFEST, damage, tidy
from swift.trainers.claims import is_held

VERSION = re.compile(r"v(\d+)-")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
WEIGHTS = (
    "adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
PROGRESS = ("optimizer.pt", "scheduler.pt")
"""What a checkpoint needs beside weights and state to be continued: absent with `--save_only_model`."""
SHARDED_PROGRESS = ("latest", "optimizer_0", "optimizer.bin")
"""What stands in place of optimizer.pt where the state is sharded: of DeepSpeed, and of FSDP in two forms."""


@dataclass(frozen=True)
class Continuation:
    """What a training goes on from.

    weights_only: the optimizer and the random numbers begin afresh (`--resume_only_model`).
    anew: so do steps and rows (`--ignore_data_skip`).
    is_loaded: the model was made with the weights of the checkpoint.
    divides_anew: the optimizer was divided by DeepSpeed among other processes, or in another way.
    """

    checkpoint: Path
    weights_only: bool = False
    anew: bool = False
    is_loaded: bool = False
    divides_anew: bool = False

    def what(self) -> str:
        """What is taken from the checkpoint, in words."""
        if self.anew:
            return "its weights alone; steps and rows begin anew"
        if self.weights_only:
            return "weights, schedule, step and place in the data; optimizer and random numbers begin anew"
        return "weights, optimizer, schedule, random state and place in the data"


def next_version(folder: Path, now: datetime) -> Path:
    """`<folder>/v{N}-{YYYYmmdd-HHMMSS}`, N one more than the highest there, from 0."""
    taken = [int(found[1]) for child in folder.glob("v*-*") if (found := VERSION.match(child.name))]
    return folder / f"v{max(taken, default=-1) + 1}-{now:%Y%m%d-%H%M%S}"


def new_folder(base: Path, now: datetime) -> Path:
    """Create the folder of the next version; of two runs that begin in the same second each gets its own."""
    make_folder(base)
    while True:
        folder = next_version(base, now)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


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


def missing_from(checkpoint: Path, weights_only: bool = False) -> list[str]:
    """What a folder lacks to be a checkpoint that training can be continued from; [] when it is one."""
    lacking = (
        [] if any((checkpoint / name).is_file() for name in WEIGHTS) else [f"weights ({WEIGHTS[0]}, {WEIGHTS[2]})"]
    )
    sharded = any((checkpoint / name).exists() for name in SHARDED_PROGRESS)
    if sharded and not weights_only:
        lacking = []
    needed = (STATE,) if weights_only or sharded else (*PROGRESS, STATE)
    return lacking + [name for name in needed if not (checkpoint / name).is_file()]


def resumable(name: str, weights_only: bool = False) -> Path:
    """The checkpoint that `--resume_from_checkpoint` names.

    That is a checkpoint itself, or the newest good one in the folder of a run, or in the newest run of a folder of
    runs. Every byte is compared with what was written. Those that are passed over are told, with the reason.
    Raises RunError saying what is missing or damaged.
    """
    folder = Path(name).expanduser().absolute()
    if not folder.is_dir():
        raise RunError(f"--resume_from_checkpoint {name} is no folder. Pass a checkpoint-<step> folder of a run.")
    runs = [folder] if _candidates(folder) else versions(folder)[::-1]
    if not any(_candidates(run) for run in runs):
        _require_good(folder, weights_only)
        return folder
    faults: list[str] = []
    for run in runs:
        good = newest_good(run, weights_only, faults)
        if good is not None:
            return good
    raise RunError(f"--resume_from_checkpoint {name}: no checkpoint there can be continued:\n  " + "\n  ".join(faults))


def newest_good(run: Path, weights_only: bool, faults: list[str]) -> Path | None:
    """The newest checkpoint in the folder of a run that can be continued; None when there is none.

    Why others were passed over is logged, and added to `faults`.
    """
    if not is_held(run):
        tidy(run)
    found = checkpoints(run)
    proved = any((checkpoint / MANIFEST).is_file() for checkpoint in found)
    for checkpoint in found[::-1]:
        wrong = faults_of(checkpoint, weights_only, proved)
        if not wrong:
            return checkpoint
        faults.append(f"{checkpoint}: {'; '.join(wrong)}")
        get_logger().warning("passing over %s: %s", checkpoint, "; ".join(wrong))
    return None


def faults_of(checkpoint: Path, weights_only: bool, proved: bool) -> list[str]:
    """Why training cannot go on from a checkpoint; [] when it can.

    proved: a checkpoint without a manifest is not trusted. Those of other programs have none.
    """
    lacking = missing_from(checkpoint, weights_only)
    if (checkpoint / MANIFEST).is_file():
        wrong = damage(checkpoint)
        return wrong or ([_lack(lacking)] if lacking else [])
    if proved:
        return [f"{MANIFEST} is missing, which every checkpoint of this run had"]
    if lacking:
        return [_lack(lacking)]
    get_logger().warning("%s has no %s, so nobody can tell whether its files are whole", checkpoint, MANIFEST)
    return []


def versions(base: Path) -> list[Path]:
    """The folders of runs in a folder, by version, oldest first."""
    found = [(int(match[1]), child) for child in base.glob("v*-*") if (match := VERSION.match(child.name))]
    return [child for _, child in sorted(found) if child.is_dir()]


def _candidates(folder: Path) -> list[Path]:
    """The checkpoints of a run, or what it has moved away for one."""
    return checkpoints(folder) or list(folder.glob(".checkpoint-*"))


def _require_good(checkpoint: Path, weights_only: bool) -> None:
    siblings = checkpoints(checkpoint.parent)
    wrong = faults_of(checkpoint, weights_only, any((each / MANIFEST).is_file() for each in siblings))
    if not wrong:
        return
    reason = f"--resume_from_checkpoint {checkpoint} cannot be continued: {'; '.join(wrong)}."
    if wrong == [_lack([*PROGRESS])]:
        raise RunError(
            f"{reason} It was saved with --save_only_model, without the state of the optimizer. To go on with its weights "
            "and a new optimizer add --resume_only_model true; to start a new run from them pass it with --adapters (an "
            "adapter) or --model (a whole model)."
        )
    others = [each for each in siblings if each != checkpoint and not faults_of(each, weights_only, proved=False)]
    advice = f"The newest good checkpoint beside it is {others[-1]}." if others else (
        "Pass a checkpoint-<step> folder of a run, or the folder that holds several of them."
    )  # fmt: skip
    raise RunError(f"{reason} {advice}")


def _lack(names: list[str]) -> str:
    return f"it lacks {', '.join(names)}"


def _checkpoint(child: Path) -> re.Match[str] | None:
    return CHECKPOINT.fullmatch(child.name) if child.is_dir() else None
