"""A resumed run is the uninterrupted one to the last bit: every way of reading, every moment of stopping; also killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
import task_runs
import test_trainers_packing as packing
import test_trainers_streaming as streams
from transformers import TrainerCallback

import tiny
from swift.data.collate import Flattened
from swift.trainers.outputs import Continuation

WORKER = Path(__file__).with_name("killing.py")
READING = ("map", "grouped", "packed", "streaming", "interleaved", "streamed packs")
STOPS = {"first epoch": 2, "later epoch": 5, "end of an epoch": 3, "mid-accumulation": 4}
"""Where a run is stopped -> the step that is made last. An epoch has nine batches: two steps of four, and one of one."""
SHAPE: dict[str, Any] = {
    "gradient_accumulation_steps": 4, "max_steps": 7, "save_strategy": "steps", "save_steps": 100,
    "lr_scheduler_type": "cosine",
}  # fmt: skip
KINDS = {"sft": lambda: runs.lora(0.2), "pt": tiny.model}
"""What is trained. `pt` learns all parameters of a whole model, `sft` an adapter with dropout."""


def feed(reading: str, folder: Path) -> dict[str, Any]:
    """What a run reads, in one of the ways."""
    files = streams.rows(folder / "a.jsonl", 22), streams.rows(folder / "b.jsonl", 13, 5)
    if reading == "map":
        return {"train": runs.samples(18)}
    if reading == "grouped":
        return {"train": packing.stored(18), "group_by_length": True}
    if reading == "packed":
        return {"train": packing.packs(40, 40), "collate": Flattened(), "per_device_train_batch_size": 1}
    if reading == "streaming":
        return {"train": streams.stream(*files, shuffle_buffer_size=8)}
    if reading == "streamed packs":
        return {"train": streams.stream(*files, packing_length=128), "collate": Flattened()}
    return {"train": streams.stream(*files, interleave_prob=[0.6, 0.4], stopping_strategy="all_exhausted")}


class StopsWithin(TrainerCallback):
    """Sends SIGTERM between two batches of the step after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_substep_end(self, _, state, *__, **___):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("reading", READING)
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(tmp_path, kind, reading, stop):
    def prepared(name: str, **settings: Any) -> runs.Run:
        return runs.prepare(tmp_path / name, model=KINDS[kind](), **{**SHAPE, **feed(reading, tmp_path), **settings})

    compare(prepared, tmp_path, stop)


@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("task", ["seq_cls", "embedding", "reranker"])
def test_a_resumed_run_of_another_task_is_the_uninterrupted_one_to_the_last_bit(tmp_path, task, stop):
    def prepared(name: str, **settings: Any) -> runs.Run:
        train = task_runs.stored(task, task_runs.rows(task, 18))
        return task_runs.prepare(
            tmp_path / name, tmp_path / "model", task, lora=0.2, train=train, **{**SHAPE, **settings}
        )

    compare(prepared, tmp_path, stop)


def compare(prepared: Callable[..., runs.Run], folder: Path, stop: str) -> None:
    """Train to the end, train to a stop, go on from there, and compare."""
    whole = prepared("whole")
    whole.session.run(whole.trainer, None, {})
    step = STOPS[stop]
    within = stop == "mid-accumulation"
    cut = prepared("cut", **({} if within else {"save_steps": step}))
    if within:
        cut.trainer.add_callback(StopsWithin(step))
    cut.session.run(cut.trainer, None, {})
    resumed = prepared("resumed")
    resumed.session.run(resumed.trainer, Continuation(folder / "cut" / f"checkpoint-{step}"), {})
    assert resumed.trainer.state.global_step == 7
    assert runs.equal(resumed.weights(), whole.weights())
    for name in ("loss", "grad_norm", "learning_rate", "epoch"):
        assert resumed.logged(name) == whole.logged(name), name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_runs_that_are_killed_at_any_moment_go_on_by_themselves_and_end_with_the_same_weights(tmp_path):
    """SWIFT_KILLS says how often, and SWIFT_KILLS_SEED when; killing.py says how."""
    memory = Path("/dev/shm")  # not the disk: what is tested is the order of writing, and a disk only slows it down
    folder = memory / tmp_path.parent.name / tmp_path.name if memory.is_dir() else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    count, seed = os.environ.get("SWIFT_KILLS", "12"), os.environ.get("SWIFT_KILLS_SEED", "1")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{WORKER.parents[1]}:{WORKER.parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    line = [sys.executable, str(WORKER), str(folder), count, seed]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    print(result)
    assert result["killed"] >= int(count)
    assert result["equal"] > 0
