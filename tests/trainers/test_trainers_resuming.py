"""A resumed run is the uninterrupted one to the last bit: every way of reading, every moment of stopping; also killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
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
from swift.data.packing import pack_samples
from swift.trainers.outputs import Continuation

WORKER = Path(__file__).with_name("killing.py")
STREAMS = ("streaming", "interleaved", "streamed packs")
READING = ("map", "grouped", "packed", *STREAMS)
STOPS = {"first epoch": 2, "later epoch": 5, "end of an epoch": 3, "mid-accumulation": 4}
"""Where a run is stopped -> the step that is made last. An epoch has nine batches: two steps of four, and one of one."""
MOMENTS = [(how, stop) for how in READING for stop in STOPS if how not in STREAMS or stop != "end of an epoch"]
"""How a run reads, and where it is stopped; a stream has no epochs of batches."""
TASK_MOMENTS = [
    *((task, *moment) for task in ("seq_cls", "embedding") for moment in MOMENTS if moment[0] != "grouped"),
    *(("reranker", *moment) for moment in MOMENTS if moment[0] in ("map", "streamed packs")),
]
"""The same for other tasks, whose groups of like length are drawn as those of all."""
TASK_ROWS = 18
TASK_CAPACITY = {"seq_cls": 25, "embedding": 90}
"""So many rows are nine packs of at most so many tokens."""
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


def task_feed(task: str, reading: str, folder: Path) -> dict[str, Any]:
    """What a run of another task reads, in one of the ways."""
    if reading == "map":
        return {"train": task_runs.stored(task, task_runs.rows(task, 18))}
    if reading == "packed":
        packs = pack_samples(task_runs.stored(task, task_runs.rows(task, TASK_ROWS)), TASK_CAPACITY[task])
        assert len(packs) == 9
        return {"train": packs, "flat": True, "per_device_train_batch_size": 1}
    files = task_runs.written(task, folder / "a.jsonl", 22), task_runs.written(task, folder / "b.jsonl", 13, 5)
    if reading == "streaming":
        return {"train": task_runs.streamed(task, *files, shuffle_buffer_size=8)}
    if reading == "streamed packs":
        return {"train": task_runs.streamed(task, *files, packing_length=256), "flat": True}
    mixed = {"interleave_prob": [0.6, 0.4], "stopping_strategy": "all_exhausted"}
    return {"train": task_runs.streamed(task, *files, **mixed)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Uninterrupted:
    return Uninterrupted(tmp_path_factory.mktemp("uninterrupted"))


@dataclass
class Uninterrupted:
    """The runs that were not stopped, each with a checkpoint after every step: one for all moments of stopping."""

    folder: Path
    runs: dict[str, runs.Run] = field(default_factory=dict)

    def run(self, name: str, prepared: Callable[..., runs.Run]) -> runs.Run:
        if name not in self.runs:
            self.runs[name] = prepared(self.place(name) / "whole", save_steps=1)
            self.runs[name].session.run(self.runs[name].trainer, None, {})
        return self.runs[name]

    def place(self, name: str) -> Path:
        """Where a run and its rows are."""
        place = self.folder / name.replace(" ", "-")
        place.mkdir(exist_ok=True)
        return place


@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize(("reading", "stop"), MOMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(tmp_path, uninterrupted, kind, reading, stop):
    name = f"{kind} {reading}"

    def prepared(folder: Path, **settings: Any) -> runs.Run:
        read = feed(reading, uninterrupted.place(name))
        return runs.prepare(folder, model=KINDS[kind](), **{**SHAPE, **read, **settings})

    compare(prepared, tmp_path, stop, uninterrupted, name)


@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize(("task", "reading", "stop"), TASK_MOMENTS)
def test_a_resumed_run_of_another_task_is_the_uninterrupted_one_to_the_last_bit(
    tmp_path, uninterrupted, task, reading, stop
):
    name = f"{task} {reading}"

    def prepared(folder: Path, **settings: Any) -> runs.Run:
        read = task_feed(task, reading, uninterrupted.place(name))
        base = uninterrupted.folder / "model"
        return task_runs.prepare(folder, base, task, lora=0.2, **{**SHAPE, **read, **settings})

    compare(prepared, tmp_path, stop, uninterrupted, name)


def compare(
    prepared: Callable[..., runs.Run], folder: Path, stop: str, uninterrupted: Uninterrupted, name: str
) -> None:
    """Go on from a checkpoint of the run that was not stopped, or from where one was told to stop, and compare."""
    whole, step = uninterrupted.run(name, prepared), STOPS[stop]
    checkpoint = uninterrupted.place(name) / "whole" / f"checkpoint-{step}"
    if stop == "mid-accumulation":
        cut = prepared(folder / "cut")
        cut.trainer.add_callback(StopsWithin(step))
        cut.session.run(cut.trainer, None, {})
        checkpoint = folder / "cut" / checkpoint.name
    resumed = prepared(folder / "resumed")
    resumed.session.run(resumed.trainer, Continuation(checkpoint), {})
    assert resumed.trainer.state.global_step == 7
    assert runs.equal(resumed.weights(), whole.weights())
    for logged in ("loss", "grad_norm", "learning_rate", "epoch"):
        assert resumed.logged(logged) == whole.logged(logged), logged


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_runs_that_are_killed_at_any_moment_go_on_by_themselves_and_end_with_the_same_weights(tmp_path, request):
    """SWIFT_KILLS says how often, and SWIFT_KILLS_SEED when; killing.py says how."""
    memory = Path("/dev/shm")  # not the disk: what is tested is the order of writing, and a disk only slows it down
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else tmp_path))
    request.addfinalizer(lambda: shutil.rmtree(folder))
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
