"""This file knows how the checkpoints of a run get to a hub while it goes on (`--push_to_hub`)."""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from swift.core.errors import RunError
from swift.core.logs import get_logger
from swift.hub.pushing import Target, push, snapshot


class Pushes(TrainerCallback):
    """Pushes each checkpoint, a commit each, beside the training: `main` of the repository is the last one.

    While one is on its way, the next ones wait, and of those that wait only the newest is pushed. A push that fails is
    a warning, because the next checkpoint may get through; of the last one it is an error (`finish`).
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.folder = folder
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._coming: list[int] = []
        self._running: Future[None] | None = None
        self._waiting: tuple[Path, int] | None = None
        self._failed: RunError | None = None

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the checkpoint as it is now, and send it as soon as the way is free."""
        if not state.is_world_process_zero:
            return
        self._coming.append(state.global_step)
        self._go_on()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Send what waits."""
        self._go_on()

    def finish(self, last: Path | None) -> None:
        """Wait until the last checkpoint is there. Raises RunError with the command for later when it is not."""
        self._go_on()
        while self._running is not None or self._waiting is not None:
            if self._running is not None:
                self._running.exception()
            self._go_on()
        self._worker.shutdown()
        if self._failed is not None:
            by_hand = (
                ""
                if last is None
                else f" {last} is complete on this machine. Push it with:  {self.target.by_hand(last)}"
            )
            raise RunError(f"{self._failed}{by_hand}")

    def _take(self) -> None:
        """Take the checkpoints that are there by now: with `--use_flash_ckpt` they come after they were announced."""
        for step in [step for step in self._coming if (self.folder / f"checkpoint-{step}").is_dir()]:
            self._coming.remove(step)
            copy = self.folder / f".push-{step}"
            shutil.rmtree(copy, ignore_errors=True)
            snapshot(self.folder / f"checkpoint-{step}", copy)
            if self._waiting is not None:
                shutil.rmtree(self._waiting[0])
            self._waiting = copy, step

    def _go_on(self) -> None:
        self._take()
        if self._running is not None:
            if not self._running.done():
                return
            self._running = None
        if self._waiting is not None:
            self._running = self._worker.submit(self._push, *self._waiting)
            self._waiting = None

    def _push(self, copy: Path, step: int) -> None:
        try:
            push(self.target, copy, f"step {step}")
            self._failed = None
        except RunError as error:
            self._failed = error
            get_logger().warning("checkpoint-%d was not pushed, and the training goes on: %s", step, error)
        finally:
            shutil.rmtree(copy, ignore_errors=True)
