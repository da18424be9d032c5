"""An inference that was stopped, however rudely, goes on where its file of results ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import tiny
from swift.commands import infer
from swift.core.errors import UsageError
from swift.options.parse import parse

DRAWN = ("--temperature", "1.0", "--max_batch_size", "3", "--max_new_tokens", "6")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture
def val(tmp_path):
    return tiny.jsonl(tmp_path / "val.jsonl", tiny.conversations(10))


def argv(checkpoint, val, path, *words):
    return ["--model", str(checkpoint), "--val_dataset", str(val), "--result_path", str(path), *DRAWN, *words]


def answer(checkpoint, val, path, *words):
    infer.run(parse("infer", argv(checkpoint, val, path, *words)))
    return path.read_text("utf-8").splitlines()


@pytest.mark.parameter("resume")
@pytest.mark.parametrize(("kept", "torn"), [(0, ""), (4, ""), (4, '{"response": "ab'), (10, "")])
def test_what_is_missing_is_added_and_is_what_one_run_would_have_written(checkpoint, val, tmp_path, kept, torn):
    whole = answer(checkpoint, val, tmp_path / "whole.jsonl")
    path = tmp_path / "half.jsonl"
    path.write_text("".join(line + "\n" for line in whole[:kept]) + torn, "utf-8")
    assert answer(checkpoint, val, path, "--resume", "true") == whole


@pytest.mark.parameter("resume")
@pytest.mark.parameter("metric")
def test_the_metric_counts_the_rows_of_both_runs(checkpoint, val, tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    first = [json.loads(line) for line in answer(checkpoint, val, path)][:4]
    tiny.jsonl(path, [{**row, "response": row["labels"]} for row in first])
    capsys.readouterr()
    answer(checkpoint, val, path, "--resume", "true", "--metric", "acc")
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == {"acc": 0.4}


@pytest.mark.parameter("resume")
def test_a_file_of_other_rows_is_refused_and_left_as_it_is(checkpoint, val, tmp_path):
    path = tmp_path / "results.jsonl"
    answer(checkpoint, val, path)
    twice = path.read_text("utf-8") * 2
    path.write_text(twice, "utf-8")
    with pytest.raises(UsageError, match="line 11 of --result_path"):
        answer(checkpoint, val, path, "--resume", "true")
    other = tiny.jsonl(tmp_path / "other.jsonl", tiny.conversations(3)[::-1])
    with pytest.raises(UsageError, match="line 1 of --result_path"):
        answer(checkpoint, other, path, "--resume", "true")
    assert path.read_text("utf-8") == twice


@pytest.mark.parameter("resume")
@pytest.mark.slow
def test_killed_at_any_time_no_row_is_lost_or_doubled(checkpoint, val, tmp_path):
    val = tiny.jsonl(tmp_path / "many.jsonl", tiny.conversations(60))
    words = ("--write_batch_size", "3")
    whole = answer(checkpoint, val, tmp_path / "whole.jsonl", *words)
    path = tmp_path / "killed.jsonl"
    command = [sys.executable, "-m", "swift", "infer", *argv(checkpoint, val, path, *words, "--resume", "true")]
    deaths = 0
    for wanted in (1, 20):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
        while running.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < wanted):
            time.sleep(0.005)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
        deaths += running.wait() == -signal.SIGKILL
    assert deaths, "no process was caught alive"
    before = path.read_bytes().count(b"\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert before < len(whole)
    assert path.read_text("utf-8").splitlines() == whole


@pytest.mark.parameter("structured_outputs_regex")
def test_every_reply_matches_the_regular_expression(checkpoint, val, tmp_path):
    lines = answer(checkpoint, val, tmp_path / "out.jsonl", "--structured_outputs_regex", "[ab]{2}(yes|no)")
    assert all(re.fullmatch("[ab]{2}(yes|no)", json.loads(line)["response"]) for line in lines)
