"""This file knows what an argument of `--dataset` means: which files, which subset, how many rows.

    [hf::|ms::] NAME [:subset1/subset2...] [#N]

NAME is a file, a folder or the name of a data set on a hub. What exists as it is written is taken as it is written,
even with a `#` or a `:` in it; else the last `#` cuts off the number and the first `:` the subsets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.data.files import READERS
from swift.hub.splits import DESCRIPTIONS, WORDS

_HUB = re.compile(r"(hf|ms)::", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Source:
    """One argument of `--dataset` or `--val_dataset`, taken apart.

    argument: as it was given.
    flag: the option it was given to; messages name both.
    name: the path or the name on a hub, without prefix, subsets and number.
    hub: the hub the prefix names, or None.
    subsets: what stands between `:` and `#`.
    count: how many rows are wanted, or None for all.
    """

    argument: str
    name: str
    flag: str = "--dataset"
    hub: Literal["hf", "ms"] | None = None
    subsets: tuple[str, ...] = ()
    count: int | None = None

    def __str__(self) -> str:
        return f"{self.flag} {self.argument}"

    @property
    def is_cached(self) -> bool:
        """Whether it names a folder of rows tokenized beforehand."""
        return self.flag in ("--cached_dataset", "--cached_val_dataset")

    @property
    def path(self) -> Path:
        """The name as a path; `~` is the home folder."""
        return Path(self.name).expanduser()


def parse_source(argument: str, flag: str = "--dataset") -> Source:
    """An argument taken apart. Raises DataError when it has no name or asks for no whole number of rows."""
    if _exists(argument):
        return Source(argument, argument, flag)
    prefix = _HUB.match(argument)
    hub = prefix[1].lower() if prefix else None
    rest = argument[prefix.end() :] if prefix else argument
    count = None
    if not _exists(rest) and "#" in rest:
        rest, _, number = rest.rpartition("#")
        if not number.isascii() or not number.isdigit() or int(number) == 0:
            raise DataError(
                f"{flag} {argument}: the part behind # is the number of rows to take, a whole number from 1 "
                f"(got {number!r}), and no file of the whole name exists."
            )
        count = int(number)
    subsets = ""
    if not _exists(rest):
        rest, _, subsets = rest.partition(":")
    if not rest:
        raise DataError(f"{flag} {argument!r} names no file, folder or data set.")
    return Source(argument, rest, flag, hub, tuple(filter(None, subsets.split("/"))), count)  # type: ignore[arg-type]  # the pattern gives these hubs only


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


def looks_local(name: str) -> bool:
    """Whether a name that is not there was meant as a path, and not as the name of a repository."""
    return name.startswith(("/", ".", "~")) or "\\" in name or Path(name).suffix.lower() in READERS


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False  # too long for a path, an unknown ~user, a NUL: no path in any case


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
