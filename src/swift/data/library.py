"""This file knows what a data set of the command line consists of: files, and what their rows need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from swift.catalog.datasets import DatasetMeta, SubsetDataset
from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.core.paths import exists
from swift.data.reading import PLAIN, Recipe
from swift.data.registry import REGISTRY, DatasetRegistry, chosen_subsets, preparation
from swift.data.sources import source_files
from swift.hub.datasets import fetch
from swift.options.data import DataOptions
from swift.options.row_sources import Source, looks_local, parse_source


@dataclass(frozen=True)
class HubAccess:
    """How hubs are asked for data sets.

    use_hf: Hugging Face rather than ModelScope, where an argument does not say itself (`hf::`, `ms::`).
    token: for private and gated repositories. force: whether what was downloaded is downloaded again.
    """

    use_hf: bool = False
    token: str | None = field(default=None, repr=False)
    force: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """A file to be read, and what its rows need."""

    file: Path
    recipe: Recipe = PLAIN


class Library:
    """Where the data sets of a run are looked up: on this machine, among the registered ones, on a hub.

    A data set is looked up once, so that every use of it sees the same files.
    """

    def __init__(self, registry: DatasetRegistry, access: HubAccess) -> None:
        self._registry = registry
        self._access = access
        self._readings: dict[Source, list[Reading]] = {}

    @classmethod
    def of(cls, options: DataOptions, access: HubAccess | None = None) -> Library:
        """That of these options, with every data set of theirs found, before anything is read.

        Raises DataError for data sets that are not there, DataError or UsageError for `--custom_dataset_info`.
        """
        access = access or HubAccess()
        if options.download_mode == "force_redownload":
            access = replace(access, force=True)
        library = cls(REGISTRY.with_infos(options.custom_dataset_info), access)
        faults = []
        for flag, arguments in (("--dataset", options.dataset), ("--val_dataset", options.val_dataset)):
            for argument in arguments:
                try:
                    library.readings(parse_source(argument, flag))
                except DataError as error:
                    faults.append(str(error))
        if faults:
            raise DataError("\n".join(faults))
        return library

    def readings(self, source: Source) -> list[Reading]:
        """The files of one argument of `--dataset`, in order. Raises DataError when there is no such data set."""
        if source not in self._readings:
            self._readings[source] = readings_of(source, self._registry, self._access)
        return self._readings[source]


def readings_of(source: Source, registry: DatasetRegistry, access: HubAccess) -> list[Reading]:
    """The files of one argument of `--dataset`, in order; a file may stand there once for each of several subsets.

    What exists on this machine is read from there; else a registered data set or a repository of a hub is downloaded.
    Raises DataError when there is no such data set.
    """
    meta = registry.find(source.name)
    if source.hub is None and exists(source.name):
        copied = meta or registry.find_local(source.path)
        return _local(source, source.path, copied)
    if meta is None and source.hub is None and looks_local(source.name):
        raise DataError(f"{source}: there is no file or folder {source.name}.")
    if meta is not None and meta.dataset_path is not None and source.hub is None:
        path = Path(meta.dataset_path).expanduser()
        if not path.exists():
            raise DataError(f"{source}: the data set is registered with the path {path}, where there is nothing.")
        return _local(source, path, meta)
    return _remote(source, meta, access)


def _local(source: Source, path: Path, meta: DatasetMeta | None) -> list[Reading]:
    if meta is None:
        return [Reading(file) for file in source_files(source, path, source.subsets)]
    if meta.names and not meta.has_persona and source.name not in meta.names:
        get_logger().info("%s: taken for a copy of the registered data set %s", source, meta.names[0])
    parts = _parts(source, meta, path)
    return [each for part in parts for each in _prepared(meta, part, _local_files(source, path, meta, part))]


def _parts(source: Source, meta: DatasetMeta, path: Path) -> list[SubsetDataset]:
    """The subsets to read of a folder or file; a name must be registered or lie in the folder."""
    parts = chosen_subsets(meta, source.subsets, source)
    known = {part.name for part in meta.parts}
    there = {entry.name if entry.is_dir() else entry.stem for entry in path.iterdir()} if path.is_dir() else set()
    for part in parts:
        if part.name not in known | there:
            listed = ", ".join([*(part.name for part in meta.parts), "all", *sorted(there - known)])
            raise DataError(f"{source}: no subset {part.name!r}. There are: {listed}.")
    return parts


def _local_files(source: Source, path: Path, meta: DatasetMeta, part: SubsetDataset) -> list[Path]:
    """The files of a subset: of its folder, or of the whole where its folder is not there or it has none."""
    if meta.load_function is not None:
        return _loaded(source, meta, part)
    if path.is_file():
        return [path]
    splits = tuple(part.split or meta.split)
    has_folder = any((entry.name if entry.is_dir() else entry.stem) == part.on_hub for entry in path.iterdir())
    if not has_folder and part.on_hub != "default" and len({each.on_hub for each in meta.parts}) > 1:
        raise DataError(f"{source}: the folder {path} has no folder or file {part.on_hub} for the subset {part.name}.")
    return source_files(source, path, (part.on_hub,) if has_folder else (), splits)


def _remote(source: Source, meta: DatasetMeta | None, access: HubAccess) -> list[Reading]:
    hub: Literal["hf", "ms"] = source.hub or ("hf" if access.use_hf else "ms")
    if meta is None:
        names: Sequence[str | None] = source.subsets or (None,)
        return [Reading(file) for name in names for file in _download(source.name, hub, name, ("train",), access)]
    dataset_id = meta.hf_dataset_id if hub == "hf" else meta.ms_dataset_id
    readings = []
    for part in chosen_subsets(meta, source.subsets, source):
        if meta.load_function is not None:
            files = _loaded(source, meta, part)
        elif dataset_id is None:
            raise DataError(_elsewhere(source, meta, hub))
        else:
            subset = None if part.on_hub == "default" else part.on_hub
            files = _download(dataset_id, hub, subset, tuple(part.split or meta.split), access)
        readings += _prepared(meta, part, files)
    return readings


def _elsewhere(source: Source, meta: DatasetMeta, hub: str) -> str:
    hubs = {
        "hf": ("Hugging Face", "--use_hf true, or hf:: in front of it"),
        "ms": ("ModelScope", "ms:: in front of it"),
    }
    other = "ms" if hub == "hf" else "hf"
    has_other = meta.ms_dataset_id if other == "ms" else meta.hf_dataset_id
    advice = f" It is on {hubs[other][0]}: use {hubs[other][1]}." if has_other else ""
    return f"{source}: the registered data set {meta.names[0]} has no id on {hubs[hub][0]}.{advice}"


def _download(dataset_id: str, hub: str, subset: str | None, splits: tuple[str, ...], access: HubAccess) -> list[Path]:
    """The files of a subset, split after split."""
    files: list[Path] = []
    for split in splits:
        files += fetch(
            dataset_id,
            use_hf=hub == "hf",
            revision=None,
            subset=subset,
            split=split,
            token=access.token,
            force=access.force,
        )
    return files


def _loaded(source: Source, meta: DatasetMeta, part: SubsetDataset) -> list[Path]:
    """The files that the data set's own function names."""
    assert meta.load_function is not None, "only called for data sets that have one"
    files = [Path(file).expanduser() for file in meta.load_function(meta, part)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        found = f"{missing[0]}, which is no file" if missing else "no files"
        raise DataError(f"{source}: the load_function of {meta.names[0]} gives {found}.")
    return files


def _prepared(meta: DatasetMeta, part: SubsetDataset, files: list[Path]) -> list[Reading]:
    recipe = Recipe(preparation(meta, part), meta.has_persona)
    return [Reading(file, recipe) for file in files]
