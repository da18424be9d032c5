"""This file knows how samples, or packs of samples, become a batch: padded to one length, or laid end to end.

Axes: B samples, T tokens of the longest sample, S tokens of all samples together.

A batch is a dictionary of tensors. Labels stand where their token stands (not shifted); -100 is never learnt. Columns
of the rows ride along only when they are asked for by name, so that nothing but tensors reaches a model by accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from swift.chat.render import Sample
from swift.core.labels import IGNORED

FILLING = "filling"
"""The mark in `Sample.extra` of a sample that fills up a set and does not count."""


@dataclass(frozen=True)
class Padded:
    """Samples side by side, the shorter ones filled up to the longest.

    A batch has `input_ids`, `attention_mask` and `labels`, int64 [B, T]; `loss_weights`, float32 [B, T], as soon as
    one sample has weights; `position_ids`, int64 [B, T], when the padding stands on the left, so that every sample
    counts from 0 wherever it begins.

    columns: the columns of `Sample.extra` the batch carries, each as a list of B values, None where a row has none.
    """

    pad_token_id: int
    side: Literal["left", "right"] = "right"
    columns: tuple[str, ...] = ()

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The samples, one row each, in their order."""
        longest = max(len(sample) for sample in samples)
        shape = (len(samples), longest)
        batch: dict[str, Any] = {
            "input_ids": torch.full(shape, self.pad_token_id, dtype=torch.int64),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, IGNORED, dtype=torch.int64),
        }
        if any(sample.weights is not None for sample in samples):
            batch["loss_weights"] = torch.zeros(shape, dtype=torch.float32)
        if self.side == "left":
            batch["position_ids"] = torch.zeros(shape, dtype=torch.int64)
        for row, sample in enumerate(samples):
            start = longest - len(sample) if self.side == "left" else 0
            place = (row, slice(start, start + len(sample)))
            batch["input_ids"][place] = torch.tensor(sample.input_ids)
            batch["attention_mask"][place] = 1
            batch["labels"][place] = torch.tensor(sample.labels)
            if "loss_weights" in batch:
                batch["loss_weights"][place] = torch.tensor(_weights(sample))
            if "position_ids" in batch:
                batch["position_ids"][place] = torch.arange(len(sample))
        return {**batch, **_columns(samples, self.columns)}


@dataclass(frozen=True)
class Flattened:
    """Samples laid end to end in one row, with no padding and no sample seeing another (`--padding_free`, `--packing`).

    Several packs of samples (`data/packing.py`) are one row as well, of the samples of all of them.

    A batch has `input_ids`, `labels` and `position_ids`, int64 [1, S], positions starting again at 0 with every
    sample; `loss_weights`, float32 [1, S], as soon as one sample has weights; `cu_seq_lens_q` and `cu_seq_lens_k`,
    int32 [B + 1], where each sample begins and the last one ends; `max_length_q` and `max_length_k`, the longest.

    There is no `attention_mask` on purpose: with one, or with a key-value cache, models of transformers do not look
    for restarting positions, and the samples would attend to each other. Call the model with `use_cache=False`.

    columns: the columns of `Sample.extra` the batch carries, each as a list of B values, None where a row has none.
    """

    columns: tuple[str, ...] = ()

    def __call__(self, items: Sequence[Sample] | Sequence[list[Sample]]) -> dict[str, Any]:
        """The samples, one behind the other, in their order."""
        samples = [sample for item in items for sample in (item if isinstance(item, list) else [item])]
        for sample in samples:
            assert sample.labels[0] == IGNORED, "the first token of a sample would be learnt from its neighbour"
        lengths = torch.tensor([len(sample) for sample in samples], dtype=torch.int32)
        borders = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        batch: dict[str, Any] = {
            "input_ids": torch.tensor([[token for sample in samples for token in sample.input_ids]]),
            "labels": torch.tensor([[label for sample in samples for label in sample.labels]]),
            "position_ids": torch.cat([torch.arange(len(sample)) for sample in samples])[None],
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": int(lengths.max()),
            "max_length_k": int(lengths.max()),
        }
        if any(sample.weights is not None for sample in samples):
            weights = [weight for sample in samples for weight in _weights(sample)]
            batch["loss_weights"] = torch.tensor([weights], dtype=torch.float32)
        return {**batch, **_columns(samples, self.columns)}


@dataclass(frozen=True)
class Filled:
    """As `Flattened`, with one more sequence at the end, of 1 to `multiple` tokens of padding that nobody learns.

    So the row can be cut into equal parts (`--sequence_parallel_size`). The sequence of padding is there in any case:
    batches of as many samples have as many sequences.

    Where some samples fill up the set, the batch says of each whether it does: `filling`, bool [B].
    """

    pad_token_id: int
    multiple: int
    columns: tuple[str, ...] = ()

    def __call__(self, items: Sequence[Sample] | Sequence[list[Sample]]) -> dict[str, Any]:
        """The samples, one behind the other, in their order, and the padding."""
        samples = [sample for item in items for sample in (item if isinstance(item, list) else [item])]
        missing = self.multiple - sum(len(sample) for sample in samples) % self.multiple
        padding = Sample([self.pad_token_id] * missing, [IGNORED] * missing)
        filling = torch.tensor([FILLING in sample.extra for sample in samples])
        batch = {**Flattened()([*samples, padding]), **_columns(samples, self.columns)}
        return {**batch, FILLING: filling} if filling.any() else batch


def _weights(sample: Sample) -> list[float]:
    """A weight per token: the sample's own, or 1 where a token is learnt and 0 elsewhere."""
    if sample.weights is not None:
        return sample.weights
    return [0.0 if label == IGNORED else 1.0 for label in sample.labels]


def _columns(samples: Sequence[Sample], names: tuple[str, ...]) -> dict[str, list[Any]]:
    return {name: [sample.extra.get(name) for sample in samples] for name in names}
