"""This file knows what a run writes down of itself while it runs: logging.jsonl, and events for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from swift.trainers.progress import Clock

DIGITS = 8
FILE_NAME = "logging.jsonl"
FINISHED = "finished"
"""In the summary: whether the run came to its end, and was not stopped and did not fail."""
TIMES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "total_flos")
"""Ends of the names of values that say how fast it went, not how well."""


def has_finished(file: Path) -> bool:
    """Whether the run of this journal came to its end; one that was killed has no summary."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    try:
        return bool(lines) and json.loads(lines[-1]).get(FINISHED) is True
    except ValueError:
        return False  # killed in the middle of a line


class Journal(TrainerCallback):
    """logging.jsonl: one object per log, each line complete in the file before training goes on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._clock = Clock(0)

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to reckon the speed, from the step the run goes on from."""
        self._clock = Clock(state.global_step)

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               *, logs: Mapping[str, Any], **_: Any) -> None:  # fmt: skip
        """Write the values, and where the run is."""
        if state.is_world_process_zero:
            self.write({**logs, **self._clock.reading(state)})

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add one line."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(entry), ensure_ascii=False) + "\n")


class TensorBoard(TrainerCallback):
    """Events for TensorBoard: `train/<name>`, `eval/<name>` and `test/<name>` by step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the file of events, and note the arguments."""
        if state.is_world_process_zero:
            self._writer = SummaryWriter(str(self.folder))
            self._writer.add_text("args", args.to_json_string())

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               *, logs: Mapping[str, Any], **_: Any) -> None:  # fmt: skip
        """Write every number under its own curve."""
        if self._writer:
            for name, value in curves_of(logs).items():
                self._writer.add_scalar(name, value, state.global_step)
            self._writer.flush()

    @override
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()
            self._writer = None


def curves_of(logs: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log by curve: `loss` -> `train/loss`, `eval_loss` -> `eval/loss`, `test_gsm8k` -> `test/gsm8k`."""
    numbers = {name: value for name, value in logs.items() if isinstance(value, (int, float)) and name != "step"}
    return {_curve(name): float(value) for name, value in numbers.items()}


def measures_quality(curve: str) -> bool:
    """Whether a curve says something of the model or its training, and not of the machine."""
    return not curve.endswith(TIMES)


def _curve(name: str) -> str:
    for kind in ("eval", "test"):
        if name.startswith(f"{kind}_"):
            return f"{kind}/{name.removeprefix(f'{kind}_')}"
    return f"train/{name.removeprefix('train_') if name.endswith(TIMES) else name}"


def _plain(value: Any) -> Any:
    """The value as strict JSON: floats rounded, and null for what JSON has no number for."""
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
