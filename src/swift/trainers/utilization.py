"""This file knows how much of what a device can compute a training makes use of (model FLOPs utilization)."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from swift.core import environment
from swift.core.errors import UsageError
from swift.core.logs import get_logger

TERA = 1e12


class PerfLog(TrainerCallback):
    """`--callbacks perf_log`: `MFU` in every log, the operations per second since the last one over what the devices can do.

    6 operations per parameter and token, embeddings not counted (Chowdhery et al. 2022, arXiv 2204.02311, appendix B),
    as if all parameters were trained. The time of evaluations and checkpoints in between counts.
    """

    def __init__(self, args: TrainingArguments, _trainer: Any) -> None:
        self.peak = _said() or measured(args.device, torch.bfloat16 if args.bf16 else torch.float32)
        self._since, self._done = 0.0, 0.0
        get_logger().info("--callbacks perf_log: a device computes %.3g TFLOPS", self.peak)

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """From here on operations are counted."""
        self._since, self._done = time.monotonic(), state.total_flos

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               *, logs: dict[str, float], **_: Any) -> None:  # fmt: skip
        """Add the share since the last log of training."""
        if "loss" not in logs:
            return
        now = time.monotonic()
        per_second = (state.total_flos - self._done) / (now - self._since)
        logs["MFU"] = per_second / (self.peak * TERA * args.world_size)
        self._since, self._done = now, state.total_flos


def measured(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOPS of the fastest of five products of square matrices."""
    size = 4096 if device.type != "cpu" else 512
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    fastest = min(_seconds(matrix) for _ in range(5))
    return 2 * size**3 / fastest / TERA


def _seconds(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # which waits for the device
    return time.perf_counter() - began


def _said() -> float | None:
    text = environment.DEVICE_TFLOPS.get()
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise UsageError(f"DEVICE_TFLOPS={text}: must be a number greater than 0, such as 989 for bfloat16 on an H100.")
    return value
