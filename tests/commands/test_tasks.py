"""Classes, embeddings and rankings from a command line to checkpoints, and from checkpoints to results."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tiny
from swift.commands import check, export, infer, sft
from swift.core.errors import UsageError
from swift.options.parse import parse

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
PLUGIN = Path(__file__).parents[2] / "examples" / "plugins" / "metric.py"


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    """The tiny tokenizer has no token for yes, nor for no."""
    monkeypatch.setenv("GENERATIVE_RERANKER_POSITIVE_TOKEN", "a")
    monkeypatch.setenv("GENERATIVE_RERANKER_NEGATIVE_TOKEN", "b")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(0)

    def said(role="user"):
        words = ["fox", "dog", "lazy", "brown", "two", "four", "thanks", "hello"]
        return {"role": role, "content": " ".join(draw.choices(words, k=draw.randint(2, 9)))}

    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "classes.jsonl", [
        {"messages": [{"role": "user", "content": ["lazy dog", "brown fox", "two four"][i % 3]}], "label": i % 3}
        for i in range(24)
    ])  # fmt: skip
    tiny.jsonl(folder / "several.jsonl", [{"messages": [said()], "label": [i % 3]} for i in range(12)])
    tiny.jsonl(folder / "values.jsonl", [{"messages": [said()], "label": i / 12} for i in range(12)])
    documents = [
        {"messages": [said()], "positive_messages": [[said()]], "negative_messages": [[said()] for _ in range(i % 3)]}
        for i in range(12)
    ]
    tiny.jsonl(folder / "documents.jsonl", documents)
    return folder


def train(place: Path, output: Path, rows: str, *words: str) -> Path:
    steps = [] if "--max_steps" in words else ["--max_steps", "2"]
    last = sft.run(parse("sft", [
        "--model", str(place / "model"), "--dataset", str(place / rows), "--output_dir", str(output), "--report_to", "none",
        "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--logging_steps", "1",
        "--dataloader_num_workers", "0", "--torch_dtype", "float32", *steps, *words,
    ]))  # fmt: skip
    assert isinstance(last, Path)
    return last


def answered(checkpoint: Path, rows: Path, *words: str) -> list[dict]:
    flag = "--adapters" if (checkpoint / "adapter_config.json").is_file() else "--model"
    file = infer.run(parse("infer", [flag, str(checkpoint), "--val_dataset", str(rows), *words]))
    assert file is not None
    found = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    return found


@pytest.mark.parameter("task_type")
@pytest.mark.parameter("num_labels")
@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_classifier_learns_is_saved_and_answers_without_being_told_what_it_is(place, tmp_path, capsys, tuner):
    last = train(place, tmp_path, "classes.jsonl", "--num_labels", "3", "--max_steps", "30", "--learning_rate", "3e-3",
                 "--lr_scheduler_type", "constant", "--tuner_type", tuner)  # fmt: skip
    rows = answered(last, place / "classes.jsonl", "--metric", "acc", "--max_batch_size", "5", "--logprobs", "true")
    assert '{"acc": 1.0}' in capsys.readouterr().out
    assert [row["response"] for row in rows] == [row["labels"] for row in rows] == [i % 3 for i in range(24)]
    top = rows[0]["logprobs"]["content"][0]["top_logprobs"]
    assert sum(torch.tensor([each["logprob"] for each in top]).exp()) == pytest.approx(1, abs=1e-5)
    base = AutoModelForSequenceClassification.from_pretrained(
        place / "model" if tuner == "lora" else last, num_labels=3
    ).eval()
    theirs = PeftModel.from_pretrained(base, last) if tuner == "lora" else base
    ids = AutoTokenizer.from_pretrained(last).apply_chat_template(
        [{"role": "user", "content": "brown fox"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        said = theirs(**ids).logits.log_softmax(-1)
    assert max(said[0].tolist()) == pytest.approx(rows[1]["logprobs"]["content"][0]["logprob"], abs=1e-5)
    if tuner == "full":
        assert theirs.config.pad_token_id == 0


@pytest.mark.parameter("problem_type")
def test_several_classes_and_values_are_answered_as_lists_and_numbers(place, tmp_path):
    several = train(place, tmp_path / "a", "several.jsonl", "--task_type", "seq_cls", "--num_labels", "3",
                    "--problem_type", "multi_label_classification")  # fmt: skip
    assert all(
        isinstance(row["response"], list) for row in answered(several, place / "several.jsonl", "--metric", "acc")
    )
    values = train(place, tmp_path / "b", "values.jsonl", "--num_labels", "1")
    assert json.loads((values / "args.json").read_text())["problem_type"] == "regression"
    assert all(isinstance(row["response"], float) for row in answered(values, place / "values.jsonl"))
    with pytest.raises(UsageError, match="--metric acc"):
        answered(values, place / "values.jsonl", "--metric", "acc")


@pytest.mark.parameter("reranker_use_activation")
@pytest.mark.parametrize("task", ["reranker", "generative_reranker"])
def test_a_reranker_scores_every_document_between_0_and_1_or_without_bounds(place, tmp_path, task):
    last = train(place, tmp_path, "documents.jsonl", "--task_type", task, "--loss_type", "listwise_reranker")
    rows = answered(last, place / "documents.jsonl")
    raw = answered(last, place / "documents.jsonl", "--reranker_use_activation", "false", "--max_batch_size", "-1")
    for row, logits in zip(rows, raw, strict=True):
        assert len(row["response"]) == len(row["labels"])
        assert row["response"] == pytest.approx(torch.tensor(logits["response"]).sigmoid().tolist(), abs=1e-5)


@pytest.mark.parameter("task_type")
def test_an_embedding_merges_and_its_checkpoint_gives_the_same_vectors(place, tmp_path, monkeypatch, capsys):
    last = train(place, tmp_path, "documents.jsonl", "--task_type", "embedding", "--loss_type", "infonce")
    rows = answered(last, place / "documents.jsonl")
    assert all(sum(x * x for x in row["response"]) == pytest.approx(1, abs=1e-4) for row in rows)
    assert [len(row["similarities"]) for row in rows] == [1 + i % 3 for i in range(12)]
    merged = export.run(parse("export", ["--adapters", str(last), "--merge_lora", "true"]))
    assert (merged / "modules.json").is_file()
    again = answered(merged, place / "documents.jsonl", "--max_batch_size", "4")
    for row, other in zip(rows, again, strict=True):
        assert row["response"] == pytest.approx(other["response"], abs=1e-5)
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nhello dog\nquit\n"))
    assert infer.run(parse("infer", ["--model", str(merged)])) is None
    assert "Embedding(shape: [1, 64]): [" in capsys.readouterr().out


@pytest.mark.parameter("eval_metric")
def test_a_metric_of_a_plugin_is_reported(place, tmp_path):
    last = train(place, tmp_path, "classes.jsonl", "--num_labels", "3", "--split_dataset_ratio", "0.5", "--eval_steps", "1",
                 "--external_plugins", str(PLUGIN), "--eval_metric", "confusion", "--metric_for_best_model", "missed",
                 "--greater_is_better", "false")  # fmt: skip
    journal = (last.parent / "logging.jsonl").read_text()
    assert "eval_missed" in journal
    assert "eval_false_alarms" in journal


def test_streams_and_lazy_rows_train_every_task(place, tmp_path):
    for i, words in enumerate((["--task_type", "embedding"], ["--task_type", "reranker"])):
        assert train(place, tmp_path / f"a{i}", "documents.jsonl", "--streaming", "true", *words).is_dir()
        assert train(place, tmp_path / f"b{i}", "documents.jsonl", "--lazy_tokenize", "true", *words).is_dir()


@pytest.mark.parametrize(
    ("rows", "words"),
    [("classes.jsonl", ["--num_labels", "3"]), ("documents.jsonl", ["--task_type", "embedding"]),
     ("documents.jsonl", ["--task_type", "reranker"])],
)  # fmt: skip
def test_a_check_knows_the_task(place, tmp_path, capsys, rows, words):
    line = ["--model", str(place / "model"), "--dataset", str(place / rows), "--output_dir", str(tmp_path), *words]
    check.run(parse("sft", line))
    page = capsys.readouterr().out
    assert "all texts end with the same token" in page
    assert "is learnt ends with a stop token" not in page


def test_a_label_that_is_no_class_is_a_bad_row(place, tmp_path):
    train(place, tmp_path, "classes.jsonl", "--num_labels", "2")
    bad = next(tmp_path.glob("*/bad_rows.jsonl")).read_text()
    assert "is none of the classes 0 to 1 (--num_labels)" in bad
