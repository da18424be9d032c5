"""Our own methods train classifiers, embeddings and rerankers too, with their heads, and are asked and merged as such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from swift.commands import export, infer, sft
from swift.options.parse import parse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
LINES = {
    "llamapro": ("--llamapro_num_new_blocks", "1"),
    "adapter": ("--adapter_length", "8"),
    "reft": ("--reft_rank", "2"),
    "longlora": ("--max_length", "512"),  # so that groups are longer than rows, which inference attends to as wholes
    "full": ("--lisa_activated_layers", "1", "--lisa_step_interval", "3"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own-tasks")
    tiny.checkpoint(folder / "model")
    texts = ["lazy dog", "brown fox", "two four"]
    asked = [{"role": "user", "content": texts[i % 3]} for i in range(24)]
    tiny.jsonl(folder / "classes.jsonl", [{"messages": [asked[i]], "label": i % 3} for i in range(24)])
    tiny.jsonl(folder / "documents.jsonl", [
        {"messages": [asked[i]], "positive_messages": [[asked[i]]], "negative_messages": [[asked[i - 1]]]} for i in range(12)
    ])  # fmt: skip
    return folder


def train(place: Path, output: Path, rows: str, method: str, *words: str) -> Path:
    last = sft.run(parse("sft", [
        "--model", str(place / "model"), "--dataset", str(place / rows), "--output_dir", str(output), "--report_to", "none",
        "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--logging_steps", "1",
        "--dataloader_num_workers", "0", "--torch_dtype", "float32", "--tuner_type", method, *LINES[method], *words,
    ]))  # fmt: skip
    assert isinstance(last, Path)
    return last


def answers(checkpoint: Path, rows: Path) -> list:
    flag = "--adapters" if (checkpoint / "adapter_config.json").is_file() else "--model"
    file = infer.run(parse("infer", [flag, str(checkpoint), "--val_dataset", str(rows)]))
    assert file is not None
    return [json.loads(line)["response"] for line in file.read_text().splitlines()]


@pytest.mark.parameter("task_type")
@pytest.mark.parameter("tuner_type")
@pytest.mark.parametrize("method", LINES)
def test_a_classifier_learns_its_head_with_every_method(place, tmp_path, method):
    last = train(place, tmp_path, "classes.jsonl", method, "--num_labels", "3", "--max_steps", "40", "--learning_rate",
                 "3e-3", "--lr_scheduler_type", "constant")  # fmt: skip
    assert answers(last, place / "classes.jsonl") == [i % 3 for i in range(24)]
    if method in ("llamapro", "longlora"):
        merged = export.run(parse("export", ["--adapters", str(last), "--merge_lora", "true"]))
        assert answers(merged, place / "classes.jsonl") == [i % 3 for i in range(24)]


@pytest.mark.parametrize("method", LINES)
@pytest.mark.parametrize("task", ["embedding", "generative_reranker"])
def test_embeddings_and_rerankers_are_trained_and_asked(place, tmp_path, monkeypatch, method, task):
    monkeypatch.setenv("GENERATIVE_RERANKER_POSITIVE_TOKEN", "a")
    monkeypatch.setenv("GENERATIVE_RERANKER_NEGATIVE_TOKEN", "b")
    loss = ("--loss_type", "infonce") if task == "embedding" else ()
    last = train(place, tmp_path, "documents.jsonl", method, "--task_type", task, *loss, "--max_steps", "3")
    assert answers(last, place / "documents.jsonl")
