"""`swift export --to_cached_dataset true`, and runs on what it makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from swift.chat.render import Renderer
from swift.commands import export, sft
from swift.core.errors import DataError, RunError, UsageError
from swift.data.cached import MANIFEST
from swift.options.parse import parse

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cached")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(20))
    tiny.jsonl(folder / "val.jsonl", tiny.conversations(3))
    return folder


def make(place: Path, output: Path, *words: str, dataset: bool = True) -> Path:
    rows = ["--dataset", str(place / "rows.jsonl")] if dataset else []
    line = ["--model", str(place / "model"), "--to_cached_dataset", "true", "--output_dir", str(output), *rows, *words]
    return export.run(parse("export", line))


def train(place: Path, output: Path, *words: str) -> dict[str, torch.Tensor]:
    """The weights of the adapter after two steps."""
    line = ["--model", str(place / "model"), "--output_dir", str(output), "--report_to", "none", "--max_steps", "2",
            "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--logging_steps", "1",
            "--dataloader_num_workers", "0", *words]  # fmt: skip
    last = sft.run(parse("sft", line))
    assert isinstance(last, Path)
    return load_file(last / "adapter_model.safetensors")


def rows_of(folder: Path) -> int:
    return json.loads((folder / MANIFEST).read_text())["rows"]


def evaluated(output: Path) -> list[float]:
    """The losses on the validation rows."""
    [journal] = output.glob("v0-*/logging.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parameter("to_cached_dataset")
@pytest.mark.parameter("cached_dataset")
@pytest.mark.parameter("cached_val_dataset")
@pytest.mark.parameter("split_dataset_ratio")
def test_a_run_on_cached_rows_equals_one_on_the_rows_themselves(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = make(place, tmp_path / "made", "--dataset_shuffle", "false", "--split_dataset_ratio", "0.2")
    assert (made, rows_of(made / "train"), rows_of(made / "val")) == (tmp_path / "made", 16, 4)
    assert not (made / "train" / "model.safetensors").exists()
    words = ["--dataset_shuffle", "false", "--eval_strategy", "steps", "--eval_steps", "1"]
    plain = train(place, tmp_path / "plain", "--dataset", str(place / "rows.jsonl"), "--split_dataset_ratio", "0.2",
                  *words)  # fmt: skip
    monkeypatch.setattr(Renderer, "samples", None)  # cached rows are tokenized already
    cached = train(place, tmp_path / "cached", "--cached_dataset", str(made / "train"), "--cached_val_dataset",
                   str(made / "val"), *words)  # fmt: skip
    assert equal(plain, cached)
    losses = [evaluated(tmp_path / "plain"), evaluated(tmp_path / "cached")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


@pytest.mark.parameter("to_cached_dataset")
def test_validation_rows_come_from_a_data_set_of_their_own(place: Path, tmp_path: Path):
    made = make(place, tmp_path / "made", "--val_dataset", str(place / "val.jsonl"))
    assert (rows_of(made / "train"), rows_of(made / "val")) == (20, 3)
    alone = make(place, tmp_path / "alone", "--val_dataset", str(place / "val.jsonl"), dataset=False)
    assert sorted(path.name for path in alone.iterdir()) == ["val"]
    short = make(place, tmp_path / "short", "--max_length", "60")
    assert 0 < rows_of(short / "train") < 20


@pytest.mark.parameter("template_mode")
def test_pairs_are_cached_for_rlhf_and_refused_by_sft(place: Path, tmp_path: Path):
    pairs = [{"query": f"{i}?", "response": f"yes {i}", "rejected_response": f"no {i}"} for i in range(4)]
    rows = tiny.jsonl(tmp_path / "pairs.jsonl", pairs)
    made = make(place, tmp_path / "made", "--dataset", str(rows), "--template_mode", "rlhf", dataset=False)
    manifest = json.loads((made / "train" / MANIFEST).read_text())
    assert (manifest["mode"], manifest["parts"], manifest["samples"]) == ("rlhf", ["chosen", "rejected"], 8)
    with pytest.raises(DataError, match="--template_mode rlhf, and this run needs train"):
        train(place, tmp_path / "out", "--cached_dataset", str(made / "train"))


def test_what_cannot_be_cached_says_why(place: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="name data with --dataset"):
        make(place, tmp_path / "made", dataset=False)
    with pytest.raises(UsageError, match="--truncation_strategy split"):
        make(place, tmp_path / "made", "--truncation_strategy", "split", "--max_length", "10")
    with pytest.raises(UsageError, match="--merge_lora and --to_cached_dataset"):
        make(place, tmp_path / "made", "--merge_lora", "true", "--adapters", str(place))
    with pytest.raises(DataError, match="No row is left for train"):
        make(place, tmp_path / "made", "--max_length", "2")
    assert not (tmp_path / "made").exists()
    make(place, tmp_path / "made")
    with pytest.raises(RunError, match="is not empty"):
        make(place, tmp_path / "made")
    make(place, tmp_path / "made", "--exist_ok", "true")


@pytest.mark.parameter("lazy_tokenize")
def test_a_lazy_run_equals_an_eager_one(place: Path, tmp_path: Path):
    words = ["--dataset", str(place / "rows.jsonl"), "--split_dataset_ratio", "0.2"]
    eager = train(place, tmp_path / "eager", *words)
    lazy = train(place, tmp_path / "lazy", *words, "--lazy_tokenize", "true")
    assert equal(eager, lazy)
    [run] = (tmp_path / "lazy").glob("v0-*")
    summary = json.loads((run / "logging.jsonl").read_text().splitlines()[-1])
    assert summary["train_dataset"] == "size=16, tokenized during training"


@pytest.mark.parameter("load_from_cache_file")
def test_a_second_run_uses_what_the_first_has_prepared(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "home"))
    words = ["--dataset", str(place / "rows.jsonl"), "--load_from_cache_file", "true"]
    first = train(place, tmp_path / "one", *words)
    entries = sorted((tmp_path / "home" / "swiftlet" / "prepared").iterdir())
    changed = [entry.stat().st_mtime_ns for entry in entries]
    assert len(entries) == 1
    assert equal(first, train(place, tmp_path / "two", *words))
    assert [entry.stat().st_mtime_ns for entry in sorted(entries[0].parent.iterdir())] == changed
