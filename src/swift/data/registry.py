"""This file knows which data sets have a name: those that come with Swiftlet, and those that were registered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from swift.catalog.components import PREPARATIONS
from swift.catalog.datasets import BUILT_IN, DatasetMeta, Prepare, SubsetDataset
from swift.core.errors import DataError, UsageError
from swift.core.paths import exists
from swift.data.dataset_info import read_dataset_info
from swift.data.preprocessors import AutoPreprocessor, MessagesPreprocessor


class DatasetRegistry:
    """Data sets by name; of two that share an id, the later one is found by it."""

    def __init__(self, metas: Iterable[DatasetMeta] = ()) -> None:
        self._metas: dict[object, DatasetMeta] = {}
        for meta in metas:
            self.add(meta)

    def add(self, meta: DatasetMeta, *, exist_ok: bool = False) -> None:
        """Register a data set, under its `dataset_name` or else under its ids and path together.

        exist_ok: whether it may take the place of one that is registered under the same.
        Raises UsageError when it may not, when the data set has no name at all or when two subsets share one.
        """
        if not meta.names:
            raise UsageError(
                "A data set needs a name: give it a dataset_name, ms_dataset_id, hf_dataset_id or dataset_path."
            )
        subsets = [part.name for part in meta.parts]
        double = sorted({name for name in subsets if subsets.count(name) > 1})
        if double or not subsets:
            found = f"twice: {', '.join(double)}" if double else "none"
            raise UsageError(f"The data set {meta.names[0]} needs subsets of different names (got {found}).")
        key = meta.dataset_name or (meta.ms_dataset_id, meta.hf_dataset_id, meta.dataset_path)
        if key in self._metas and not exist_ok:
            raise UsageError(
                f"The data set {meta.names[0]} is registered already. Choose another dataset_name, or allow it to be "
                "replaced with exist_ok=True."
            )
        self._metas.pop(key, None)
        self._metas[key] = meta

    def find(self, name: str) -> DatasetMeta | None:
        """The data set of this name, id or path; None when there is none."""
        metas = list(reversed(self._metas.values()))
        for meta in metas:
            if name == meta.dataset_name:
                return meta
        return next((meta for meta in metas if name in meta.names or _is_path_of(meta, name)), None)

    def find_local(self, path: Path) -> DatasetMeta | None:
        """The data set of which `path` is a copy, by the last part of its name: `.../self-cognition`.

        A single file counts only for a data set with a persona, whose placeholders must not be learnt.
        """
        last = path.name if path.is_dir() else path.name.partition(".")[0]
        for meta in reversed(self._metas.values()):
            ids = [
                name.rpartition("/")[2] for name in (meta.dataset_name, meta.ms_dataset_id, meta.hf_dataset_id) if name
            ]
            if last in ids and (path.is_dir() or meta.has_persona):
                return meta
        return None

    def with_infos(self, infos: Sequence[str]) -> DatasetRegistry:
        """A registry that has the data sets of `--custom_dataset_info` too. Raises DataError, UsageError."""
        registry = DatasetRegistry()
        registry._metas = dict(self._metas)
        for info in infos:
            for meta in read_dataset_info(info):
                registry.add(meta)
        return registry


REGISTRY = DatasetRegistry(BUILT_IN)
"""The data sets of this process."""


def register_dataset(meta: DatasetMeta, *, exist_ok: bool = False) -> None:
    """Give a data set a name for `--dataset`. Raises UsageError when it is taken and `exist_ok` is not set."""
    REGISTRY.add(meta, exist_ok=exist_ok)


def register_dataset_info(
    dataset_info: str | Path | list[dict[str, object]], *, exist_ok: bool = False
) -> list[DatasetMeta]:
    """Register the data sets of a JSON file, of JSON text, or of a list of entries; returns them.

    Raises DataError for an entry that cannot be understood, UsageError for a name that is taken.
    """
    metas = read_dataset_info(dataset_info)
    for meta in metas:
        REGISTRY.add(meta, exist_ok=exist_ok)
    return metas


def chosen_subsets(meta: DatasetMeta, asked: Sequence[str], shown: object) -> list[SubsetDataset]:
    """The subsets that are read when `asked` stands behind the colon.

    Nothing: the only one, or `default`. `all`: every one that is not weak, unless one is called so. A name that is not
    registered is a subset of the repository that needs nothing of its own.
    Raises DataError when nothing was asked for and there are several, none of them `default`.
    """
    parts = {part.name: part for part in meta.parts}
    if not asked:
        if len(parts) == 1:
            return list(parts.values())
        if "default" in parts:
            return [parts["default"]]
        raise DataError(f"{shown} has several subsets. Choose with :name, of {', '.join(parts)}, or take :all.")
    if tuple(asked) == ("all",) and "all" not in parts:
        return [part for part in parts.values() if not part.is_weak_subset]
    return [parts.get(name) or SubsetDataset(name) for name in asked]


def preparation(meta: DatasetMeta, subset: SubsetDataset) -> Prepare | None:
    """What prepares the rows of a subset; None when their columns say what they are."""
    own = subset.preprocess_func is not None or subset.columns is not None or subset.messages is not None
    chosen = subset if own else meta
    function = chosen.preprocess_func
    if isinstance(function, str):
        function = PREPARATIONS[function]
    if function is None and chosen.messages is not None:
        return MessagesPreprocessor(columns=chosen.columns, **chosen.messages)
    if function is None and chosen.columns is not None:
        return AutoPreprocessor(columns=chosen.columns)
    return function


def _is_path_of(meta: DatasetMeta, name: str) -> bool:
    if meta.dataset_path is None:
        return False
    return exists(name) and Path(name).expanduser().resolve() == Path(meta.dataset_path).expanduser().resolve()
