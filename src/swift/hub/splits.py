"""This file knows which files of a data set repository hold a split of a subset, from its card or their names.

The card is the YAML head of README.md. Its `configs` say it outright:

    configs:
    - config_name: main
      default: true
      data_files:
      - split: train
        path: main/train-*.parquet

Without them, names do: `train.jsonl`, `data/train-00000-of-00002.parquet`, `subset/test.csv`; what names no split is
train.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from swift.core.errors import DataError
from swift.core.logs import get_logger

KINDS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".arrow", ".txt")
"""Suffixes of files that hold rows, in the order of preference where the same rows may be there twice."""
PACKED = (".gz", ".zst", ".bz2", ".xz")
DESCRIPTIONS = {
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "configuration.json", "config.json",
    "license.txt", "readme.txt", "requirements.txt",
}  # fmt: skip
"""Files that stand beside data and hold none."""
WORDS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
"""Words in the name of a file or a folder that say which split it holds."""
DEFAULT = "default"
_SHARD = re.compile(r"(?P<stem>.+?)[-.](?P<number>\d{5})-of-(?P<count>\d{5})")
_HEAD = re.compile(r"\A---\s*\n(?P<yaml>.*?)\n---\s*(\n|\Z)", re.DOTALL)
_WORD = re.compile(r"[a-zA-Z]+")
_LAST_WORD = re.compile(r"[-_.](?=[^-_.]*$)")
_WILD = re.compile(r"(?P<deep>\*\*/?)|(?P<any>\*)|(?P<one>\?)|(?P<set>\[[^\]]+\])|(?P<other>.)", re.DOTALL)

Splits = Mapping[str, Sequence[str]]
"""Split -> the files that hold it."""


def card_of(readme: str) -> Mapping[str, Any] | None:
    """The YAML head of a README.md; None when there is none, or none that can be read."""
    head = _HEAD.match(readme.lstrip("\ufeff"))
    if head is None:
        return None
    try:
        card = yaml.safe_load(head["yaml"])
    except yaml.YAMLError as error:
        get_logger().warning("the head of README.md is no valid YAML and says nothing of subsets: %s", error)
        return None
    return card if isinstance(card, dict) else None


def choose(
    paths: Sequence[str], card: Mapping[str, Any] | None, subset: str | None, split: str, name: str
) -> list[str]:
    """The files, of all `paths` of a repository, that hold this split of this subset, in alphabetical order.

    `name` is the data set in messages. Raises DataError, naming what is there, when the subset or the split is not,
    when parts of a split are missing, and when a repository holds no files of rows at all.
    """
    configs = [config for config in (card or {}).get("configs") or () if isinstance(config, dict)]
    splits = _of_config(paths, _config(configs, subset, name), name) if configs else _of_names(paths, subset, name)
    if split not in splits:
        of = f" (subset {subset})" if subset else ""
        raise DataError(f"{name}{of} has no split {split}. There are: {', '.join(sorted(splits)) or 'none'}.")
    chosen = sorted(splits[split])
    _require_all_shards(chosen, name)
    return chosen


# -------------------------------------------------------------------------------------------------------- by the card


def _config(configs: Sequence[Mapping[str, Any]], subset: str | None, name: str) -> Mapping[str, Any]:
    """The config of a subset; without one, the only one, or the one that calls itself default."""
    named = {str(config.get("config_name", DEFAULT)): config for config in configs}
    if subset is not None and (subset != DEFAULT or DEFAULT in named):
        if subset not in named:
            raise DataError(f"{name} has no subset {subset}. There are: {', '.join(named)}.")
        return named[subset]
    defaults = [config for config in named.values() if config.get("default")]
    if defaults or DEFAULT in named:
        return defaults[0] if defaults else named[DEFAULT]
    if len(named) == 1:
        return next(iter(named.values()))
    raise DataError(f"{name} has several subsets, and none is the default. Choose: {', '.join(named)}.")


def _of_config(paths: Sequence[str], config: Mapping[str, Any], name: str) -> Splits:
    """The files of every split of a config."""
    folder = str(config.get("data_dir") or "").strip("./")
    files = config.get("data_files")
    if files is None:
        return _of_folder(paths, folder, name)
    splits: dict[str, list[str]] = {}
    for split, patterns in _patterns(files):
        for pattern in patterns:
            splits.setdefault(split, []).extend(_matching(paths, pattern, folder, name))
    return {split: list(dict.fromkeys(found)) for split, found in splits.items()}


def _patterns(files: Any) -> list[tuple[str, list[str]]]:
    """The patterns of each split, from any of the forms that `data_files` has: text, list, mapping, list of mappings."""
    if isinstance(files, dict):
        return [(str(split), _listed(patterns)) for split, patterns in files.items()]
    entries = _listed(files)
    if all(isinstance(entry, dict) for entry in entries):
        return [(str(entry.get("split", "train")), _listed(entry.get("path"))) for entry in entries]
    return [("train", [str(entry) for entry in entries])]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _matching(paths: Sequence[str], pattern: str, folder: str, name: str) -> list[str]:
    if "://" in pattern:
        raise DataError(f"{name}: its README.md points to files of another place, {pattern}. Pass them as local files.")
    whole = str(PurePosixPath(folder, pattern.removeprefix("./")))
    expression = re.compile(_expression(whole))
    found = [path for path in paths if expression.fullmatch(path)]
    if not found:
        raise DataError(f"{name}: its README.md names {whole}, and it holds no such file.")
    return found


def _expression(pattern: str) -> str:
    """A pattern as a regular expression: `*` and `?` stay within a folder, `**` does not."""
    parts = {"deep": "(?:.*/)?", "any": "[^/]*", "one": "[^/]"}
    pieces: list[str] = []
    for match in _WILD.finditer(pattern):
        kind = match.lastgroup or "other"
        if kind == "deep" and not match[0].endswith("/"):
            pieces.append(".*")
        elif kind == "set":
            pieces.append("[" + match[0][1:-1].replace("!", "^", 1 if match[0][1] == "!" else 0) + "]")
        else:
            pieces.append(parts.get(kind, re.escape(match[0])))
    return "".join(pieces)


# ---------------------------------------------------------------------------------------------------------- by names


def _of_names(paths: Sequence[str], subset: str | None, name: str) -> Splits:
    """The splits of a repository without a card: of a folder or files called as the subset, or of all files."""
    rows = [path for path in paths if _holds_rows(path)]
    if subset is None:
        return _of_folder(paths, "", name)
    for folder in (subset, f"data/{subset}"):
        if any(path.startswith(f"{folder}/") for path in rows):
            return _of_folder(paths, folder, name)
    called = [path for path in rows if subset in (_stem(path), _without_split(_stem(path)))]
    if called:
        return _by_words(called, "")
    if subset == DEFAULT:
        return _of_folder(paths, "", name)
    raise DataError(f"{name} has no subset {subset}. There are: {', '.join(_subsets(paths)) or 'none'}.")


def _subsets(paths: Sequence[str]) -> list[str]:
    """What can be asked for as a subset: the names of folders and of files."""
    rows = [path for path in paths if _holds_rows(path)]
    return sorted({path.split("/")[0] if "/" in path else _without_split(_stem(path)) for path in rows})


def _of_folder(paths: Sequence[str], folder: str, name: str) -> Splits:
    inside = [path for path in paths if not folder or path.startswith(f"{folder}/")]
    rows = [path for path in inside if _holds_rows(path)]
    if not rows:
        found = ", ".join(sorted(inside)[:8]) or "nothing"
        raise DataError(
            f"{name} holds no files of rows ({', '.join(KINDS)}). It holds: {found}. Data sets that a script makes are "
            f"not run; convert it, and pass the result as a local file."
        )
    return _by_words(rows, folder)


def _by_words(rows: Sequence[str], root: str) -> Splits:
    """The splits that the names tell. Where some name a split, those that name none are not read; else all is train."""
    rows = _one_kind(rows)
    splits: dict[str, list[str]] = {}
    for path in rows:
        splits.setdefault(_split(path, root), []).append(path)
    nameless = splits.pop("", [])
    if not splits:
        return {"train": nameless}
    if nameless:
        get_logger().info("not read, as their names tell no split: %s", ", ".join(sorted(nameless)[:8]))
    return splits


def _split(path: str, root: str) -> str:
    """The split in the name of a file, else in that of its folders; "" when none names one.

    Shards in a folder `data` are called exactly as their split: `data/train_sft-00000-of-00003.parquet`.
    """
    inner = PurePosixPath(path.removeprefix(f"{root}/") if root else path)
    if inner.parts[0] == "data" and _SHARD.fullmatch(_bare(path)):
        return _stem(path)
    for part in (_stem(path), *reversed(inner.parts[:-1])):
        for word in _WORD.findall(part):
            if word.lower() in WORDS:
                return WORDS[word.lower()]
    return ""


def _one_kind(rows: Sequence[str]) -> list[str]:
    """The files of the most frequent kind, so that rows which are there in two formats are not read twice."""
    counts = Counter(_kind(path) for path in rows)
    best = max(counts, key=lambda kind: (counts[kind], -KINDS.index(kind)))
    others = sorted(path for path in rows if _kind(path) != best)
    if others:
        get_logger().info("reading the %s files only, and not: %s", best, ", ".join(others[:8]))
    return [path for path in rows if _kind(path) == best]


def _require_all_shards(paths: Sequence[str], name: str) -> None:
    """Of files called `x-00000-of-00003`, all three must be there."""
    there: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        shard = _SHARD.fullmatch(_bare(path))
        if shard:
            key = (str(PurePosixPath(path).with_name(shard["stem"])), int(shard["count"]))
            there.setdefault(key, set()).add(int(shard["number"]))
    for (stem, count), numbers in there.items():
        if len(numbers) < count:
            raise DataError(f"{name}: of the {count} parts of {stem}, only {len(numbers)} are there.")


def _holds_rows(path: str) -> bool:
    file = PurePosixPath(path)
    hidden = any(part.startswith((".", "__")) for part in file.parts)
    return not hidden and file.name.lower() not in DESCRIPTIONS and _kind(path) in KINDS


def _kind(path: str) -> str:
    """The suffix that says how rows are written, below one that says how they are packed."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _bare(path: str) -> str:
    """The name of a file without its suffixes."""
    name = PurePosixPath(path).name
    for suffix in (*PACKED, *KINDS):
        name = name.removesuffix(suffix)
    return name


def _stem(path: str) -> str:
    """The name of a file without its suffixes and the number of its shard."""
    shard = _SHARD.fullmatch(_bare(path))
    return shard["stem"] if shard else _bare(path)


def _without_split(stem: str) -> str:
    """`gsm8k` for `gsm8k_train`."""
    front, last = _LAST_WORD.split(stem, maxsplit=1) if _LAST_WORD.search(stem) else ("", stem)
    return front if front and last.lower() in WORDS else stem
