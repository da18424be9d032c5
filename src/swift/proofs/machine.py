"""This file knows what a run needs of the machine it will run on: disk, write rights, GPUs, a port."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from swift.core import environment
from swift.core.ports import is_free_port
from swift.proofs.report import Fact, Proof, counted
from swift.proofs.size import shown_bytes

SPARE = 1.1
"""Free space wanted, as a multiple of what the checkpoints are estimated to take."""


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder."""
    return shutil.disk_usage(folder).free


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_gpus() -> int:
    """The GPUs this process sees."""
    return torch.cuda.device_count()


@dataclass(frozen=True)
class Machine:
    """How the machine is asked."""

    free: Callable[[Path], int] = free_bytes
    is_free_port: Callable[[int], bool] = is_free_port
    gpus: Callable[[], int] = count_gpus


def nearest_folder(folder: Path) -> Path:
    """The folder itself or the nearest above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def prove_writable(folder: Path) -> Proof:
    """That a run can make its folder and write there. Nothing is left behind."""
    there = nearest_folder(folder)
    trouble = ""
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        trouble = os.strerror(error.errno or 0)
    return Proof(
        claim="the output folder can be written",
        holds=not trouble,
        found=f"{folder}" + (f": {trouble} ({there})" if trouble else ""),
        advice="Choose another --output_dir, or make this one writable.",
    )


def prove_disk(folder: Path, one: int, kept: int, machine: Machine) -> Proof:
    """That the checkpoints that lie on disk at a time fit there. `one` is the size of one of them, in bytes."""
    there = nearest_folder(folder)
    free, needed = machine.free(there if there.is_dir() else there.parent), int(one * kept * SPARE)
    return Proof(
        claim="the checkpoints fit on the disk",
        holds=free >= needed,
        found=f"{counted(kept, 'checkpoint')} of about {shown_bytes(one)} at a time, {shown_bytes(free)} free",
        advice="Free some space, choose another --output_dir, keep fewer with --save_total_limit, or leave the state "
        "of the optimizer out with --save_only_model true.",
    )


def prove_processes(machine: Machine) -> list[Proof]:
    """That the processes asked for have a GPU each, and a port to meet at."""
    local = environment.NPROC_PER_NODE.integer() or 1
    gpus, proofs = machine.gpus(), []
    if gpus and local > 1:
        proofs.append(
            Proof(
                claim="every process has a GPU",
                holds=local <= gpus,
                found=f"NPROC_PER_NODE is {local}, {counted(gpus, 'GPU')} here",
                advice="Set NPROC_PER_NODE to the number of GPUs.",
            )
        )
    port = environment.MASTER_PORT.integer() or 0
    is_first = (environment.NODE_RANK.integer() or 0) == 0
    # An unset port is replaced by a free one at the start of a run on one node.
    if environment.MASTER_PORT.is_set() and is_first and (local > 1 or environment.NNODES.is_set()):
        proofs.append(
            Proof(
                claim="the processes can meet",
                holds=machine.is_free_port(port),
                found=f"MASTER_PORT is {port}",
                advice="Somebody listens there: set MASTER_PORT to another port.",
            )
        )
    return proofs


def devices(machine: Machine, processes: int) -> Fact:
    """Where the run would compute."""
    gpus = machine.gpus()
    if not gpus:
        return Fact("devices", "the CPU", f"{counted(processes, 'process')}; no GPU is seen")
    names = {torch.cuda.get_device_name(i) for i in range(gpus)}
    return Fact("devices", f"{counted(gpus, 'GPU')}", ", ".join(sorted(names)))
