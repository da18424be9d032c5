"""This file knows cached data sets: rows tokenized beforehand by `swift export --to_cached_dataset true`.

A folder of one holds the samples, the rows they were made of, and a manifest that says how they were made. Tokens mean
nothing to another tokenizer or template, so a run that would render otherwise is refused, with both named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from swift.chat.render import Sample
from swift.core.errors import DataError
from swift.data.report import Report
from swift.data.rows import BadRow, Row
from swift.data.samples import CutStore, SampleStore, Store, StoreWriter, pack
from swift.options.row_sources import Source
from swift.options.template import TemplateOptions

MANIFEST = "manifest.json"
FORMAT = 1
_ROWS_AT_ONCE = 1000

Mode = Literal["train", "rlhf", "kto"]


@dataclass(frozen=True)
class Manifest:
    """How the samples of a cached data set were made.

    mode: what they are for (`--template_mode`). parts: what the samples of each row are, in order.
    rendering: what `Renderer.identity` said.
    max_length: what rows were limited to, None for no limit.
    rows, samples, tokens: how many there are.
    """

    mode: Mode
    parts: tuple[str, ...]
    rendering: dict[str, Any]
    max_length: int | None
    rows: int
    samples: int
    tokens: int


def write_cached(folder: Path, rows: Iterable[tuple[list[Sample], dict[str, Any]]], *, mode: Mode,
                 parts: Sequence[str], rendering: Mapping[str, Any], max_length: int | None) -> Manifest:  # fmt: skip
    """Write rows, each with its samples, as a cached data set. Returns its manifest."""
    num_rows = num_samples = num_tokens = 0
    coming = iter(rows)
    with StoreWriter(folder) as writer:
        while some := list(islice(coming, _ROWS_AT_ONCE)):
            packed = pack([samples for samples, _ in some], [row for _, row in some])
            writer.add(packed)
            num_rows += len(some)
            num_samples, num_tokens = num_samples + len(packed.lengths), num_tokens + len(packed.tokens)
    manifest = Manifest(mode, tuple(parts), dict(rendering), max_length, num_rows, num_samples, num_tokens)
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    text = json.dumps({"format": FORMAT, "sizes": sizes, **vars(manifest)}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def read_manifest(source: Source) -> Manifest:
    """The manifest of a cached data set. Raises DataError when there is none, or when files of it are missing."""
    folder = source.path
    if not folder.is_dir():
        raise DataError(f"{source}: there is no folder {source.name}.")
    if not (folder / MANIFEST).is_file():
        inside = [name for name in ("train", "val") if (folder / name / MANIFEST).is_file()]
        hint = f" It holds {' and '.join(inside)}: name {folder / inside[0]}." if inside else ""
        raise DataError(
            f"{source}: {folder} is no cached data set, as swift export --to_cached_dataset true makes them.{hint}"
        )
    unreadable = DataError(f"{source}: {folder / MANIFEST} cannot be read. Export the data set again.")
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        form = found.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise unreadable from None
    if form != FORMAT:  # asked first: another form may hold other things
        raise DataError(f"{source}: it was written in form {form}, and this version reads {FORMAT}. Export it again.")
    try:
        sizes = found.pop("sizes")
        manifest = Manifest(**{**found, "parts": tuple(found["parts"])})
    except (KeyError, TypeError):
        raise unreadable from None
    for name, size in sizes.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise DataError(f"{source}: {folder / name} is missing or incomplete. Copy or export the data set again.")
    return manifest


def cached_rows(source: Source) -> Iterator[Row]:
    """The rows a cached data set was made of, in order, for those who render by themselves. Raises DataError."""
    read_manifest(source)
    store = SampleStore.open(source.path)
    for index in range(store.num_rows):
        yield Row(store.row(index), str(source.path), index + 1)


class CachedStock:
    """The samples of one cached data set, those that are too long left out or cut as the run says.

    source: as it was asked for. first: the number of its first row among all rows of the run.
    length: how many of its rows are used.
    store: its samples.

    Raises DataError when it cannot be used in this run.
    """

    def __init__(self, source: Source, first: int, rendering: Mapping[str, Any], template: TemplateOptions,
                 report: Report, mode: Mode = "train") -> None:  # fmt: skip
        self.source = source
        self.first = first
        manifest = read_manifest(source)
        problems = differences(manifest, rendering, mode)
        if problems:
            listed = "".join(f"\n  {problem}" for problem in problems)
            raise DataError(
                f"{source} was prepared for another run:{listed}\nUse what it was prepared with, or export it again."
            )
        self._whole = SampleStore.open(source.path)
        self.store: Store = self._whole
        self._rows = numpy.arange(self._whole.num_rows)
        report.read += self._whole.num_rows
        if template.max_length is not None:
            self._limit(template, template.max_length, report)
        self.length = len(self._rows)
        if not self.length:
            raise DataError(f"{source}: none of its {self._whole.num_rows} rows can be used:\n{report.causes()}")

    def prepare(self, used: NDArray[numpy.int64]) -> None:
        """Nothing is left to be done."""

    def samples_of(self, rows: NDArray[numpy.int64]) -> tuple[NDArray[numpy.int64], NDArray[numpy.int64]]:
        """Where the samples of these rows begin in the store, and how many each has."""
        stored = self._rows[rows - self.first]
        starts = self._whole.row_borders[stored]
        return starts, self._whole.row_borders[stored + 1] - starts

    def row(self, number: int) -> dict[str, Any]:
        """The row with this number, in the messages format."""
        return self._whole.row(int(self._rows[number - self.first]))

    def rows(self, numbers: NDArray[numpy.int64]) -> list[dict[str, Any]]:
        """These rows in the messages format, in this order."""
        return [self.row(number) for number in numbers.tolist()]

    def records(self, numbers: NDArray[numpy.int64]) -> list[Row]:
        """The rows with these numbers, with their places among all rows of the data set."""
        path, stored = str(self.source.path), self._rows[numbers - self.first].tolist()
        return [Row(self._whole.row(place), path, place + 1) for place in stored]

    def _limit(self, template: TemplateOptions, max_length: int, report: Report) -> None:
        """Leave out, or cut, rows with a sample of more than `max_length` tokens."""
        strategy, borders = template.truncation_strategy, self._whole.row_borders
        if strategy == "split":
            raise DataError(f"{self.source}: cached rows cannot be split (--truncation_strategy split).")
        longest = numpy.maximum.reduceat(self._whole.lengths, borders[:-1]) if len(borders) > 1 else borders[:0]
        is_out = longest > max_length
        too_long = numpy.flatnonzero(is_out).tolist()
        cut = CutStore(self._whole, max_length, strategy) if strategy in ("left", "right") else None
        for row in too_long:
            words = f"{longest[row]} tokens"
            if cut is None:
                report.leave_out(self._bad(row, f"longer than --max_length {max_length}", words))
            elif all(cut.sample(index).learnt for index in range(borders[row], borders[row + 1])):
                is_out[row] = False
                report.cut += 1
            else:
                report.drop(self._bad(row, f"nothing to learn within --max_length {max_length}", words))
        self._rows = numpy.flatnonzero(~is_out)
        if cut is not None and report.cut:
            self.store = cut

    def _bad(self, row: int, reason: str, detail: str) -> BadRow:
        return BadRow(str(self.source.path), row + 1, "", reason, detail)


def differences(manifest: Manifest, rendering: Mapping[str, Any], mode: Mode) -> list[str]:
    """What of the rendering of a cached data set is not that of this run, a phrase each."""
    problems = []
    if manifest.mode != mode:
        problems.append(f"--template_mode {manifest.mode}, and this run needs {mode}")
    was, here = manifest.rendering, rendering
    if was["tokenizer"] != here["tokenizer"]:
        problems.append(f"the tokenizer of {was['tokenizer_name']}, and this run has that of {here['tokenizer_name']}")
    if was["chat_template"] != here["chat_template"]:
        problems.append(f"{_template(was)}, and this run has {_template(here)}")
    for name, value in was["options"].items():
        if name in here["options"] and value != here["options"][name]:
            problems.append(f"--{name} {_typed(value)}, and this run has {_typed(here['options'][name])}")
    if was["configs"] != here["configs"]:
        problems.append("other files of --loss_scale")
    return problems


def _template(rendering: Mapping[str, Any]) -> str:
    if rendering["chat_template"] is None:
        return "no chat template (--use_chat_template false)"
    name = rendering["template"]
    text = f"the template {name}" if name else "the checkpoint's own chat template"
    return f"{text}, which begins {rendering['chat_template'][:60]!r}"


def _typed(value: Any) -> str:
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
