"""Rows that are prepared once: cached by content, or exported as cached data sets and trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from swift import cli
from swift.chat.render import Renderer
from swift.core.errors import DataError, SwiftError
from swift.data.encode import load_samples
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions

QUICK = ["--gradient_accumulation_steps", "1", "--dataloader_num_workers", "0", "--report_to", "none"]


class Counting(Renderer):
    """A renderer that counts the conversations it is given."""

    def __init__(self, template: TemplateOptions) -> None:
        super().__init__(tiny.tokenizer(), template)
        self.rendered = 0

    def samples(self, conversations):
        self.rendered += len(conversations)
        return super().samples(conversations)


def prepared(file: Path, template: TemplateOptions, **options) -> tuple[Counting, list[list[int]]]:
    renderer = Counting(template)
    data = load_samples(DataOptions(dataset=[str(file)], **options), template, renderer)
    return renderer, [data.train[i].input_ids for i in range(len(data.train))]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    return tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(12))


@pytest.mark.parameter("load_from_cache_file")
def test_a_second_run_renders_nothing_and_a_change_of_rows_or_template_renders_again(cache):
    template = TemplateOptions(max_length=512)
    first, samples = prepared(cache, template, load_from_cache_file=True)
    again, same = prepared(cache, template, load_from_cache_file=True)
    assert (first.rendered > 0, again.rendered) == (True, 0)
    assert same == samples
    other, _ = prepared(cache, TemplateOptions(max_length=512, system="Be brief."), load_from_cache_file=True)
    assert other.rendered > 0
    cache.write_text(cache.read_text().replace("Good-bye", "Farewell"))
    changed, different = prepared(cache, template, load_from_cache_file=True)
    assert changed.rendered > 0
    assert different != samples
    assert prepared(cache, template)[0].rendered > 0, "without the flag nothing is read from the cache"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model and rows in the current folder."""
    tiny.checkpoint(tmp_path / "model")
    tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(12))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path, output: str) -> bytes:
    return next((folder / output).glob("**/checkpoint-2/adapter_model.safetensors")).read_bytes()


@pytest.mark.parameter("cached_dataset")
@pytest.mark.parameter("cached_val_dataset")
@pytest.mark.parameter("to_cached_dataset")
def test_a_run_on_cached_rows_is_the_run_on_the_rows(folder, monkeypatch):
    export = ["export", "--model", "model", "--dataset", "rows.jsonl", "--to_cached_dataset", "true"]
    assert (
        cli.main([*export, "--split_dataset_ratio", "0.25", "--dataset_shuffle", "false", "--output_dir", "ready"]) == 0
    )
    rows = ["--cached_dataset", "ready/train", "--cached_val_dataset", "ready/val", "--dataset_shuffle", "false"]
    sft = ["sft", "--model", "model", "--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "1", *QUICK]
    monkeypatch.setattr(Renderer, "samples", _must_not_be_called)
    assert cli.main([*sft, *rows, "--output_dir", "cached"]) == 0
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    plain = ["--dataset", "rows.jsonl", "--split_dataset_ratio", "0.25", "--dataset_shuffle", "false"]
    assert cli.main([*sft, *plain, "--output_dir", "plain"]) == 0
    assert weights(folder, "cached") == weights(folder, "plain")
    journals = [next((folder / name).glob("**/logging.jsonl")).read_text() for name in ("cached", "plain")]
    losses = [[json.loads(line).get("eval_loss") for line in text.splitlines()] for text in journals]
    assert losses[0] == losses[1]
    assert any(losses[0])


def _must_not_be_called(*_):
    raise AssertionError("cached rows are tokenized already")


def test_cached_rows_of_another_template_are_refused(folder, capsys):
    export = ["export", "--model", "model", "--dataset", "rows.jsonl", "--to_cached_dataset", "true"]
    assert cli.main([*export, "--output_dir", "ready"]) == 0
    sft = ["sft", "--model", "model", "--cached_dataset", "ready/train", "--max_steps", "1", *QUICK]
    capsys.readouterr()
    assert cli.main([*sft, "--template", "llama3"]) in (1, 2)
    assert "ready/train" in capsys.readouterr().err


@pytest.mark.parameter("template_mode")
def test_pairs_are_cached_as_chosen_and_rejected(folder):
    pairs = [{"query": f"What is {i}?", "response": f"It is {i}.", "rejected_response": "No."} for i in range(4)]
    tiny.jsonl(folder / "pairs.jsonl", pairs)
    export = ["export", "--model", "model", "--dataset", "pairs.jsonl", "--to_cached_dataset", "true"]
    assert cli.main([*export, "--template_mode", "rlhf", "--output_dir", "pairs"]) == 0
    assert cli.main([*export, "--output_dir", "single"]) == 0
    counts = []
    for name in ("pairs", "single"):
        manifest = next(path for path in (folder / name / "train").glob("*.json"))
        counts.append(json.loads(manifest.read_text())["samples"])
    assert counts == [8, 4]


@pytest.mark.parameter("dataset_num_proc")
def test_several_processes_prepare_what_one_prepares_in_the_same_order(tmp_path):
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(40))
    template = TemplateOptions(max_length=512)
    one, samples = prepared(rows, template)
    two, same = prepared(rows, template, dataset_num_proc=2)
    assert same == samples
    assert one.rendered == 40
    assert two.rendered < 40, "the work was done elsewhere"
    assert issubclass(DataError, SwiftError)


@pytest.mark.parameter("lazy_tokenize")
def test_rows_tokenized_when_needed_train_what_rows_tokenized_before_train(folder, monkeypatch):
    sft = ["sft", "--model", "model", "--dataset", "rows.jsonl", "--max_steps", "2", *QUICK]
    assert cli.main([*sft, "--output_dir", "plain"]) == 0
    rendered = []
    samples = Renderer.samples
    monkeypatch.setattr(Renderer, "samples", lambda self, rows: rendered.append(len(rows)) or samples(self, rows))
    assert cli.main([*sft, "--lazy_tokenize", "true", "--output_dir", "lazy"]) == 0
    assert sum(rendered) < 12, "rows that no step needed were not tokenized"
    assert weights(folder, "lazy") == weights(folder, "plain")
