from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from swift.chat.render import Renderer, Sample
from swift.core.errors import DataError
from swift.data.cached import Mode, write_cached
from swift.data.conversations import load_conversations
from swift.data.encode import TASK_OF, LoadedData, Preparation, load_samples
from swift.data.samples import SampleSet
from swift.data.tasks import Aim
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions


def renderer(tokenizer: Any = None, **template: Any) -> Renderer:
    return Renderer(tokenizer or tiny.tokenizer(), TemplateOptions(**template))


def cache(folder: Path, rows: Path | str, *, mode: Mode = "train", parts: tuple[str, ...] = ("sample",),
          **template: Any) -> Path:  # fmt: skip
    """A cached data set of the rows, in the order of their file."""
    options, chosen = DataOptions(dataset=[str(rows)], dataset_shuffle=False), TemplateOptions(**template)
    made = renderer(**template)
    with Preparation(options, chosen, made, aim=Aim(TASK_OF[mode]), keeps_rows=True) as preparation:
        given = preparation.with_samples(preparation.arrange().train)
        write_cached(folder, given, mode=mode, parts=parts, rendering=made.identity(), max_length=chosen.max_length)
    return folder


def load(*folders: Path | str, template: dict[str, Any] | None = None, **options: Any) -> LoadedData:
    chosen = TemplateOptions(**(template or {}))
    options = {"cached_dataset": [str(folder) for folder in folders], "dataset_shuffle": False, **options}
    return load_samples(DataOptions(**options), chosen, renderer(**(template or {})))


def listed(samples: SampleSet | None) -> list[Sample]:
    assert samples is not None
    return [samples[i] for i in range(len(samples))]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.jsonl(tmp_path / "rows.jsonl", [*tiny.conversations(30), {"query": "without a reply"}])


@pytest.fixture
def folder(rows: Path, tmp_path: Path) -> Path:
    return cache(tmp_path / "cached", rows)


def plain(rows: Path, **template: Any) -> list[Sample]:
    options = DataOptions(dataset=[str(rows)], dataset_shuffle=False)
    return listed(load_samples(options, TemplateOptions(**template), renderer(**template)).train)


@pytest.mark.parameter("cached_dataset")
def test_a_cached_data_set_gives_the_samples_of_its_rows(rows: Path, folder: Path):
    assert listed(load(folder).train) == plain(rows)


@pytest.mark.parameter("cached_dataset")
def test_its_rows_are_not_needed_and_not_tokenized_again(rows: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    expected = plain(rows)
    rows.unlink()
    monkeypatch.setattr(Renderer, "samples", None)
    assert listed(load(folder).train) == expected


@pytest.mark.parameter("cached_dataset")
def test_a_number_draws_rows_and_repeats_them_when_there_are_fewer(folder: Path, rows: Path):
    whole = plain(rows)
    assert listed(load(f"{folder}#7").train) == whole[:7]
    assert listed(load(f"{folder}#65").train) == [*whole, *whole, *whole[:5]]
    drawn = listed(load(f"{folder}#7", dataset_shuffle=True).train)
    assert drawn != whole[:7]
    assert all(sample in whole for sample in drawn)


@pytest.mark.parameter("cached_dataset")
def test_cached_and_ordinary_data_sets_are_joined(folder: Path, rows: Path, tmp_path: Path):
    other = tiny.jsonl(tmp_path / "other.jsonl", tiny.conversations(3))
    loaded = load(folder, dataset=[str(other)])
    assert listed(loaded.train) == [*plain(other), *plain(rows)]
    shuffled = listed(load(folder, dataset=[str(other)], dataset_shuffle=True).train)
    assert shuffled != listed(loaded.train)
    assert sorted(map(repr, shuffled)) == sorted(map(repr, listed(loaded.train)))


@pytest.mark.parameter("cached_val_dataset")
def test_cached_validation_rows_are_validated_on_and_turn_splitting_off(folder: Path, rows: Path, logged: list[str]):
    loaded = load(folder, cached_val_dataset=[f"{folder}#4"], split_dataset_ratio=0.5)
    assert listed(loaded.val) == plain(rows)[:4]
    assert len(loaded.train) == 30
    assert any("--split_dataset_ratio 0.5 has no effect: --cached_val_dataset" in message for message in logged)
    assert loaded.val_rows == []


@pytest.mark.parameter("split_dataset_ratio")
def test_rows_of_a_cached_data_set_can_be_held_back(folder: Path, rows: Path):
    loaded = load(folder, split_dataset_ratio=0.1)
    assert listed(loaded.val) == plain(rows)[27:]
    assert [row["messages"] for row in loaded.val_rows] == [row["messages"] for row in tiny.conversations(30)[27:]]


@pytest.mark.parameter("max_length")
@pytest.mark.parametrize("strategy", ["delete", "left", "right"])
def test_rows_that_are_too_long_for_the_run_are_left_out_or_cut(folder: Path, rows: Path, strategy: str):
    template = {"max_length": 60, "truncation_strategy": strategy}
    expected = plain(rows, **template)
    loaded = load(folder, template=template)
    assert listed(loaded.train) == expected
    assert loaded.train.lengths == [len(sample) for sample in expected]
    assert loaded.train.store.learnt_counts[loaded.train.order].tolist() == [sample.learnt for sample in expected]
    assert 0 < len(expected) <= 30
    assert loaded.report.read == 30
    assert loaded.report.num_dropped == 30 - len(expected)
    assert (loaded.report.cut > 0) == (strategy != "delete")
    with pytest.raises(DataError, match="none of its 30 rows can be used"):
        load(folder, template={"max_length": 3})


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"template": "chatml"}, "the template chatml"),
        ({"use_chat_template": False}, "no chat template"),
        ({"loss_scale": "last_round"}, "--loss_scale default, and this run has last_round"),
        ({"system": "Be brief."}, "chat template"),
        ({"add_non_thinking_prefix": False}, "--add_non_thinking_prefix true, and this run has false"),
    ],
)
def test_another_rendering_is_refused_with_both_named(folder: Path, template: dict[str, Any], words: str):
    with pytest.raises(DataError, match="was prepared for another run") as caught:
        load(folder, template=template)
    assert words in str(caught.value)


def test_another_tokenizer_is_refused_with_both_named(folder: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    tiny.tokenizer(vocab_size=380).save_pretrained(tmp_path / "other")
    other = renderer(AutoTokenizer.from_pretrained(tmp_path / "other"))
    with pytest.raises(DataError, match=f"the tokenizer of .*, and this run has that of {tmp_path / 'other'}"):
        load_samples(DataOptions(cached_dataset=[str(folder)]), TemplateOptions(), other)


def test_what_is_no_cached_data_set_says_what_is_wrong(folder: Path, tmp_path: Path):
    with pytest.raises(DataError, match="there is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is no cached data set"):
        load(tmp_path)
    shutil.copytree(folder, tmp_path / "both" / "train")
    with pytest.raises(DataError, match=r"It holds train: name .*both/train"):
        load(tmp_path / "both")
    (folder / "tokens.bin").write_bytes(b"1234")
    with pytest.raises(DataError, match=r"tokens.bin is missing or incomplete"):
        load(folder)
    good = json.loads((folder / "manifest.json").read_text())
    for broken in ({"sizes": {}}, [], {**good, "parts": None}, {**good, "colour": "red"}):
        (folder / "manifest.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match="cannot be read"):
            load(folder)
    (folder / "manifest.json").write_text(json.dumps({"format": 99, "tables": []}))
    with pytest.raises(DataError, match="written in form 99"):
        load(folder)


@pytest.mark.parameter("cached_val_dataset")
def test_inference_reads_the_rows_of_a_cached_data_set(folder: Path):
    items = load_conversations(DataOptions(cached_val_dataset=[f"{folder}#2"])).val
    assert items is not None
    messages = [[message.as_dict() for message in item.conversation.messages] for item in items]
    assert messages == [row["messages"] for row in tiny.conversations(2)]


PAIRS = [
    {"query": f"What is {i}?", "response": f"It is {i}.", "rejected_response": "Good-bye." * i, "label": i % 2 == 0}
    for i in range(1, 9)
]


@pytest.mark.parameter("template_mode")
def test_each_mode_keeps_the_conversations_of_its_task(tmp_path: Path):
    rows = tiny.jsonl(tmp_path / "pairs.jsonl", PAIRS)
    from swift.data.samples import SampleStore

    def rendered(store: SampleStore, row: int) -> list[str]:
        samples = range(store.row_borders[row], store.row_borders[row + 1])
        return [tiny.tokenizer().decode(store.sample(index).input_ids) for index in samples]

    pairs = SampleStore.open(cache(tmp_path / "rlhf", rows, mode="rlhf", parts=("chosen", "rejected")))
    assert pairs.num_rows == 8
    chosen, rejected = rendered(pairs, 2)
    assert "It is 3." in chosen
    assert "Good-bye.Good-bye.Good-bye." in rejected
    kto = SampleStore.open(cache(tmp_path / "kto", rows, mode="kto"))
    assert [kto.sample(i).extra["label"] for i in range(8)] == [False, True] * 4
    assert len(kto) == 8
    with pytest.raises(DataError, match="--template_mode rlhf, and this run needs train"):
        load(tmp_path / "rlhf")


def test_a_pair_of_which_one_side_is_too_long_goes_as_a_whole(tmp_path: Path):
    from swift.data.samples import SampleStore

    rows = tiny.jsonl(tmp_path / "pairs.jsonl", PAIRS)
    whole = SampleStore.open(cache(tmp_path / "whole", rows, mode="rlhf"))
    limit = int(whole.lengths[7])
    kept = SampleStore.open(cache(tmp_path / "kept", rows, mode="rlhf", max_length=limit))
    assert kept.num_rows == 4
    assert len(kept) == 8
    assert max(kept.lengths) <= limit
