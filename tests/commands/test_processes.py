"""Whole command lines as a user starts them: several processes, interruptions, resuming, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny

pytestmark = pytest.mark.slow
QUICK = ["--dataloader_num_workers", "0", "--report_to", "none", "--logging_steps", "1", "--torch_dtype", "float32"]


@pytest.fixture
def folder(tmp_path):
    """A model and ragged rows."""
    tiny.checkpoint(tmp_path / "model")
    tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(16))
    return tmp_path


def swift(folder: Path, *argv: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "swift", *argv],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == code, result.stderr[-3000:]
    return result


def last_checkpoint(folder: Path, output: str) -> Path:
    return max((folder / output).glob("**/checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def losses(folder: Path, output: str) -> list[float]:
    journal = next((folder / output).glob("**/logging.jsonl"))
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parameter("average_tokens_across_devices")
def test_two_processes_learn_what_one_learns_from_the_same_global_batch(folder):
    common = ["sft", "--model", "model", "--dataset", "rows.jsonl", *QUICK, "--max_steps", "3", "--tuner_type", "full"]
    common += [
        "--learning_rate",
        "1e-3",
        "--per_device_train_batch_size",
        "2",
        "--average_tokens_across_devices",
        "true",
    ]
    swift(folder, *common, "--output_dir", "one", "--gradient_accumulation_steps", "4")
    two = ["--output_dir", "two", "--gradient_accumulation_steps", "2", "--ddp_backend", "gloo"]
    swift(folder, *common, *two, NPROC_PER_NODE="2")
    assert losses(folder, "two") == pytest.approx(losses(folder, "one"), abs=2e-5)
    one, other = (load_file(last_checkpoint(folder, name) / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert (weight - other[name]).abs().max() < 2e-5, name


def test_two_processes_answer_what_one_answers(folder):
    common = ["infer", "--model", "model", "--val_dataset", "rows.jsonl", "--max_new_tokens", "4", "--temperature", "0"]
    swift(folder, *common, "--result_path", "one.jsonl")
    swift(folder, *common, "--result_path", "two.jsonl", NPROC_PER_NODE="2")
    assert (folder / "one.jsonl").read_text() == (folder / "two.jsonl").read_text()


def interrupted(folder: Path, argv: list[str], sent: signal.Signals) -> tuple[int, str]:
    """Start a training, send the signal after its third step, and return the exit code and what was said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "swift", *argv, "--output_dir", "cut"],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(_steps(folder / "cut")) < 3:
        time.sleep(0.02)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def _steps(output: Path) -> list[str]:
    return [line for journal in output.glob("**/logging.jsonl") for line in journal.read_text().splitlines()]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_an_interrupted_run_saves_says_where_and_goes_on_exactly(folder, sent, code):
    common = ["sft", "--model", "model", "--dataset", "rows.jsonl", *QUICK, "--gradient_accumulation_steps", "4"]
    common += ["--lr_scheduler_type", "constant", "--learning_rate", "1e-3"]
    status, said = interrupted(folder, [*common, "--max_steps", "100000"], sent)
    assert status == code, said[-3000:]
    assert "Traceback" not in said
    checkpoint = last_checkpoint(folder, "cut")
    assert str(checkpoint) in said
    more = ["--max_steps", str(int(checkpoint.name.rpartition("-")[2]) + 3)]
    swift(folder, *common, *more, "--output_dir", "on", "--resume_from_checkpoint", str(checkpoint))
    swift(folder, *common, *more, "--output_dir", "whole")
    on, whole = (load_file(last_checkpoint(folder, name) / "adapter_model.safetensors") for name in ("on", "whole"))
    assert all(bool((weight == whole[name]).all()) for name, weight in on.items())
