"""This file knows what a plugin's metric is given of a model that predicts tokens: what it keeps of them, row by row.

Axes: B rows of a batch, or 1 in which S sequences lie end to end; T tokens; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from swift.core.errors import UsageError
from swift.core.labels import IGNORED
from swift.trainers.evaluation import EvalMetrics


def kept(plugin: EvalMetrics, logits_BTV: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """What the plugin keeps of the logits of a batch, and the labels, both by sequence: [S, T, ...] and [S, T].

    As in transformers, the logits of a token predict the label of the next one; labels behind the end of a sequence are
    -100.
    Raises UsageError when the plugin keeps something that does not belong to single tokens.
    """
    labels_BT: Tensor = inputs["labels"]
    values = plugin.preprocess_logits_for_metrics(logits_BTV, labels_BT)
    if not isinstance(values, Tensor) or values.shape[:2] != labels_BT.shape:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UsageError(
            f"--eval_metric: preprocess_logits_for_metrics of {type(plugin).__name__} must return a tensor that begins with "
            f"the axes of the labels, {tuple(labels_BT.shape)} (got {found})."
        )
    if "cu_seq_lens_q" not in inputs:
        return values, labels_BT
    lengths: list[int] = inputs["cu_seq_lens_q"].diff().tolist()
    values_ST, labels_ST = (
        pad_sequence(list(row.split(lengths)), batch_first=True, padding_value=IGNORED)
        for row in (values[0], labels_BT[0])
    )
    return values_ST, labels_ST
