"""This file knows how far a run is and how fast it goes, and shows it in the terminal."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

GIB = 2**30
SHOWN = ("loss", "eval_loss", "token_acc", "eval_token_acc", "seq_acc", "eval_seq_acc", "eval_rouge-l",
         "eval_bleu-4", "grad_norm", "learning_rate")  # fmt: skip
"""Which values of a log a line in the terminal has, in this order."""


class Clock:
    """When the training began and at which step: what speed and remaining time are reckoned from."""

    def __init__(self, step: int) -> None:
        self.began = time.monotonic()
        self.step = step

    def reading(self, state: TrainerState) -> dict[str, Any]:
        """Where the run is, with the keys of logging.jsonl."""
        elapsed = time.monotonic() - self.began
        steps = state.global_step - self.step
        speed = elapsed / steps if steps else 0.0
        reading: dict[str, Any] = {
            "global_step/max_steps": f"{state.global_step}/{state.max_steps}",
            "percentage": f"{100 * state.global_step / max(state.max_steps, 1):.2f}%",
            "elapsed_time": duration(elapsed),
            "remaining_time": duration(speed * (state.max_steps - state.global_step)),
            "memory(GiB)": round(peak_memory(), 2),
        }
        if steps:
            reading["train_speed(s/it)"] = round(speed, 6)
        return reading


def duration(seconds: float) -> str:
    """`1d 2h 3m 4s`, without the units that are zero in front."""
    left = int(seconds)
    counts = []
    for name, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if left >= size or counts:
            counts.append(f"{left // size}{name}")
        left %= size
    return " ".join([*counts, f"{left}s"])


def peak_memory() -> float:
    """The most memory held so far, in GiB: on the accelerators of this process, or by the process without one."""
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count())) / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


class Display(TrainerCallback):
    """One line that grows in a terminal; a line per log where there is none, or with `--disable_tqdm true`."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._clock = Clock(0)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the bar, where one can be seen."""
        self._clock = Clock(state.global_step)
        if not state.is_world_process_zero or args.disable_tqdm or not self._console.is_terminal:
            return
        columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("first step", total=state.max_steps, completed=state.global_step)
        self._bar.start()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.update(self._task, completed=state.global_step)

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               *, logs: Mapping[str, Any], **_: Any) -> None:  # fmt: skip
        """Show what was measured: training beside the bar, evaluation above it."""
        shown = "  ".join(f"{key} {logs[key]:.4g}" for key in SHOWN if key in logs)
        if not state.is_world_process_zero or not shown:
            return
        reading = self._clock.reading(state)
        pace = f"{reading['train_speed(s/it)']:.3g} s/it  " if "train_speed(s/it)" in reading else ""
        line = f"{shown}  {pace}{reading['remaining_time']} left"
        if self._bar and "loss" in logs:
            self._bar.update(self._task, description=line)
        else:
            self._console.print(f"{reading['global_step/max_steps']}  {line}", soft_wrap=True, highlight=False)

    def close(self) -> None:
        """Take the bar away, whatever ended the training."""
        if self._bar:
            self._bar.stop()
            self._bar = None
