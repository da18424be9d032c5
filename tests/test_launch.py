"""When and how one process becomes several under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from swift import launch


@pytest.fixture
def started(monkeypatch):
    """The command lines that would replace this process."""
    lines: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, line: lines.append(line))
    for name in ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return lines


def test_one_process_stays_one(started):
    launch.relaunch("sft", ["--model", "m"])
    assert started == []


@pytest.mark.parametrize("command", launch.DISTRIBUTED)
def test_nproc_per_node_starts_torchrun_with_the_same_command_line(started, monkeypatch, command):
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    monkeypatch.setenv("MASTER_PORT", "29511")
    launch.relaunch(command, ["--model", "m"])
    line = started[0][1:]
    expected = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29511", "-m", "swift"]
    assert line == [*expected, command, "--model", "m"]


def test_every_variable_of_several_nodes_is_handed_on(monkeypatch, started):
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    assert launch.torchrun_options() == [
        "--nproc_per_node=1", "--nnodes=2", "--node_rank=1", "--master_addr=10.0.0.1", "--master_port=1234",
    ]  # fmt: skip
    assert started == []


@pytest.mark.parametrize("command", ["export", "deploy", "eval", "app", "sample", "rollout"])
def test_other_commands_stay_one_process(started, monkeypatch, command):
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    launch.relaunch(command, [])
    assert started == []


def test_a_process_of_torchrun_does_not_start_it_again(started, monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    launch.relaunch("sft", [])
    assert started == []


def test_runs_on_one_node_have_ports_of_their_own_and_nodes_one_that_all_know(started, monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    assert len({launch.torchrun_options()[-1] for _ in range(8)} | {"--master_port=29500"}) > 5
    monkeypatch.setenv("NNODES", "2")
    assert launch.torchrun_options()[-1] == "--master_port=29500"
    monkeypatch.setenv("NNODES", "1")
    monkeypatch.setenv("MASTER_PORT", "4711")
    assert launch.torchrun_options()[-1] == "--master_port=4711"


def test_idle_threads_sleep_unless_the_user_decided(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "200")
    launch.settle_threads()
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["KMP_BLOCKTIME"]) == ("0", "200")


def test_a_process_of_torchrun_ends_with_its_code_after_the_exit_functions(tmp_path):
    code = (
        "import atexit, sys; from swift.launch import leave;"
        "atexit.register(lambda: print('told')); print('worked'); leave(3); print('never')"
    )
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (3, "worked\ntold\n")


def test_a_process_alone_gets_its_code_back(started):
    assert launch.leave(3) == 3


@pytest.mark.slow
@pytest.mark.parametrize("forking", [["--dataset_num_proc", "2"], ["--lazy_tokenize", "true"]])
def test_processes_that_prepare_rows_do_not_wait_for_threads_of_the_tokenizer(
    tmp_path: Path, forking: list[str]
) -> None:
    tiny.checkpoint(tmp_path / "model")
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(40))
    line = [sys.executable, "-m", "swift", "sft", "--model", str(tmp_path / "model"), "--dataset", str(rows),
            "--max_steps", "1", "--output_dir", str(tmp_path / "output"), "--load_from_cache_file", "false",
            "--dataloader_num_workers", "1", *forking]  # fmt: skip
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    assert subprocess.run(line, env=environment, capture_output=True, timeout=120, check=False).returncode == 0
