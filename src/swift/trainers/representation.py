"""This file knows how a batch of a task other than writing becomes a loss: classification, embedding, ranking.

Axes: R rows of a batch, N sequences, K sequences of the row with the most, C outputs of a classification, E channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback
from typing_extensions import override

from swift.core.labels import IGNORED
from swift.data.collate import FILLING
from swift.models.heads import Head
from swift.models.sentence import describe
from swift.trainers.adapters import penalty
from swift.trainers.arguments import Arguments
from swift.trainers.base import SwiftTrainer
from swift.trainers.best import check_best_metric
from swift.trainers.evaluation import NAMES, measure_of, plugin_of
from swift.trainers.feed import Companions, Feed
from swift.trainers.objectives import Objective, Outputs


@dataclass(frozen=True)
class Goal:
    """What a model shall learn: what is made of its states, the loss of that, and what evaluation reports beside."""

    head: Head
    objective: Objective
    eval_metric: str | None


class RepresentationTrainer(SwiftTrainer):
    """Learns classes, values, similarities or relevances of whole texts.

    The loss of an optimizer step is the mean over all things that the objective counts in its batches, so that 4 x 1
    and 1 x 4 rows are one training, unless rows are candidates of each other.
    """

    def __init__(self, model: nn.Module, args: Arguments, feed: Feed, companions: Companions,
                 goal: Goal, callbacks: list[TrainerCallback]) -> None:  # fmt: skip
        self.head, self.objective = goal.head, goal.objective
        self.measure = measure_of(goal.eval_metric, goal.head, goal.objective)
        plugin = plugin_of(goal.eval_metric)
        self.plugin = None if plugin is None else plugin(args, self)
        names = NAMES.get(goal.eval_metric or "", ())
        check_best_metric(args, None if plugin else ("loss", *(["acc"] if self.objective.right else []), *names))
        super().__init__(model, args, feed, companions, self.metrics, callbacks)

    @override
    def num_items(self, batch: dict[str, Any]) -> int:
        """What the objective counts in a batch."""
        return self.objective.count(batch["labels"], tuple(batch["group_sizes"].tolist()))

    @override
    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: Tensor | int | None = None) -> Any:  # fmt: skip
        """The losses of this batch, summed, over the number of all things they are a mean over in the optimizer step.

        Where rows are candidates of each other, those of all processes are, and every process computes the losses of
        all rows, with the gradient of its own. The gradients of all processes together are then those of the whole, and
        because their mean is taken, each is multiplied by the number of processes.

        Processes that share rows have the outputs of all of these, and count as one.
        """
        outputs = self.outputs(model, inputs)
        count = num_items_in_batch if num_items_in_batch is not None else self.num_items(inputs)
        readers = self.accelerator.num_processes if self.mesh is None else self.mesh.rows
        if self.objective.sees_other_rows and readers > 1 and model.training:
            total = count if self.args.average_tokens_across_devices else count * readers
            value = self.objective.losses(self._of_all(outputs)).sum() / total
            loss = value + (readers - 1) * (value - value.detach())
        else:
            loss = self.objective.losses(outputs).sum() / count
            if self.args.average_tokens_across_devices:
                loss = loss * readers
        if model.training:
            loss = loss + penalty(self.model, self.current_gradient_accumulation_steps)  # type: ignore[arg-type]  # a trainer has a model
        if model.training and self.objective.right is not None:
            self.record("acc", *self.objective.right(outputs))
        return (loss, outputs) if return_outputs else loss

    def outputs(self, model: nn.Module, inputs: Mapping[str, Any]) -> Outputs:
        """What the model puts out for a batch."""
        fed = {name: value for name, value in inputs.items() if name != FILLING}
        values = self.head.outputs(model, fed, self.mesh)
        return Outputs(values, inputs["labels"], tuple(inputs["group_sizes"].tolist()))

    def _of_all(self, own: Outputs) -> Outputs:
        """The outputs of all processes in the order of their ranks; those of others carry no gradient.

        Of processes that share rows, the first one's are taken.
        """
        place, step = (
            (self.accelerator.process_index, 1) if self.mesh is None else (self.mesh.row, self.mesh.shape.size)
        )
        sizes = self._gathered(torch.tensor(own.sizes, device=own.values.device))[::step]
        values = self._gathered(own.values.detach())[::step]
        values[place] = own.values
        labels = self._gathered(own.labels)[::step]
        return Outputs(torch.cat(values), torch.cat(labels), tuple(torch.cat(sizes).tolist()))

    def _gathered(self, own: Tensor) -> list[Tensor]:
        """A tensor of every process, which may be of other lengths."""
        lengths: Any = self.accelerator.gather(torch.tensor([len(own)], device=own.device))
        padded: Any = self.accelerator.gather(self.accelerator.pad_across_processes(own, dim=0))
        pieces = padded.split(int(lengths.max()))
        return [piece[:length] for piece, length in zip(pieces, lengths.tolist(), strict=True)]

    # --------------------------------------------------------------------------------------------------- evaluation

    @override
    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool,
                        ignore_keys: list[str] | None = None) -> Any:  # fmt: skip
        """Row by row, so that rows which were repeated to fill a batch can be taken away again.

        Outputs [R, C] of a classifier, [R, K] of a reranker, [R, K, E] embeddings, with the sum of the losses of each row,
        what it is a mean over, and whether the row counts here, [R, 3]; and the labels, [R], [R, C], or [R, K]. -100
        stands where a row has no more.
        """
        with torch.no_grad(), self.compute_loss_context_manager():
            inputs = self._prepare_inputs(inputs)
            outputs = self.outputs(model, inputs)
            sums_R3 = self._sums(outputs, len(outputs.sizes) - int(inputs[FILLING].sum() if FILLING in inputs else 0))
        values = outputs.values
        if self.plugin is not None:
            values = self.plugin.preprocess_logits_for_metrics(values, outputs.labels)
        if self.head.task == "seq_cls":
            return None, (values, sums_R3), outputs.labels
        label_sizes = [_labels_of(size, self.head) for size in outputs.sizes]
        return None, (_by_row(values, outputs.sizes), sums_R3), _by_row(outputs.labels, label_sizes)

    def _sums(self, outputs: Outputs, real: int) -> Tensor:
        """Of each row of a batch the sum of its losses, what that is a mean over, and whether it counts, [R, 3].

        real: how many rows count; those behind them fill up the set. Of processes that share rows, one counts them.
        """
        sums_R3 = outputs.values.new_zeros(len(outputs.sizes), 3)
        if real == 0:
            return sums_R3
        sizes = outputs.sizes[:real]
        known = sum(_labels_of(size, self.head) for size in sizes)
        counted = Outputs(outputs.values[: sum(sizes)], outputs.labels[:known], sizes)
        losses = self.objective.losses(counted).float()
        if self.objective.owners is None:  # a loss of the batch as a whole: that of each of its rows
            sums_R3[:real, 0], sums_R3[:real, 1] = losses.sum(), 1
        else:
            owners = torch.tensor(self.objective.owners(counted), dtype=torch.int64, device=losses.device)
            sums_R3[:, :2].index_add_(0, owners, torch.stack([losses, torch.ones_like(losses)], dim=1))
        sums_R3[:real, 2] = float(self.mesh is None or self.mesh.leads)
        return sums_R3

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """The loss over the whole validation set, accuracy, and what the metric reports."""
        values, sums_R3 = (torch.as_tensor(each, dtype=torch.float64) for each in prediction.predictions)
        counts_R = sums_R3[:, 2] > 0
        outputs = _flat(values[counts_R], torch.as_tensor(prediction.label_ids)[counts_R], self.head)
        found = {"loss": float(sums_R3[counts_R, 0].sum() / sums_R3[counts_R, 1].sum().clamp(min=1))}
        if self.plugin is not None:
            asked = EvalPrediction(outputs.values.numpy(), outputs.labels.numpy())
            return {**found, **self.plugin.compute_metrics(asked)}
        if self.objective.right is not None:
            right, total = self.objective.right(outputs)
            found["acc"] = float(right / total.clamp(min=1))
        return found if self.measure is None else {**found, **self.measure(outputs)}

    # ------------------------------------------------------------------------------------------------------- saving

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As every checkpoint; an embedding also says how its states become a vector."""
        super()._save(output_dir, state_dict)
        if self.head.task == "embedding" and self.args.should_save:
            folder = Path(output_dir or self.args.output_dir or ".")
            describe(folder, self.head, self.model.config)  # type: ignore[union-attr,arg-type]  # an adapter passes it on


def _labels_of(size: int, head: Head) -> int:
    """How many labels a row of so many sequences has: an anchor has none, only its documents."""
    return size - 1 if head.task == "embedding" else size


def _by_row(values: Tensor, sizes: list[int] | tuple[int, ...]) -> Tensor:
    """What lies end to end, a row each, [R, K, ...]; shorter ones are filled up with -100."""
    parts = values.split(list(sizes))
    return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=IGNORED)  # type: ignore[arg-type]  # the labels of a task are all tensors


def _flat(values: Tensor, labels: Tensor, head: Head) -> Outputs:
    """Outputs that stand row by row, end to end again."""
    if head.task == "seq_cls":
        return Outputs(values, labels, (1,) * len(values))
    is_there_RK = labels != IGNORED
    if head.task == "embedding":
        with_anchor_RK = nn.functional.pad(is_there_RK, (1, 0), value=True)
        return Outputs(values[with_anchor_RK], labels[is_there_RK], tuple(with_anchor_RK.sum(1).tolist()))
    return Outputs(values[is_there_RK], labels[is_there_RK], tuple(is_there_RK.sum(1).tolist()))
