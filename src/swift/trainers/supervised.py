"""This file knows how a supervised batch becomes a loss: forward pass, learnt positions, cross-entropy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback
from typing_extensions import override

from swift.core.errors import UsageError
from swift.losses.reduce import sequence_of_packed
from swift.losses.supervised import ACCURACIES, IGNORED, Scores, predicted, score
from swift.options.training import TrainingOptions
from swift.trainers.adapters import penalty
from swift.trainers.arguments import Arguments
from swift.trainers.base import Companions, Feed, SwiftTrainer
from swift.trainers.best import check_best_metric

NOT_OF_THE_MODEL = ("labels", "loss_weights")


class SupervisedTrainer(SwiftTrainer):
    """Learns the labels of its samples: `pt` and `sft`."""

    def __init__(self, model: nn.Module, args: Arguments, feed: Feed, companions: Companions,
                 options: TrainingOptions, callbacks: list[TrainerCallback]) -> None:  # fmt: skip
        self.accuracy_name = f"{options.acc_strategy}_acc"
        self.accuracy = ACCURACIES[options.acc_strategy]
        self.keeps_few_logits = keeps_few_logits(model, options.use_logits_to_keep)
        check_best_metric(args, ("loss", self.accuracy_name))
        super().__init__(model, args, feed, companions, self.metrics, callbacks)

    @override
    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: Tensor | int | None = None) -> Any:  # fmt: skip
        """The weighted losses of this batch, summed, over the learnt tokens of the whole optimizer step.

        When tokens are averaged over processes, the count is that of all of them: times their number, because their
        gradients are averaged.
        """
        scores = self.scores(model, inputs)
        count = num_items_in_batch if num_items_in_batch is not None else scores.tokens.sum().clamp(min=1)
        loss = scores.loss.sum() / count
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        if model.training:
            loss = loss + penalty(self.model, self.current_gradient_accumulation_steps)  # type: ignore[arg-type]
            self.record(self.accuracy_name, *self.accuracy(scores.tokens, scores.correct))
        return (loss, scores) if return_outputs else loss

    def scores(self, model: nn.Module, inputs: dict[str, Any]) -> Scores:
        """Run the model, and compare what it says with the labels, where there are any.

        Logits are computed only for the columns in which some row learns, exactly the learnt positions when there is
        one row. There is no cache: with one, packed sequences would see each other.
        """
        targets_BT = predicted(inputs["labels"])
        fed = {name: value for name, value in inputs.items() if name not in NOT_OF_THE_MODEL}
        columns_K = (targets_BT != IGNORED).any(0).nonzero().squeeze(-1)
        if self.keeps_few_logits:
            fed["logits_to_keep"] = columns_K
        logits_BKV = model(**fed, use_cache=False).logits
        if not self.keeps_few_logits:
            logits_BKV = logits_BKV[:, columns_K]
        learns_BK = targets_BT[:, columns_K] != IGNORED
        whose_BT, count = sequences(inputs)
        weights_BT = inputs.get("loss_weights")
        return score(
            logits_BKV.flatten(0, 1) if len(logits_BKV) == 1 else logits_BKV[learns_BK],
            targets_BT[:, columns_K][learns_BK],
            None if weights_BT is None else weights_BT.roll(-1, 1)[:, columns_K][learns_BK],
            whose_BT[:, columns_K][learns_BK],
            count,
            self.args.label_smoothing_factor,
        )

    @override
    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool,
                        ignore_keys: list[str] | None = None) -> tuple[None, Tensor, Tensor]:  # fmt: skip
        """Three sums per sequence of the batch, [S, 3], in place of logits; [S, 1] stands where labels are expected."""
        with torch.no_grad(), self.compute_loss_context_manager():
            sums_S3 = self.scores(model, self._prepare_inputs(inputs)).stacked()
        return None, sums_S3, sums_S3[:, 1:2]

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Loss per learnt token and accuracy over the whole validation set, whatever the size of its batches."""
        loss_S, tokens_S, correct_S = torch.as_tensor(prediction.predictions, dtype=torch.float64).unbind(1)
        right, total = self.accuracy(tokens_S, correct_S)
        return {
            "loss": float(loss_S.sum() / tokens_S.sum().clamp(min=1)),
            self.accuracy_name: float(right / total.clamp(min=1)),
        }


def sequences(inputs: dict[str, Any]) -> tuple[Tensor, int]:
    """Which sequence each token belongs to, [B, T], and how many sequences there are: rows, or those of a packed row."""
    input_ids_BT = inputs["input_ids"]
    if "cu_seq_lens_q" in inputs:
        return sequence_of_packed(inputs["cu_seq_lens_q"])[None], len(inputs["cu_seq_lens_q"]) - 1
    rows_B1 = torch.arange(len(input_ids_BT), device=input_ids_BT.device)[:, None]
    return rows_B1.expand_as(input_ids_BT), len(input_ids_BT)


def keeps_few_logits(model: nn.Module, asked: bool | None) -> bool:
    """Whether logits are computed for learnt positions only: as `--use_logits_to_keep` says, else where it works."""
    works = "logits_to_keep" in inspect.signature(_innermost(model)).parameters
    if asked and not works:
        raise UsageError(
            f"--use_logits_to_keep true: {type(model).__name__} cannot leave out logits. Drop the flag, or set false."
        )
    return works if asked is None else asked


def _innermost(model: nn.Module) -> Callable[..., Any]:
    """The forward pass of the model itself, inside an adapter."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return inner.forward  # type: ignore[no-any-return,union-attr]
