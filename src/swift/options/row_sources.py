"""This file knows what an argument of `--dataset` means: a name, which subsets of it, how many rows.

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
from swift.core.paths import exists, why_unusable

KINDS = (".jsonl", ".json", ".csv", ".txt", ".parquet")
"""Suffixes of the files that rows are read from."""
SHOWN = 100
"""Characters of a text that can be no name that a message shows."""
_HUB = re.compile(r"(hf|ms)::", re.IGNORECASE)


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
    if exists(argument):
        return Source(argument, argument, flag)
    prefix = _HUB.match(argument)
    hub = prefix[1].lower() if prefix else None
    rest = argument[prefix.end() :] if prefix else argument
    count = None
    if not exists(rest) and "#" in rest:
        rest, _, number = rest.rpartition("#")
        if not number.isascii() or not number.isdigit() or int(number) == 0:
            raise DataError(
                f"{flag} {argument}: the part behind # is the number of rows to take, a whole number from 1 "
                f"(got {number!r}), and no file of the whole name exists."
            )
        count = int(number)
    subsets = ""
    if not exists(rest):
        rest, _, subsets = rest.partition(":")
    if not rest:
        raise DataError(f"{flag} {argument!r} names no file, folder or data set.")
    why = why_unusable(rest)
    if why is not None:
        shown = argument if len(argument) <= SHOWN else f"{argument[:SHOWN]}..."
        raise DataError(f"{flag} {shown}: no file, folder or data set can be called that: {why}.")
    return Source(argument, rest, flag, hub, tuple(filter(None, subsets.split("/"))), count)  # type: ignore[arg-type]  # the pattern gives these hubs only


def looks_local(name: str) -> bool:
    """Whether a name that is not there was meant as a path, and not as the name of a repository."""
    return name.startswith(("/", ".", "~")) or "\\" in name or Path(name).suffix.lower() in KINDS
