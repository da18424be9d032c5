"""This file knows which files of this machine a data set is read from."""

from __future__ import annotations

import re
from pathlib import Path

from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.data.files import READERS
from swift.hub.splits import DESCRIPTIONS, WORDS
from swift.options.row_sources import Source

_WORD = re.compile(r"[a-z]+")


def source_files(
    source: Source, path: Path, subsets: tuple[str, ...], splits: tuple[str, ...] = ("train",)
) -> list[Path]:
    """The files of a source at `path`: itself, or what the folder holds.

    A folder is searched to the bottom, in alphabetical order, hidden files and descriptions (`dataset_infos.json`)
    left out. Where the names of files say that they hold one of the `splits`, only such files count; else only those
    that name no split at all, if there are any. `subsets` are the names of folders or of files (without suffix) in it.

    Raises DataError when there is nothing that can be read.
    """
    if path.is_file():
        if subsets:
            raise DataError(f"{source}: {path} is a file and has no subsets; drop :{'/'.join(subsets)}.")
        return [path]
    chosen = [file for root in _subset_roots(source, path, subsets) for file in _data_files(root)]
    if not chosen:
        raise DataError(f"{source}: the folder holds no file of the kinds {', '.join(READERS)}.")
    used = _of_splits(chosen, path, splits)
    names = [str(file.relative_to(path)) for file in used]
    left = [str(file.relative_to(path)) for file in chosen if file not in set(used)]
    note = f"; not read, another split by their names: {_listed(left)}" if left else ""
    get_logger().info("%s: reading %s%s", source, _listed(names), note)
    return used


def _subset_roots(source: Source, folder: Path, subsets: tuple[str, ...]) -> list[Path]:
    """The folders or files that the subsets name; the folder itself when none is named."""
    if not subsets:
        return [folder]
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    roots = []
    for subset in subsets:
        found = [entry for entry in entries if (entry.name if entry.is_dir() else entry.stem) == subset]
        if not found:
            there = sorted({entry.name if entry.is_dir() else entry.stem for entry in entries})
            raise DataError(f"{source}: no subset {subset!r}. There are: {', '.join(there)}.")
        roots += found
    return roots


def _data_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() in READERS else []
    return [
        file
        for file in sorted(root.rglob("*"))
        if file.suffix.lower() in READERS
        and file.is_file()
        and file.name.lower() not in DESCRIPTIONS
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]


def _of_splits(files: list[Path], folder: Path, wanted: tuple[str, ...]) -> list[Path]:
    """The files of the wanted splits, split after split; else those that name none, else all."""
    named = {file: _split_of(file, folder) for file in files}
    chosen = [file for split in wanted for file in files if named[file] == WORDS.get(split, split)]
    return chosen or [file for file in files if named[file] is None] or files


def _split_of(file: Path, folder: Path) -> str | None:
    words = _WORD.findall(str(file.relative_to(folder).with_suffix("")).lower())
    return next((WORDS[word] for word in words if word in WORDS), None)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
