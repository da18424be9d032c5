"""This file knows how data sets are registered by JSON: a list of objects, each the description of one.

[{"ms_dataset_id": "owner/name", "subsets": ["default", {"subset": "extra", "columns": {"q": "query"}}]},
 {"dataset_name": "mine", "dataset_path": "./mine.jsonl", "messages": {"role_key": "speaker"}}]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swift.catalog.datasets import DatasetMeta, SubsetDataset
from swift.core.errors import DataError
from swift.core.registry import did_you_mean
from swift.data.rows import shown

_TEXTS = ("ms_dataset_id", "hf_dataset_id", "dataset_path", "dataset_name", "help")
_KEYS = {*_TEXTS, "subsets", "split", "columns", "messages", "tags", "huge_dataset"}
_SUBSET_KEYS = {"subset", "name", "split", "columns", "messages", "is_weak_subset"}
_MESSAGES_KEYS = {"role_key", "content_key", "user_role", "assistant_role", "system_role", "inner_key"}


def read_dataset_info(info: str | Path | list[dict[str, Any]]) -> list[DatasetMeta]:
    """The data sets of a JSON file, of JSON text or of a list of entries.

    A relative `dataset_path` counts from the folder of the file. Raises DataError that names file and entry.
    """
    folder, name, entries = _entries(info)
    if not isinstance(entries, list):
        raise DataError(f"{name} must be a list of data sets, each an object (got {shown(entries)}).")
    return [_meta(entry, f"{name}, entry {number}", folder) for number, entry in enumerate(entries, 1)]


def _entries(info: str | Path | list[dict[str, Any]]) -> tuple[Path, str, Any]:
    """The folder paths count from, what to call the text in messages, and what it holds."""
    if isinstance(info, list):
        return Path(), "the list of data sets", info
    is_inline = isinstance(info, str) and info.lstrip()[:1] in ("[", "{")
    name = "--custom_dataset_info (inline)" if is_inline else f"--custom_dataset_info {info}"
    path = Path() if is_inline else Path(info).expanduser()
    try:
        text = str(info) if is_inline else path.read_text(encoding="utf-8-sig")
        return (path if is_inline else path.parent), name, json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} cannot be read: {error}.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{name} is no JSON: {error.msg}, line {error.lineno} column {error.colno}.") from None


def _meta(entry: Any, where: str, folder: Path) -> DatasetMeta:
    _check_keys(entry, _KEYS, where)
    for key in _TEXTS:
        _check(entry.get(key), str, where, key, "a text")
    if not any(entry.get(key) for key in ("ms_dataset_id", "hf_dataset_id", "dataset_path")):
        raise DataError(f"{where}: says not where the rows are: give ms_dataset_id, hf_dataset_id or dataset_path.")
    path = entry.get("dataset_path")
    subsets = entry.get("subsets", ["default"])
    if not isinstance(subsets, list) or not subsets:
        raise DataError(f"{where}: subsets must be a list of names or objects (got {shown(subsets)}).")
    _check(entry.get("huge_dataset"), bool, where, "huge_dataset", "true or false")
    return DatasetMeta(
        **{key: entry.get(key) for key in _TEXTS if key != "dataset_path"},
        dataset_path=None if path is None else str(folder / Path(path).expanduser()),
        subsets=tuple(_subset(subset, f"{where}, subset {number}") for number, subset in enumerate(subsets, 1)),
        split=_names(entry.get("split"), where, "split") or ("train",),
        columns=_mapping(entry.get("columns"), where, "columns"),
        messages=_messages(entry.get("messages"), where),
        tags=_names(entry.get("tags"), where, "tags") or (),
        huge_dataset=bool(entry.get("huge_dataset")),
    )


def _subset(subset: Any, where: str) -> SubsetDataset:
    if isinstance(subset, str):
        subset = {"subset": subset}
    _check_keys(subset, _SUBSET_KEYS, where)
    on_hub, name = subset.get("subset"), subset.get("name")
    for key, value in (("subset", on_hub), ("name", name)):
        _check(value, str, where, key, "a text")
    if not on_hub and not name:
        raise DataError(f"{where}: has no name: give subset, its name on the hub.")
    _check(subset.get("is_weak_subset"), bool, where, "is_weak_subset", "true or false")
    return SubsetDataset(
        name=name or on_hub,
        subset=on_hub,
        split=_names(subset.get("split"), where, "split"),
        columns=_mapping(subset.get("columns"), where, "columns"),
        messages=_messages(subset.get("messages"), where),
        is_weak_subset=bool(subset.get("is_weak_subset")),
    )


def _check_keys(entry: Any, known: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: is no object (got {shown(entry)}).")
    for key in entry:
        if key not in known:
            guess = did_you_mean(key, sorted(known))
            raise DataError(f"{where}: unknown key {key!r}.{guess} There are: {', '.join(sorted(known))}.")


def _check(value: Any, kind: type, where: str, key: str, words: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise DataError(f"{where}: {key} must be {words} (got {shown(value)}).")


def _names(value: Any, where: str, key: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise DataError(f"{where}: {key} must be a list of texts (got {shown(value)}).")
    return tuple(value)


def _mapping(value: Any, where: str, key: str) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(each, str) and each for each in value.values()):
        raise DataError(f"{where}: {key} must map names to names (got {shown(value)}).")
    return value


def _messages(value: Any, where: str) -> Mapping[str, str] | None:
    options = _mapping(value, where, "messages")
    if options is not None:
        _check_keys(options, _MESSAGES_KEYS, f"{where}, messages")
    return options
