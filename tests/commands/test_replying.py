"""Evaluation by replies while training, from a command line to predict.jsonl."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import tiny
from swift.commands import infer, sft
from swift.core.errors import UsageError
from swift.options.parse import parse
from swift.trainers.metrics import rouge

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
REPLIES = ("--predict_with_generate", "true", "--eval_steps", "2", "--save_steps", "2", "--max_new_tokens", "6",
           "--per_device_eval_batch_size", "2")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("replying")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(12))
    tiny.jsonl(folder / "others.jsonl", tiny.conversations(5))
    return folder


LONG = "You answer with one number, and you say please. " * 4
"""A system message that all prompts begin with, longer than what an engine remembers at a time."""


def words(place: Path, output: Path, *more: str) -> list[str]:
    """A command line; what is given last wins."""
    common = ("--model", str(place / "model"), "--dataset", str(place / "rows.jsonl"), "--output_dir", str(output),
              "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--logging_steps", "1",
              "--dataloader_num_workers", "0", "--report_to", "none", "--max_steps", "2", "--learning_rate", "1e-2",
              *more)  # fmt: skip
    options = dict(zip(common[::2], common[1::2], strict=True))
    return [word for pair in options.items() for word in pair]


def train(place: Path, output: Path, *more: str) -> Path:
    last = sft.run(parse("sft", words(place, output, *more)))
    assert isinstance(last, Path)
    return last


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def logged(checkpoint: Path) -> dict[str, float]:
    """What the evaluations of a run have logged, the last of each."""
    found = {}
    for entry in rows_of(checkpoint.parent / "logging.jsonl")[:-1]:
        found |= {name: value for name, value in entry.items() if name.startswith("eval_")}
    return found


@pytest.mark.parameter("predict_with_generate")
@pytest.mark.parameter("metric_for_best_model")
@pytest.mark.parameter("eval_metric")
@pytest.mark.parametrize(
    "how",
    [("--use_flash_ckpt", "true"), ("--packing", "true"), ("--tuner_type", "full", "--gradient_checkpointing", "true")],
)
def test_evaluation_asks_what_swift_infer_asks_and_gets_the_same_replies(place, tmp_path, how):
    packs = ("--max_length", "256") if "--packing" in how else ()
    before = ("--eval_on_start", "true", "--system", LONG)  # of other weights, which are not to be remembered
    last = train(place, tmp_path, "--split_dataset_ratio", "0.4", *REPLIES, *how, *packs, *before)
    rows = rows_of(last / "predict.jsonl")
    flag = "--model" if "full" in how else "--adapters"
    results = infer.run(parse("infer", [flag, str(last), "--load_data_args", "true", "--max_new_tokens", "6",
                                        "--temperature", "0", "--max_batch_size", "1",
                                        "--result_path", str(tmp_path / "results.jsonl")]))  # fmt: skip
    assert rows == rows_of(results)
    assert len(rows) == 4
    assert all(row["labels"] and row["messages"][-1]["content"] == row["response"] for row in rows)
    measured = {f"eval_{name}": round(value, 8) for name, value in rouge(rows).items()}
    found = logged(last)
    assert {name: found[name] for name in measured} == measured
    assert "eval_loss" not in found
    assert json.loads((last / "trainer_state.json").read_text())["best_metric"] == pytest.approx(
        measured["eval_rouge-l"]
    )


@pytest.mark.parameter("predict_with_generate")
@pytest.mark.parameter("temperature")
def test_replies_leave_the_training_as_it_is_and_their_draws_do_not_depend_on_batches(place, tmp_path):
    drawn = ("--temperature", "1.0", "--lora_dropout", "0.3")
    val = ("--val_dataset", str(place / "others.jsonl"))
    without = train(place, tmp_path / "without", "--save_steps", "2", *drawn[2:])
    asked = train(place, tmp_path / "with", *val, *REPLIES, *drawn, "--eval_on_start", "true", "--eval_steps", "1")
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (without, asked)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    other = train(place, tmp_path / "other", *val, *REPLIES, *drawn, "--per_device_eval_batch_size", "5")
    replies = [[row["response"] for row in rows_of(folder / "predict.jsonl")] for folder in (asked, other)]
    assert replies[0] == replies[1]
    assert len(set(replies[0])) > 1


@pytest.mark.parameter("max_new_tokens")
def test_replies_are_as_long_as_asked_for_and_the_last_evaluation_is_the_one_beside_the_checkpoint(place, tmp_path):
    last = train(place, tmp_path, "--val_dataset", str(place / "others.jsonl"), *REPLIES, "--max_new_tokens", "1",
                 "--eval_on_start", "true")  # fmt: skip
    short = rows_of(last / "predict.jsonl")
    assert max(len(row["response"].split()) for row in short) <= 1
    assert not (last.parent / "predict.jsonl").exists()


def test_an_evaluation_without_a_checkpoint_leaves_its_replies_in_the_folder_of_the_run(place, tmp_path):
    last = train(place, tmp_path, "--val_dataset", str(place / "others.jsonl"), *REPLIES, "--max_steps", "3",
                 "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "2")  # fmt: skip
    assert (last.parent / "checkpoint-2" / "predict.jsonl").is_file()
    assert (last / "predict.jsonl").is_file()


@pytest.mark.parameter("eval_metric")
def test_a_metric_of_a_plugin_is_given_the_texts(place, tmp_path):
    plugin = tmp_path / "exact_texts.py"
    plugin.write_text(
        "from swift.metrics import EvalMetrics, eval_metrics_map\n"
        "class Lengths(EvalMetrics):\n"
        "    def compute_metrics(self, eval_prediction):\n"
        "        return {'characters': float(sum(map(len, eval_prediction.label_ids))),\n"
        "                'replies': float(len(eval_prediction.predictions))}\n"
        "eval_metrics_map['lengths'] = Lengths\n"
    )
    last = train(place, tmp_path / "out", "--val_dataset", str(place / "others.jsonl"), *REPLIES,
                 "--external_plugins", str(plugin), "--eval_metric", "lengths",
                 "--metric_for_best_model", "characters")  # fmt: skip
    found = logged(last)
    assert found["eval_replies"] == 5
    assert found["eval_characters"] == sum(len(row["labels"]) for row in rows_of(last / "predict.jsonl"))


class Told(TrainerCallback):
    """Somebody presses Ctrl-C when the second evaluation begins."""

    def __init__(self) -> None:
        self.evaluations = 0

    def on_prediction_step(self, args, state, control, **_) -> None:
        self.evaluations += state.global_step == 2
        if self.evaluations == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parameter("predict_with_generate")
def test_a_run_that_is_told_to_stop_breaks_its_replies_off_and_saves(place, tmp_path):
    line = words(place, tmp_path, "--val_dataset", str(place / "others.jsonl"), *REPLIES, "--max_steps", "9",
                 "--per_device_eval_batch_size", "1", "--add_version", "false")  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        sft.run(parse("sft", line), watchers=[Told()])
    assert not list(tmp_path.rglob("predict.jsonl"))
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parameter("eval_metric")
def test_a_metric_of_a_plugin_is_given_what_it_keeps_of_the_logits(place, tmp_path):
    plugin = tmp_path / "logits.py"
    plugin.write_text(
        "from swift.metrics import EvalMetrics, eval_metrics_map\n"
        "class Right(EvalMetrics):\n"
        "    def preprocess_logits_for_metrics(self, logits, labels):\n"
        "        return logits.argmax(-1)\n"
        "    def compute_metrics(self, eval_prediction):\n"
        "        said, known = eval_prediction.predictions[:, :-1], eval_prediction.label_ids[:, 1:]\n"
        "        return {'right': float((said == known)[known != -100].mean())}\n"
        "eval_metrics_map['right_tokens'] = Right\n"
    )
    last = train(place, tmp_path / "out", "--val_dataset", str(place / "others.jsonl"), "--external_plugins", str(plugin),
                 "--eval_metric", "right_tokens", "--eval_steps", "2", "--save_steps", "2",
                 "--metric_for_best_model", "right")  # fmt: skip
    found = logged(last)
    assert found["eval_right"] == pytest.approx(found["eval_token_acc"])
    assert not list(last.parent.rglob("predict.jsonl"))


@pytest.mark.parameter("metric_for_best_model")
def test_a_metric_that_a_plugin_does_not_report_is_named_with_those_it_does(place, tmp_path):
    plugin = tmp_path / "counts.py"
    plugin.write_text(
        "from swift.metrics import EvalMetrics, eval_metrics_map\n"
        "class Count(EvalMetrics):\n"
        "    def compute_metrics(self, eval_prediction):\n"
        "        return {'replies': float(len(eval_prediction.predictions))}\n"
        "eval_metrics_map['count_of_replies'] = Count\n"
    )
    more = ("--val_dataset", str(place / "others.jsonl"), *REPLIES, "--external_plugins", str(plugin), "--eval_metric",
            "count_of_replies")  # fmt: skip
    last = train(place, tmp_path / "without", *more)
    assert json.loads((last / "trainer_state.json").read_text())["best_metric"] is None
    with pytest.raises(UsageError, match=r"--metric_for_best_model replys: evaluation reports .*replies"):
        train(place, tmp_path / "misspelt", *more, "--metric_for_best_model", "replys")


def test_what_cannot_be_measured_is_refused_before_anything_is_trained(place, tmp_path):
    val = ("--val_dataset", str(place / "others.jsonl"))
    with pytest.raises(UsageError, match="rouge-1 and rouge-2"):
        train(place, tmp_path, *val, *REPLIES, "--metric_for_best_model", "loss")
    with pytest.raises(UsageError, match="--predict_with_generate true"):
        parse("sft", words(place, tmp_path, *val, "--eval_metric", "nlg"))
    with pytest.raises(UsageError, match="--predict_with_generate"):
        parse("sft", words(place, tmp_path, *REPLIES))


@pytest.mark.slow
@pytest.mark.parameter("predict_with_generate")
def test_two_processes_share_the_rows_and_lose_none(place, tmp_path):
    line = words(place, tmp_path, "--val_dataset", str(place / "others.jsonl"), *REPLIES, "--learning_rate", "1e-9")
    replies = {}
    for count in ("1", "2"):
        environment = {**os.environ, "NPROC_PER_NODE": count, "MASTER_PORT": "29641"}
        line[line.index("--output_dir") + 1] = str(tmp_path / count)
        done = subprocess.run(
            [sys.executable, "-m", "swift", "sft", *line], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (file,) = (tmp_path / count).glob("*/checkpoint-2/predict.jsonl")
        replies[count] = rows_of(file)
    assert replies["1"] == replies["2"]
    assert len(replies["1"]) == 5
