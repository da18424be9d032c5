"""Which files of a repository hold a split of a subset: by its card, else by the names of its files."""

from __future__ import annotations

import pytest

from swift.core.errors import DataError
from swift.hub.splits import card_of, choose

CARD = """---
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*.parquet
  - split: test
    path: ["en/test.parquet", "en/more/**/*.parquet"]
- config_name: zh
  default: true
  data_dir: zh
---
# A data set
"""


def chosen(paths, subset=None, split="train", card=None):
    return choose(paths, card, subset, split, "the data set a/b of Hub")


@pytest.mark.parametrize(
    ("paths", "split", "expected"),
    [
        (["data.jsonl", "README.md"], "train", ["data.jsonl"]),
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["gsm8k_dev.csv", "gsm8k_train.csv"], "validation", ["gsm8k_dev.csv"]),
        (["train/a.json", "train/b.json", "valid/a.json"], "train", ["train/a.json", "train/b.json"]),
        (["evaluation/rows.json", "rows/train.json"], "test", ["evaluation/rows.json"]),
        (["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"], "train",
         ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        (["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"], "train_gen",
         ["data/train_gen-00000-of-00001.parquet"]),
        (["c4-train.00000-of-00001.json.gz", "c4-validation.00000-of-00001.json.gz"], "train",
         ["c4-train.00000-of-00001.json.gz"]),
        (["training_set.jsonl", "notes.jsonl"], "train", ["training_set.jsonl"]),
        (["strain.jsonl", "constraint.jsonl"], "train", ["constraint.jsonl", "strain.jsonl"]),
        (["train.parquet", "test.parquet", "train.jsonl", "dataset_infos.json", ".cache/x.parquet"], "train",
         ["train.parquet"]),
    ],
)  # fmt: skip
def test_names_tell_the_split(paths, split, expected):
    assert chosen(paths, split=split) == expected


@pytest.mark.parametrize(
    ("paths", "subset", "expected"),
    [
        (["math/train.csv", "code/train.csv"], "code", ["code/train.csv"]),
        (["data/math/train.csv", "data/code/train.csv"], "code", ["data/code/train.csv"]),
        (["math.jsonl", "code.jsonl"], "math", ["math.jsonl"]),
        (["math_train.jsonl", "math_test.jsonl", "code_train.jsonl"], "math", ["math_train.jsonl"]),
        (["dev/train.csv", "dev/test.csv"], "dev", ["dev/train.csv"]),
        (["rows.jsonl"], "default", ["rows.jsonl"]),
    ],
)
def test_a_subset_is_a_folder_or_a_file(paths, subset, expected):
    assert chosen(paths, subset) == expected


def test_the_card_goes_before_names():
    paths = ["en/train-1.parquet", "en/train-2.parquet", "en/test.parquet", "en/more/a/b.parquet", "en/extra.parquet",
             "zh/train.jsonl", "zh/test.jsonl", "README.md"]  # fmt: skip
    card = card_of(CARD)
    assert chosen(paths, "en", card=card) == ["en/train-1.parquet", "en/train-2.parquet"]
    assert chosen(paths, "en", "test", card) == ["en/more/a/b.parquet", "en/test.parquet"]
    assert chosen(paths, card=card) == ["zh/train.jsonl"], "the default config, whose files are found by name"
    assert chosen(paths, "default", card=card) == ["zh/train.jsonl"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ('"*.csv"', ["a.csv", "b.csv"]),
        ('["a.csv", "c/?.csv"]', ["a.csv", "c/d.csv"]),
        ("{train: [b.csv], test: a.csv}", ["b.csv"]),
        ("[{split: train, path: '**/*.csv'}]", ["a.csv", "b.csv", "c/d.csv"]),
        ("[{split: train, path: '[!b].csv'}]", ["a.csv"]),
    ],
)
def test_data_files_may_be_written_in_every_form(files, expected):
    card = card_of(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")
    assert chosen(["a.csv", "b.csv", "c/d.csv"], card=card) == expected


def test_a_readme_without_a_head_or_with_a_broken_one_says_nothing():
    assert card_of("# Title\n\n---\nconfigs: []\n---\n") is None
    assert card_of("---\nconfigs: [\n---\n") is None
    assert chosen(["rows.csv"], card=card_of("---\nlicense: mit\n---\n")) == ["rows.csv"]


@pytest.mark.parametrize(
    ("paths", "subset", "split", "card", "words"),
    [
        (["math/a.csv", "code.jsonl"], "art", "train", None, "no subset art. There are: code, math"),
        (["train.csv", "test.csv"], None, "validation", None, "no split validation. There are: test, train"),
        (["en/train-1.parquet"], "fr", "train", CARD, "no subset fr. There are: en, zh"),
        (["zh/x.csv"], "en", "train", CARD, r"names en/train-\*.parquet, and it holds no such file"),
        (["make.py", "README.md"], None, "train", None, "holds no files of rows .* It holds: README.md, make.py"),
        (["data/train-00000-of-00003.parquet"], None, "train", None, "of the 3 parts of data/train, only 1 are there"),
        (["x.csv"], None, "train", "---\nconfigs:\n- config_name: a\n- config_name: b\n---\n", "Choose: a, b"),
        (["x.csv"], None, "train", "---\nconfigs:\n- data_files: https://a/b.csv\n---\n", "another place, https://a/b"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(paths, subset, split, card, words):
    with pytest.raises(DataError, match=words):
        chosen(paths, subset, split, card and card_of(card))
