"""Benchmarks of EvalScope while training, from a command line to scores, with rows of this machine."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from swift.commands import infer, sft
from swift.core.errors import UsageError
from swift.options.parse import parse

pytestmark = [
    pytest.mark.extra,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("default"),
]
REPLY = "It is good."
"""What the model learns to say, well enough for some of its words to be right."""
QUESTIONS = [f"What is {i} and one?" for i in range(6)]
SETTINGS = {
    "general_qa": {"local_path": "qa", "subset_list": ["own"], "metric_list": ["Rouge"]},
    "general_mcq": {"local_path": "mcq", "subset_list": ["own"]},
}
ASKED = ("--eval_use_evalscope", "true", "--eval_dataset", "general_qa", "general_mcq", "--eval_dataset_args",
         json.dumps(SETTINGS), "--eval_limit", "4", "--eval_steps", "20", "--eval_generation_config", '{"max_tokens": 6}')  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, rows to train on, and two benchmarks: questions with expected replies, and with options."""
    folder = tmp_path_factory.mktemp("benchmarks")
    tiny.checkpoint(folder / "model")
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": REPLY}]} for q in QUESTIONS]
    tiny.jsonl(folder / "rows.jsonl", rows * 2)
    (folder / "qa").mkdir()
    (folder / "mcq").mkdir()
    tiny.jsonl(folder / "qa" / "own.jsonl", [{"query": q, "response": REPLY} for q in QUESTIONS])
    with (folder / "mcq" / "own_val.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "question", "A", "B", "answer"])
        writer.writerows([i, f"Which one is {i}?", str(i), str(i + 1), "A"] for i in range(5))
    return folder


@pytest.fixture(autouse=True)
def _in_place(place, monkeypatch):
    monkeypatch.chdir(place)


def line(output: Path, *more: str) -> list[str]:
    common = ["--model", "model", "--dataset", "rows.jsonl", "--output_dir", str(output), "--add_version", "false",
              "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1", "--logging_steps", "10",
              "--dataloader_num_workers", "0", "--report_to", "tensorboard", "--max_steps", "20",
              "--save_steps", "20", "--per_device_eval_batch_size", "2", "--lora_dropout", "0.1", "--learning_rate",
              "3e-2"]  # fmt: skip
    given = dict(zip(common[::2], common[1::2], strict=True))
    return [*(word for flag, value in given.items() if flag not in more for word in (flag, value)), *more]


def rows_of(file: Path) -> list[dict]:
    return [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]


def scores_of(output: Path) -> dict[str, float]:
    """What benchmarks have logged, the last of each."""
    found = {}
    for entry in rows_of(output / "logging.jsonl")[:-1]:
        found |= {name: value for name, value in entry.items() if name.startswith("test_")}
    return found


def predictions(output: Path, benchmark: str) -> dict[str, str]:
    """What the model answered, by what it was asked."""
    rows = rows_of(output / "eval" / "step-20" / "predictions" / "model" / f"{benchmark}_own.jsonl")
    return {
        row["messages"][0]["content"]: row["model_output"]["choices"][0]["message"]["content"][0]["text"]
        for row in rows
    }


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory) -> Path:
    """A run that was asked both benchmarks after its last step."""
    output = tmp_path_factory.mktemp("asked") / "out"
    before = Path.cwd()
    os.chdir(place)
    try:
        sft.run(parse("sft", line(output, *ASKED)))
    finally:
        os.chdir(before)
    return output


@pytest.mark.parameter("eval_use_evalscope")
@pytest.mark.parameter("eval_dataset")
@pytest.mark.parameter("metric_for_best_model")
def test_scores_are_logged_and_decide_which_checkpoint_is_best(trained):
    scores = scores_of(trained)
    assert {"test_general_qa", "test_general_mcq"} <= scores.keys()
    assert scores["test_general_qa"] > 0
    report = json.loads((trained / "eval" / "step-20" / "reports" / "model" / "general_qa.json").read_text())
    metrics = {round(metric["score"], 8) for metric in report["metrics"]}
    assert {value for name, value in scores.items() if name.startswith("test_general_qa")} == metrics
    state = json.loads((trained / "checkpoint-20" / "trainer_state.json").read_text())
    assert state["best_metric"] == pytest.approx(scores["test_general_qa"])
    assert (trained / "images").is_dir()
    assert [file.name for file in (trained / "images").glob("test_general_mcq.png")]


@pytest.mark.parameter("eval_generation_config")
@pytest.mark.parameter("eval_limit")
@pytest.mark.parameter("eval_dataset_args")
def test_the_model_answers_as_it_does_in_swift_infer(trained, tmp_path):
    answered = predictions(trained, "general_qa")
    assert sorted(answered) == QUESTIONS[:4]
    tiny.jsonl(tmp_path / "asked.jsonl", [{"messages": [{"role": "user", "content": q}]} for q in QUESTIONS[:4]])
    results = infer.run(parse("infer", ["--adapters", str(trained / "checkpoint-20"), "--max_new_tokens", "6", "--temperature",
                                        "0", "--val_dataset", str(tmp_path / "asked.jsonl"), "--result_path",
                                        str(tmp_path / "results.jsonl")]))  # fmt: skip
    assert results is not None
    assert [row["response"] for row in rows_of(results)] == [answered[q] for q in QUESTIONS[:4]]


@pytest.mark.parameter("eval_use_evalscope")
def test_the_training_is_the_same_with_benchmarks_and_without(trained, tmp_path):
    sft.run(parse("sft", line(tmp_path / "without")))
    weights = [
        load_file(out / "checkpoint-20" / "adapter_model.safetensors") for out in (trained, tmp_path / "without")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parameter("eval_dataset")
def test_a_benchmark_that_fails_is_an_error_and_the_others_and_the_training_go_on(tmp_path, capfd):
    settings = {**SETTINGS, "general_qa": {"local_path": "nowhere", "subset_list": ["own"]}}
    more = list(ASKED)
    more[more.index(json.dumps(SETTINGS))] = json.dumps(settings)
    val = ("--val_dataset", "rows.jsonl", "--metric_for_best_model", "test_general_qa")
    last = sft.run(parse("sft", line(tmp_path / "out", *more, *val)))
    assert last == tmp_path / "out" / "checkpoint-20"
    said = capfd.readouterr().err
    assert "error: benchmark general_qa has no score after step 20" in said
    scores = scores_of(tmp_path / "out")
    assert "test_general_mcq" in scores
    assert "test_general_qa" not in scores
    assert any("eval_loss" in row for row in rows_of(tmp_path / "out" / "logging.jsonl"))
    assert json.loads((last / "trainer_state.json").read_text())["best_global_step"] is None


@pytest.mark.parameter("eval_dataset")
def test_names_that_are_no_benchmarks_end_the_run_before_it_begins(tmp_path):
    more = ["--eval_use_evalscope", "true", "--eval_dataset", "general_qaa"]
    with pytest.raises(UsageError, match=r"--eval_dataset general_qaa: .* Did you mean general_qa"):
        sft.run(parse("sft", line(tmp_path / "out", *more)))


def begin(output: Path, *more: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "swift", "sft", *line(output, *more)], env={**os.environ, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parameter("eval_use_evalscope")
def test_two_processes_answer_together_what_one_answers(tmp_path):
    found = {}
    for count in ("1", "2"):
        process = begin(tmp_path / count, *ASKED, "--learning_rate", "1e-9", NPROC_PER_NODE=count, MASTER_PORT="29647")
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
        found[count] = predictions(tmp_path / count, "general_qa"), scores_of(tmp_path / count)
    assert found["1"] == found["2"]


def test_ctrl_c_breaks_benchmarks_off_and_leaves_no_examiner(tmp_path):
    process = begin(tmp_path / "out", *ASKED, "--max_steps", "50")
    said = ""
    assert process.stdout is not None
    for text in process.stdout:
        said += text
        if "benchmarks after step 20: " in text:
            os.killpg(process.pid, signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=60)
    said += rest
    assert process.returncode == 130, said[-3000:]
    assert "has no score" not in said
    assert (tmp_path / "out" / "checkpoint-20").is_dir()
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path}" not in left
