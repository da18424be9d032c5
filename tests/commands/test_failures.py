"""Runs that go wrong as whole command lines: a process that fails, dies or hangs, and what is left of a killed run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from swift.trainers.checkpoints import damage
from swift.trainers.outputs import checkpoints

pytestmark = pytest.mark.slow
QUICK = ["--report_to", "none", "--logging_steps", "1", "--torch_dtype", "float32",
         "--gradient_accumulation_steps", "1", "--per_device_train_batch_size", "2", "--max_steps", "100000"]  # fmt: skip

PLUGIN = """
import os, pathlib, signal, time
from swift.core import environment
from swift.trainers.supervised import SupervisedTrainer

compute_loss = SupervisedTrainer.compute_loss

def the_cat_sits_on_the_keyboard():
    pathlib.Path("failed-at").write_text(str(time.time()))
    {harm}

def disturbed(self, *args, **kwargs):
    if environment.rank() == environment.world_size() - 1 and self.state.global_step == 2:
        the_cat_sits_on_the_keyboard()
    return compute_loss(self, *args, **kwargs)

SupervisedTrainer.compute_loss = disturbed
"""


@pytest.fixture
def folder(tmp_path):
    """A model and ragged rows."""
    tiny.checkpoint(tmp_path / "model")
    tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(16))
    return tmp_path


def start(folder: Path, *words: str, harm: str | None = None, workers: int = 0, **env: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "swift", "sft", "--model", "model", "--dataset", "rows.jsonl", "--output_dir", "out"]
    line += ["--dataloader_num_workers", str(workers)]
    if harm:
        (folder / "plugin.py").write_text(PLUGIN.format(harm=harm))
        line += ["--external_plugins", "plugin.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SURVIVES": str(folder), **env}
    with (folder / "said").open("w") as said:
        return subprocess.Popen([*line, *QUICK, *words], cwd=folder, env=environment, stderr=said, text=True)


def ended(run: subprocess.Popen[str], folder: Path) -> str:
    """What a run said until its end."""
    run.wait(timeout=300)
    return (folder / "said").read_text()


def alive(folder: Path) -> list[int]:
    """The processes of the runs in this folder: those it is in the environment of."""
    mark, found = f"SURVIVES={folder}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
        except OSError:
            continue
    return found


def ends(folder: Path, seconds: float) -> bool:
    """Whether nothing of the runs is left after so many seconds."""
    deadline = time.monotonic() + seconds
    while alive(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(folder)


def steps(folder: Path) -> int:
    return sum(len(journal.read_text().splitlines()) for journal in (folder / "out").glob("**/logging.jsonl"))


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("raise ValueError('the cat')", ["swift sft (rank 1, while in step 3)", "the cat"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", ["rank      : 1", "SIGKILL"]),
    ],
)
def test_a_process_that_fails_ends_the_others_within_half_a_minute_and_is_named(folder, harm, words):
    run = start(folder, "--ddp_backend", "gloo", harm=harm, NPROC_PER_NODE="2")
    said = ended(run, folder)
    assert run.returncode != 0
    assert ends(folder, 1)
    assert time.time() - float((folder / "failed-at").read_text()) < 30
    for phrase in words:
        assert phrase in said, said[-4000:]


def test_a_process_that_hangs_shows_where_and_does_not_hang_the_run_for_longer_than_the_timeout(folder):
    run = start(folder, "--ddp_backend", "gloo", "--ddp_timeout", "10", harm="time.sleep(1000)", NPROC_PER_NODE="2",
                SWIFT_WATCHDOG="4")  # fmt: skip
    said = ended(run, folder)
    assert ends(folder, 1)
    assert run.returncode != 0
    for rank in (0, 1):
        assert f"[swift rank {rank}] warning: in step 3 for more than 4 seconds (SWIFT_WATCHDOG)" in said, said[-4000:]
    assert "in the_cat_sits_on_the_keyboard" in said
    assert "The others wait for rank 1. --ddp_timeout says" in said
    assert re.search(r"rank 1: in step 3 for \d seconds, at .*plugin.py:\d+ in the_cat_sits_on_the_keyboard\n", said)
    assert re.search(r"rank 0: in step 3 for \d seconds, at .*, where it may be waiting for others", said)
    assert time.time() - float((folder / "failed-at").read_text()) < 10 + 30 + 5


def test_nothing_is_left_of_several_processes_when_their_launcher_is_killed(folder):
    run = start(folder, "--ddp_backend", "gloo", NPROC_PER_NODE="2")
    wait_for(lambda: steps(folder) >= 2)
    assert len(alive(folder)) >= 3
    run.kill()
    run.wait()
    assert ends(folder, 30), (folder / "said").read_text()[-4000:]
    (saved,) = checkpoints(next((folder / "out").iterdir()))  # told to stop, they saved
    assert damage(saved) == []


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_nothing_is_left_of_a_run_and_its_workers_when_it_is_killed(folder, streaming):
    run = start(folder, "--streaming", streaming, workers=1)
    wait_for(lambda: steps(folder) >= 2)
    assert len(alive(folder)) >= 2
    run.kill()
    run.wait()
    assert ends(folder, 15), (folder / "said").read_text()[-4000:]


def test_nothing_is_left_of_a_preparation_that_is_killed_or_told_to_stop(folder):
    # no two alike, and beyond ASCII, so that nothing is known of them already: it takes half a minute
    rows = [
        {"messages": [{"role": "user", "content": f"é{i} " * 200}, {"role": "assistant", "content": f"ü{i} " * 200}]}
        for i in range(20_000)
    ]
    tiny.jsonl(folder / "rows.jsonl", rows)
    for sent in (signal.SIGKILL, signal.SIGTERM):
        run = start(folder, "--dataset_num_proc", "2")
        wait_for(lambda: len(alive(folder)) >= 3)
        run.send_signal(sent)
        assert ends(folder, 15)
        said = ended(run, folder)
        if sent == signal.SIGTERM:
            assert run.returncode == 143
            assert said.splitlines()[-1].startswith("swift sft: stopped by SIGTERM, while preparing rows")
            assert "Traceback" not in said


STUCK = """
import ctypes, pathlib
lock, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
pathlib.Path("begun").touch()
libc.pthread_mutex_lock(lock)
libc.pthread_mutex_lock(lock)  # for ever, and no signal brings it back
"""


def test_a_run_that_waits_outside_python_before_training_ends_soon_after_it_is_told_to(folder):
    (folder / "stuck.py").write_text(STUCK)
    run = start(folder, "--external_plugins", "stuck.py")
    wait_for((folder / "begun").exists)
    run.send_signal(signal.SIGTERM)
    said = ended(run, folder)
    assert run.returncode == 143
    assert said.splitlines()[-1].startswith("swift sft: stopped by SIGTERM, while ")


@pytest.mark.parametrize("moment", ["evaluating", "saving"])
def test_a_run_that_is_told_to_stop_while_it_evaluates_or_saves_ends_soon_with_a_whole_checkpoint(folder, moment):
    """The evaluation would take minutes, and each save a second. A schedule that waits for a result gets none."""
    slow = {"evaluating": ("prediction_step", 0.5), "saving": ("_write_progress", 1.0)}[moment]
    (folder / "slow.py").write_text(
        "import pathlib, time\nfrom swift.trainers.supervised import SupervisedTrainer as T\n"
        f"real = T.{slow[0]}\n"
        f"def slowly(*a, **k):\n    pathlib.Path('begun').touch()\n    time.sleep({slow[1]})\n    return real(*a, **k)\n"
        f"T.{slow[0]} = slowly\n"
    )
    tiny.jsonl(folder / "val.jsonl", tiny.conversations(600))
    run = start(folder, "--external_plugins", "slow.py", "--val_dataset", "val.jsonl", "--save_steps", "2",
                "--eval_steps", "2" if moment == "evaluating" else "100000",
                *(["--lr_scheduler_type", "reduce_lr_on_plateau"] if moment == "evaluating" else []))  # fmt: skip
    wait_for((folder / "begun").exists)
    began = time.monotonic()
    run.send_signal(signal.SIGTERM)
    said = ended(run, folder)
    assert run.returncode == 0, said[-3000:]
    assert time.monotonic() - began < 30
    assert ends(folder, 1)
    saved = checkpoints(next((folder / "out").iterdir()))
    assert saved
    assert all(damage(checkpoint) == [] for checkpoint in saved)
    assert "stopped by SIGTERM" in said
