"""This file knows how rows of tasks other than writing become a batch: their samples, their labels, and whose they are.

Axes: R rows, N samples of all rows, C labels of a classification, D documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swift.chat.render import Sample
from swift.data.collate import FILLING, Filled, Flattened, Padded
from swift.data.tasks import Aim, Classes

Item = Sample | list[Sample] | list[list[Sample]]
"""What a set gives: a sample, the samples of a row, or a pack of either."""


@dataclass(frozen=True)
class TaskBatch:
    """Makes batches for the trainer of `aim`.

    A batch has what `tokens` makes of all samples, row after row, without the labels of tokens; `group_sizes`, int64
    [R], the samples of each row; and `labels`:

        seq_cls      the class, int64 [N]; 1 for each class of a sample and 0 for the others, float32 [N, C]; values,
                     float32 [N, C]
        embedding    how alike each document is to its anchor, float32 [D]: of all samples but the first of each row
        rerankers    1 for each document that matches, 0 for others, float32 [N]

    Where some rows fill up the set, `filling` says of each row whether it does, bool [R].
    """

    tokens: Padded | Flattened | Filled
    aim: Aim

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """The rows, one behind the other, in their order."""
        rows = [row for item in items for row in self._rows(item)]
        batch = self.tokens([sample for row in rows for sample in row])
        filling = [FILLING in row[0].extra for row in rows]
        return {
            **batch,
            **({FILLING: torch.tensor(filling)} if any(filling) else {}),
            "labels": LABELS[self.aim.task](rows, self.aim.classes),
            "group_sizes": torch.tensor([len(row) for row in rows]),
        }

    def _rows(self, item: Item) -> list[list[Sample]]:
        if isinstance(item, Sample):
            return [[item]]
        if self.aim.is_grouped:
            return item if isinstance(item[0], list) else [item]  # type: ignore[list-item,return-value]  # items are alike
        return [[sample] for sample in item]  # type: ignore[list-item]  # a pack of samples


def _classes(rows: Sequence[Sequence[Sample]], classes: Classes | None) -> Tensor:
    assert classes is not None, "a classification knows its classes"
    labels = [sample.extra["label"] for row in rows for sample in row]
    if classes.problem == "single_label_classification":
        return torch.tensor(labels, dtype=torch.int64)
    if classes.problem == "regression":
        return torch.tensor(labels, dtype=torch.float32).reshape(len(labels), classes.num_labels)
    hot = torch.zeros(len(labels), classes.num_labels)
    for place, chosen in enumerate(labels):
        hot[place, chosen] = 1
    return hot


def _similarities(rows: Sequence[Sequence[Sample]], _: Classes | None) -> Tensor:
    return torch.tensor([sample.extra["label"] for row in rows for sample in row[1:]], dtype=torch.float32)


def _relevances(rows: Sequence[Sequence[Sample]], _: Classes | None) -> Tensor:
    return torch.tensor([sample.extra["label"] for row in rows for sample in row], dtype=torch.float32)


LABELS: dict[str, Callable[[Sequence[Sequence[Sample]], Classes | None], Tensor]] = {
    "seq_cls": _classes,
    "embedding": _similarities,
    "reranker": _relevances,
    "generative_reranker": _relevances,
}
"""Task -> the labels of a batch."""
