"""Command lines whose processes share each row, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny

pytestmark = pytest.mark.slow
COMMON = ["sft", "--model", "model", "--dataset", "rows.jsonl", "--val_dataset", "val.jsonl", "--dataloader_num_workers", "0",
          "--report_to", "none", "--logging_steps", "1", "--torch_dtype", "float32", "--tuner_type", "full", "--max_steps", "4",
          "--learning_rate", "1e-3", "--per_device_train_batch_size", "1", "--eval_steps", "2", "--eval_strategy", "steps",
          "--save_steps", "2", "--gradient_accumulation_steps", "2", "--max_length", "256"]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    tiny.checkpoint(tmp_path / "model")
    tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(16))
    tiny.jsonl(tmp_path / "val.jsonl", tiny.conversations(3))
    return tmp_path


def swift(folder: Path, output: str, *argv: str, processes: int = 1) -> None:
    several = {} if processes == 1 else {"NPROC_PER_NODE": str(processes)}
    done = subprocess.run(
        [sys.executable, "-m", "swift", *COMMON, "--output_dir", output, "--add_version", "false", *argv], cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **several}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def logged(folder: Path, output: str, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / output / "logging.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def distance(folder: Path, one: str, other: str) -> float:
    first, second = (load_file(folder / output / "checkpoint-4" / "model.safetensors") for output in (one, other))
    assert first.keys() == second.keys()
    return max(float((weight - second[name]).abs().max()) for name, weight in first.items())


@pytest.mark.parameter("sequence_parallel_size")
@pytest.mark.parametrize("how", [("--packing", "true"), ("--streaming", "true")], ids=["packs", "a stream"])
def test_two_processes_that_share_rows_learn_what_one_learns(folder, how):
    swift(folder, "one", *how)
    swift(folder, "two", *how, "--sequence_parallel_size", "2", processes=2)
    for name in ("loss", "grad_norm", "token_acc", "eval_loss", "eval_token_acc"):
        assert logged(folder, "two", name) == pytest.approx(logged(folder, "one", name), rel=1e-4), name
    assert logged(folder, "two", "eval_loss")
    assert distance(folder, "one", "two") < 2e-4
    checkpoint = str(folder / "two" / "checkpoint-2")
    swift(folder, "on", *how, "--sequence_parallel_size", "2", "--resume_from_checkpoint", checkpoint, processes=2)
    assert distance(folder, "on", "two") == 0


@pytest.mark.parameter("sequence_parallel_size")
def test_two_processes_that_share_rows_rank_as_one_does(folder):
    for name, count in (("rows.jsonl", 16), ("val.jsonl", 3)):
        tiny.jsonl(folder / name, [
            {"messages": [{"role": "user", "content": f"What is {i}?" + " Tell me." * (i % 4)}],
             "positive_messages": [[{"role": "assistant", "content": f"It is {i}."}]],
             "negative_messages": [[{"role": "assistant", "content": "It is late." * j}] for j in range(1, 2 + i % 3)]}
            for i in range(count)
        ])  # fmt: skip
    asked = ("--task_type", "reranker", "--loss_type", "listwise_reranker", "--eval_metric", "reranker")
    swift(folder, "one", *asked, "--padding_free", "true")
    swift(folder, "two", *asked, "--sequence_parallel_size", "2", processes=2)
    for name in ("loss", "grad_norm", "acc", "eval_loss", "eval_acc", "eval_mrr", "eval_ndcg"):
        assert logged(folder, "two", name) == pytest.approx(logged(folder, "one", name), rel=1e-4), name
    assert logged(folder, "two", "eval_mrr")
    assert distance(folder, "one", "two") < 2e-4


@pytest.mark.parameter("sequence_parallel_size")
def test_a_check_counts_rows_of_groups_of_processes(folder):
    done = subprocess.run(
        [sys.executable, "-m", "swift", "check", *COMMON, "--sequence_parallel_size", "2"], cwd=folder, text=True,
        env={**os.environ, "NPROC_PER_NODE": "4"}, capture_output=True, check=False,
    )  # fmt: skip
    assert "1 x 2 x 2 (batch, accumulation, groups of 2 processes)" in done.stdout, done.stdout + done.stderr
