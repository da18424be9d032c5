"""This file knows how samples are kept: as a few flat arrays, in memory or in files that are mapped into it.

A sample takes five bytes per token. In files they take no memory of the process: the system reads in what is looked at
and drops it again when memory is short.

Axes: S all tokens of a store, N samples, R rows.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray
from torch.utils.data import Dataset

from swift.chat.render import Sample
from swift.core.labels import IGNORED
from swift.data.truncate import Strategy, truncate

_TYPES = {
    "tokens": numpy.int32,
    "learnt": numpy.bool_,
    "lengths": numpy.int32,
    "learnt_counts": numpy.int32,
    "samples": numpy.int32,
    "weights": numpy.float32,
    "weighted": numpy.int32,
    "extras": numpy.uint8,
    "extra_lengths": numpy.int32,
    "texts": numpy.uint8,
    "text_lengths": numpy.int32,
}  # fmt: skip
"""Array of `Packed` -> type of its elements, and the file it is kept in."""


@dataclass(frozen=True)
class Packed:
    """The samples of some rows, end to end.

    tokens: [S], the ids of all tokens.
    learnt: [S], whether the token is its own label.
    lengths: [N], the tokens of each sample. learnt_counts: [N], those of them that are learnt.
    samples: [R], the samples of each row; most have one, rows that were left out none.
    weights: the weights of those samples that have some, end to end.
    weighted: [N], the number of weights of each sample: its length or 0.
    extras: `Sample.extra` of those samples where it is not empty, as JSON, end to end.
    extra_lengths: [N], the bytes of each of them or 0.
    texts: the rows themselves as JSON, end to end, where they are kept. text_lengths: [R], the bytes of each or 0.
    """

    tokens: NDArray[numpy.int32]
    learnt: NDArray[numpy.bool_]
    lengths: NDArray[numpy.int32]
    learnt_counts: NDArray[numpy.int32]
    samples: NDArray[numpy.int32]
    weights: NDArray[numpy.float32]
    weighted: NDArray[numpy.int32]
    extras: NDArray[numpy.uint8]
    extra_lengths: NDArray[numpy.int32]
    texts: NDArray[numpy.uint8]
    text_lengths: NDArray[numpy.int32]


def pack(rows: Sequence[Sequence[Sample]], texts: Sequence[dict[str, Any]] = ()) -> Packed:
    """The samples of some rows, end to end, and the rows themselves where they are kept: as many, or none."""
    samples = list(chain.from_iterable(rows))
    tokens = numpy.asarray(_flat("i", [sample.input_ids for sample in samples]), dtype=numpy.int32)
    labels = numpy.asarray(_flat("i", [sample.labels for sample in samples]), dtype=numpy.int32)
    learnt = labels != IGNORED
    lengths = numpy.array([len(sample.input_ids) for sample in samples], dtype=numpy.int32)
    borders = borders_of(lengths)
    learnt_before = borders_of(learnt)[borders]
    assert not learnt[borders[:-1]].any(), "the first token of a sample has nothing before it to be learnt from"
    assert (labels[learnt] == tokens[learnt]).all(), "a learnt token must be its own label"
    weights = [sample.weights or [] for sample in samples]
    extras = [_as_json(sample.extra) for sample in samples]
    kept = [_as_json(text) for text in texts or [{}] * len(rows)]
    return Packed(
        tokens=tokens,
        learnt=learnt,
        lengths=lengths,
        learnt_counts=numpy.diff(learnt_before).astype(numpy.int32),
        samples=numpy.array([len(row) for row in rows], dtype=numpy.int32),
        weights=numpy.asarray(_flat("f", weights), dtype=numpy.float32),
        weighted=numpy.array([len(each) for each in weights], dtype=numpy.int32),
        extras=numpy.frombuffer(b"".join(extras), dtype=numpy.uint8),
        extra_lengths=numpy.array([len(each) for each in extras], dtype=numpy.int32),
        texts=numpy.frombuffer(b"".join(kept), dtype=numpy.uint8),
        text_lengths=numpy.array([len(each) for each in kept], dtype=numpy.int32),
    )


def _flat(kind: str, lists: Sequence[list[Any]]) -> array[Any]:
    """Numbers end to end, as an array of machine numbers: the quickest way from lists to numpy."""
    flat = array(kind)
    for numbers in lists:
        flat.fromlist(numbers)
    return flat


def _as_json(extra: dict[str, Any]) -> bytes:
    return json.dumps(extra, ensure_ascii=False, default=_named).encode("utf-8", "surrogatepass") if extra else b""


def _named(value: Any) -> Any:
    """What JSON has no word for: bytes, which come back as they were, and times and the like, which become text."""
    return {_BYTES: value.hex()} if isinstance(value, bytes) else str(value)


_BYTES = "$bytes"


def _unnamed(value: dict[str, Any]) -> Any:
    return bytes.fromhex(value[_BYTES]) if value.keys() == {_BYTES} else value


# --------------------------------------------------------------------------------------------------------------- stores


class Store(Protocol):
    """Samples by their number, from 0."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """[N], the tokens of each sample."""
        ...

    @property
    def learnt_counts(self) -> NDArray[numpy.int64]:
        """[N], the learnt tokens of each sample."""
        ...

    def sample(self, index: int) -> Sample:
        """Sample `index`."""
        ...

    def arrays(self, index: int) -> tuple[NDArray[numpy.int32], NDArray[numpy.bool_]]:
        """The tokens of sample `index`, and which of them are learnt; only to be read."""
        ...


class SampleStore:
    """Samples as they were packed; sample i is tokens[borders[i]:borders[i + 1]].

    folder: where they lie, None for samples in memory. A store of a folder is sent to other processes by its path.
    borders: int64 [N + 1]; row_borders: int64 [R + 1], where the samples of each row begin.
    """

    def __init__(self, packed: Packed, folder: Path | None = None) -> None:
        self._packed = packed
        self.folder = folder
        self.tokens = packed.tokens
        self.learnt = packed.learnt
        self.borders = borders_of(packed.lengths)
        self.row_borders = borders_of(packed.samples)
        self._weight_borders = borders_of(packed.weighted) if len(packed.weights) else None
        self._extra_borders = borders_of(packed.extra_lengths) if len(packed.extras) else None
        self._text_borders = borders_of(packed.text_lengths) if len(packed.texts) else None

    @classmethod
    def open(cls, folder: Path) -> SampleStore:
        """The store that a `StoreWriter` has left in a folder."""
        return cls(Packed(**{name: _mapped(folder / f"{name}.bin", dtype) for name, dtype in _TYPES.items()}), folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return (SampleStore.open, (self.folder,)) if self.folder else (SampleStore, (self._packed,))

    def __len__(self) -> int:
        return len(self.borders) - 1

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """[N], the tokens of each sample."""
        return numpy.diff(self.borders)

    @property
    def learnt_counts(self) -> NDArray[numpy.int64]:
        """[N], the learnt tokens of each sample."""
        return self._packed.learnt_counts.astype(numpy.int64)

    def sample(self, index: int) -> Sample:
        """Sample `index` as it was put in."""
        place = slice(self.borders[index], self.borders[index + 1])
        tokens = self.tokens[place]
        weights = _part(self._packed.weights, self._weight_borders, index)
        extra = _part(self._packed.extras, self._extra_borders, index)
        return Sample(
            input_ids=tokens.tolist(),
            labels=numpy.where(self.learnt[place], tokens, IGNORED).tolist(),
            weights=None if weights is None else weights.tolist(),
            extra={} if extra is None else json.loads(extra.tobytes(), object_hook=_unnamed),
        )

    def arrays(self, index: int) -> tuple[NDArray[numpy.int32], NDArray[numpy.bool_]]:
        """The tokens of sample `index`, and which of them are learnt; only to be read."""
        place = slice(self.borders[index], self.borders[index + 1])
        return self.tokens[place], self.learnt[place]

    @property
    def num_rows(self) -> int:
        """R, the rows the samples are made of."""
        return len(self.row_borders) - 1

    def row(self, index: int) -> dict[str, Any]:
        """Row `index` itself, in the messages format; {} when the rows were not kept."""
        text = _part(self._packed.texts, self._text_borders, index)
        return {} if text is None else json.loads(text.tobytes(), object_hook=_unnamed)


class JoinedStore:
    """Several stores, numbered through."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        self._borders = borders_of([len(store) for store in stores])

    def __len__(self) -> int:
        return int(self._borders[-1])

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """[N], the tokens of each sample."""
        return numpy.concatenate([store.lengths for store in self.stores])

    @property
    def learnt_counts(self) -> NDArray[numpy.int64]:
        """[N], the learnt tokens of each sample."""
        return numpy.concatenate([store.learnt_counts for store in self.stores])

    def sample(self, index: int) -> Sample:
        """Sample `index`."""
        store, number = self._own(index)
        return store.sample(number)

    def arrays(self, index: int) -> tuple[NDArray[numpy.int32], NDArray[numpy.bool_]]:
        """The tokens of sample `index`, and which of them are learnt; only to be read."""
        store, number = self._own(index)
        return store.arrays(number)

    def _own(self, index: int) -> tuple[Store, int]:
        number = int(numpy.searchsorted(self._borders, index, side="right")) - 1
        return self.stores[number], index - int(self._borders[number])


class CutStore:
    """The samples of a store, those of more than `max_length` tokens cut on one side when they are taken out."""

    def __init__(self, store: Store, max_length: int, strategy: Strategy) -> None:
        assert strategy in ("left", "right"), "what is left out or split is no longer one sample for one"
        self._store = store
        self._max_length = max_length
        self._strategy: Strategy = strategy

    def __len__(self) -> int:
        return len(self._store)

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """[N], the tokens of each sample."""
        return numpy.minimum(self._store.lengths, self._max_length)

    @property
    def learnt_counts(self) -> NDArray[numpy.int64]:
        """[N], the learnt tokens of each sample."""
        counts = self._store.learnt_counts.copy()
        for index in numpy.flatnonzero(self._store.lengths > self._max_length):
            counts[index] = self.sample(int(index)).learnt
        return counts

    def sample(self, index: int) -> Sample:
        """Sample `index`, cut."""
        [sample] = truncate(self._store.sample(index), self._max_length, self._strategy)
        return sample

    def arrays(self, index: int) -> tuple[NDArray[numpy.int32], NDArray[numpy.bool_]]:
        """The tokens of sample `index`, cut, and which of them are learnt."""
        sample = self.sample(index)
        return numpy.array(sample.input_ids, dtype=numpy.int32), numpy.array(sample.labels) != IGNORED


class SampleSet(Dataset[Sample]):
    """Samples in the order in which they are used; several places may share one stored sample."""

    def __init__(self, store: Store, order: Sequence[int] | NDArray[numpy.int64]) -> None:
        self.store = store
        self.order = numpy.asarray(order, dtype=numpy.int64)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Sample:
        return self.store.sample(int(self.order[index]))

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of every sample, in order."""
        return self.store.lengths[self.order].tolist()

    def describe(self) -> str:
        """Mean, deviation, extremes of the lengths and their number, in one line."""
        lengths = self.store.lengths[self.order]
        return (
            f"{lengths.mean():.1f}±{lengths.std():.1f} tokens, min={lengths.min()}, max={lengths.max()}, "
            f"size={len(lengths)}"
        )


# --------------------------------------------------------------------------------------------------------------- writing


class StoreWriter:
    """Writes samples into the files of a folder, some rows at a time, so that they are never in memory together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in _TYPES}

    def add(self, packed: Packed) -> None:
        """Write the samples of some rows behind those that are there."""
        for name, file in self._files.items():
            array: NDArray[Any] = getattr(packed, name)
            array.tofile(file)

    def close(self) -> None:
        """All is written; the folder can be opened as a store."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def borders_of(lengths: Sequence[int] | NDArray[Any]) -> NDArray[numpy.int64]:
    """[N + 1], where each part begins and the last one ends."""
    borders = numpy.zeros(len(lengths) + 1, dtype=numpy.int64)
    numpy.cumsum(lengths, out=borders[1:])
    return borders


def _part(values: NDArray[Any], borders: NDArray[numpy.int64] | None, index: int) -> NDArray[Any] | None:
    """Part `index` of what lies end to end; None when it is empty."""
    if borders is None or borders[index] == borders[index + 1]:
        return None
    return values[borders[index] : borders[index + 1]]


def _mapped(file: Path, dtype: Any) -> NDArray[Any]:
    """A file as an array, mapped and not read; an empty file cannot be mapped."""
    if not file.stat().st_size:
        return numpy.zeros(0, dtype)
    return numpy.memmap(file, dtype, mode="r").view(numpy.ndarray)
