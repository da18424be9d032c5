"""This file knows what became of the rows: how many were used, which were left out and why, with one example each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from swift.core import environment
from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.data.rows import BadRow

_INDEX = re.compile(r"\[\d+\]")
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")


@dataclass
class Report:
    """The account of one loading.

    strict: whether the first row that cannot be used ends it (`--strict true`). Rows that are longer than
        `--max_length` are no mistake and never end it: leaving them out is what `--truncation_strategy delete` asks.
    read: records met, good and bad, of all data sets.
    dropped: cause -> how many records were left out for it, and the first of them.
    bad: the records among them that are a mistake, in the order in which they were met.
    cut: how many rows were too long and were cut, as `--truncation_strategy` says.
    train, val: samples that are used, where one row may give several.
    """

    strict: bool = False
    read: int = 0
    dropped: dict[str, tuple[int, BadRow]] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    cut: int = 0
    train: int = 0
    val: int = 0

    @property
    def num_dropped(self) -> int:
        """How many records were left out."""
        return sum(count for count, _ in self.dropped.values())

    def drop(self, row: BadRow) -> None:
        """Count a record that cannot be used. Raises DataError when that is an error (`--strict true`)."""
        if self.strict:
            raise DataError(
                f"{str(row).rstrip('.')}. (--strict true stops at the first such row; without it, such rows are left out.)"
            )
        self.bad.append(row)
        self.leave_out(row)

    def leave_out(self, row: BadRow) -> None:
        """Count a record that is left out on purpose."""
        cause = cause_of(row)
        count, first = self.dropped.get(cause, (0, row))
        self.dropped[cause] = (count + 1, first)

    def table(self) -> str:
        """Counts and causes, a line each, the most frequent cause first."""
        head = f"rows: {self.read} read"
        head += f", {self.cut} too long and cut" if self.cut else ""
        head += f", {self.num_dropped} left out" if self.dropped else ""
        head += f"; {self.train} samples to train on"
        head += f", {self.val} to validate on" if self.val else ""
        return f"{head}. Left out:\n{self.causes()}" if self.dropped else head

    def causes(self) -> str:
        """Every cause with its count and one example, a line each."""
        width = max((len(str(count)) for count, _ in self.dropped.values()), default=0)
        ordered = sorted(self.dropped.items(), key=lambda item: -item[1][0])
        return "\n".join(f"  {count:{width}}  {cause}, as {_example(row, cause)}" for cause, (count, row) in ordered)

    def log(self) -> None:
        """Say it, as a warning when rows were left out; the first process speaks for all, which hold the same rows."""
        if environment.rank() != 0:
            return
        say = get_logger().warning if self.dropped else get_logger().info
        say("%s", self.table())


def cause_of(row: BadRow) -> str:
    """What this record has in common with others that fail likewise: no indices, no numbers, no quotations."""
    if row.key_path:
        return f"{_INDEX.sub('[]', row.key_path)}: {row.reason}"
    return row.reason if row.detail else _PARTICULARS.sub("…", row.reason)


def _example(row: BadRow, cause: str) -> str:
    """The place of a record and what stood there; its reason too, where the cause does not say it in full."""
    if row.reason not in cause:
        return str(row)
    place = f"{row.file}:{row.line}" + (f": {row.key_path}" if row.key_path else "")
    return place + (f" ({row.detail})" if row.detail else "")
