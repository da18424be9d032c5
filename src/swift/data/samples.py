"""This file knows how many samples are kept in memory: as a few flat arrays, five bytes per token."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray
from torch.utils.data import Dataset

from swift.chat.render import Sample

_IGNORED = -100


@dataclass(frozen=True)
class SampleStore:
    """Samples laid end to end; sample i is tokens[borders[i]:borders[i + 1]].

    tokens: int32 [S], the ids of all tokens.
    learnt: bool [S], whether the token is its own label.
    borders: int64 [N + 1].
    weights: the weights of those samples that have some, float32.
    extras: `Sample.extra` of those samples where it is not empty.
    """

    tokens: NDArray[numpy.int32]
    learnt: NDArray[numpy.bool_]
    borders: NDArray[numpy.int64]
    weights: dict[int, NDArray[numpy.float32]]
    extras: dict[int, dict[str, Any]]

    def __len__(self) -> int:
        return len(self.borders) - 1

    def sample(self, index: int) -> Sample:
        """Sample `index` as it was put in."""
        place = slice(self.borders[index], self.borders[index + 1])
        tokens = self.tokens[place]
        weights = self.weights.get(index)
        return Sample(
            input_ids=tokens.tolist(),
            labels=numpy.where(self.learnt[place], tokens, _IGNORED).tolist(),
            weights=None if weights is None else weights.tolist(),
            extra=self.extras.get(index, {}),
        )


class SampleSet(Dataset[Sample]):
    """Samples in the order in which they are used; several places may share one stored sample."""

    def __init__(self, store: SampleStore, order: Sequence[int]) -> None:
        self.store = store
        self.order = numpy.asarray(order, dtype=numpy.int64)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Sample:
        return self.store.sample(int(self.order[index]))

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of every sample, in order."""
        return numpy.diff(self.store.borders)[self.order].tolist()

    def describe(self) -> str:
        """Mean, deviation, extremes of the lengths and their number, in one line."""
        lengths = numpy.diff(self.store.borders)[self.order]
        return (
            f"{lengths.mean():.1f}±{lengths.std():.1f} tokens, min={lengths.min()}, max={lengths.max()}, "
            f"size={len(lengths)}"
        )


class StoreBuilder:
    """Takes samples one by one and packs them."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._learnt = bytearray()
        self._borders = array("q", [0])
        self._weights: dict[int, NDArray[numpy.float32]] = {}
        self._extras: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._borders) - 1

    def add(self, sample: Sample) -> bool:
        """Keep a sample, unless it has no learnt token; says whether it was kept."""
        ids = numpy.array(sample.input_ids, dtype=numpy.int32)
        labels = numpy.array(sample.labels, dtype=numpy.int32)
        learnt = labels != _IGNORED
        if not learnt.any():
            return False
        assert not learnt[0], "the first token of a sample has nothing before it to be learnt from"
        assert (labels[learnt] == ids[learnt]).all(), "a learnt token must be its own label"
        if sample.weights is not None:
            self._weights[len(self)] = numpy.array(sample.weights, dtype=numpy.float32)
        if sample.extra:
            self._extras[len(self)] = sample.extra
        self._tokens.frombytes(ids.tobytes())
        self._learnt += learnt.tobytes()
        self._borders.append(len(self._tokens))
        return True

    def finish(self) -> SampleStore:
        """All samples that were kept."""
        return SampleStore(
            tokens=numpy.array(self._tokens, dtype=numpy.int32),
            learnt=numpy.frombuffer(bytes(self._learnt), dtype=numpy.bool_),
            borders=numpy.array(self._borders, dtype=numpy.int64),
            weights=self._weights,
            extras=self._extras,
        )
