"""This file knows how a supervised batch becomes a loss: forward pass, learnt positions, cross-entropy."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from typing_extensions import override

from swift.losses.objective import Objective
from swift.losses.supervised import ACCURACIES, Scores
from swift.models.stand_in import is_here
from swift.options.training import TrainingOptions
from swift.trainers.adapters import penalty
from swift.trainers.arguments import Arguments
from swift.trainers.base import SwiftTrainer
from swift.trainers.best import check_best_metric
from swift.trainers.channels import COLUMN, Channels, by_channel
from swift.trainers.custom_loss import CustomLoss
from swift.trainers.evaluation import plugin_of
from swift.trainers.feed import Companions, Feed
from swift.trainers.neftune import noise_on_embeddings
from swift.trainers.predictions import kept
from swift.trainers.replies import Replies
from swift.trainers.scoring import choose_way


class SupervisedTrainer(SwiftTrainer):
    """Learns the labels of its samples: `pt` and `sft`.

    Where `Replies` are among the callbacks, evaluation lets the model answer instead of measuring its loss.
    """

    def __init__(self, model: nn.Module, args: Arguments, feed: Feed, companions: Companions,
                 options: TrainingOptions, callbacks: list[TrainerCallback]) -> None:  # fmt: skip
        self.replies = next((each for each in callbacks if isinstance(each, Replies)), None)
        metric = plugin_of(options.eval_metric) if feed.val is not None and self.replies is None else None
        self.plugin = None if metric is None else metric(args, self)
        self.accuracy_name = f"{options.acc_strategy}_acc"
        self.accuracy = ACCURACIES[options.acc_strategy]
        self.objective = Objective(args.label_smoothing_factor, options.enable_dft_loss)
        self.aux_coef = options.router_aux_loss_coef
        self.channels = Channels(args.process_index) if options.enable_channel_loss else None
        super().__init__(model, args, feed, companions, self.metrics, callbacks)
        check_best_metric(args, self._reported(), prefixes=self._prefixes())
        self.custom: CustomLoss | None = None
        if options.loss_type is not None:
            self.custom = CustomLoss(options.loss_type, args, self, dft=options.enable_dft_loss)
        self.noise = options.neftune_noise_alpha
        self.neftune_noise_alpha = None  # transformers takes the length of a padded or packed row for a sequence's
        # a loss or a metric of one's own sees every logit
        few = False if self.custom or self.plugin else options.use_logits_to_keep
        divided = self.is_fsdp_enabled or self.twins > 1 or not is_here(model)
        self.way = choose_way(model, few, router=self.aux_coef > 0, divided=divided, mesh=self.mesh)

    def _reported(self) -> tuple[str, ...] | None:
        """The metrics of evaluation that are known beforehand; None when only a plugin knows."""
        if self.plugin is not None:
            return None
        measured = ("loss", self.accuracy_name) if self.replies is None else self.replies.names
        scores = self.benchmarks.names if self.benchmarks else ()
        return scores if not self.validates else None if measured is None else (*measured, *scores)

    def _prefixes(self) -> tuple[str, ...]:
        """How further metrics of evaluation begin: losses of channels, and the metrics of a benchmark that has several."""
        scores = self.benchmarks.names if self.benchmarks else ()
        return (*(["loss_"] if self.channels else []), *(f"{name}_" for name in scores))

    @override
    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: Tensor | int | None = None) -> Any:  # fmt: skip
        """The weighted losses of this batch, summed, over the learnt tokens of the whole optimizer step.

        When tokens are averaged over processes, the count is that of all of them: times their number, because their
        gradients are averaged. Processes that share a row count its tokens, and each sums its own part: the same without
        averaging, by the number of these. The loss that balances experts counts by the learnt tokens of its batch. It and
        a loss of one's own are those of a whole row on each process that shares it.
        """
        noisy = self.noise > 0 and model.training
        inner = self.accelerator.unwrap_model(model) if noisy else model
        with noise_on_embeddings(inner, inputs, self.noise, self.mesh) if noisy else nullcontext():
            loss, scores, outputs = self.losses(model, inputs, num_items_in_batch)
        sharers = 1 if self.mesh is None else self.mesh.shape.size
        averaged = self.accelerator.num_processes // self.twins  # gradients of parts of matrices are averaged by row
        processes = averaged if self.args.average_tokens_across_devices else sharers
        if self.custom is None:
            loss = loss * processes
        elif self.custom.divides:
            loss = loss * (processes / sharers)
        if self.aux_coef > 0:
            tokens = scores.tokens.sum()
            share = 1 if num_items_in_batch is None else processes / sharers * tokens / num_items_in_batch
            loss = loss + self.aux_coef * share * outputs.aux_loss.to(loss.device)
        if model.training:
            loss = loss + penalty(self.model, self.current_gradient_accumulation_steps)  # type: ignore[arg-type]  # a trainer has a model
            self._note(scores, outputs, inputs)
        return (loss, scores) if return_outputs else loss

    def _note(self, scores: Scores, outputs: Any, inputs: dict[str, Any]) -> None:
        """Add this batch to what the next log shows beside the loss."""
        self.record(self.accuracy_name, *self.accuracy(scores.tokens, scores.correct))
        if self.aux_coef > 0:
            tokens = scores.tokens.sum()
            self.record("aux_loss", outputs.aux_loss.detach().to(tokens.device) * tokens, tokens)
        if self.channels:
            names = self.channels.names(inputs[COLUMN])
            for key, numerator, denominator in by_channel(names, scores.loss, scores.tokens):
                self.record(key, numerator, denominator)

    def losses(self, model: nn.Module, inputs: dict[str, Any],
               num_items_in_batch: Tensor | int | None) -> tuple[Tensor, Scores, Any]:  # fmt: skip
        """The loss of a batch as a part of that of its step, or of the batch alone; its scores; the model's outputs.

        Of a row that is shared, scores are those of the whole row, and the loss is that of the tokens that are held here,
        or one of the user's own of the whole row.
        """
        if self.custom:
            batches = self.current_gradient_accumulation_steps if model.training else 1
            return self.custom.run(model, inputs, self.way, num_items_in_batch, batches)
        scores, outputs = self.way.run(model, inputs, self.objective)
        scores = self.whole(scores)
        count = num_items_in_batch if num_items_in_batch is not None else scores.tokens.sum().clamp(min=1)
        return scores.total / count, scores, outputs

    def whole(self, scores: Scores) -> Scores:
        """The scores of the sequences of a batch, those of a row that is shared added up over its processes.

        The last sequence of such a row is its padding, and is left out.
        """
        if self.mesh is None:
            return scores
        sums = torch.stack([scores.loss, scores.tokens, scores.correct])
        dist.all_reduce(sums, group=self.mesh.group)
        loss, tokens, correct = sums[:, :-1]
        return replace(scores, loss=loss, tokens=tokens, correct=correct)

    @override
    def evaluation_loop(self, dataloader: DataLoader[Any], description: str, prediction_loss_only: bool | None = None,
                        ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> EvalLoopOutput:  # fmt: skip
        """Go over the validation set: by its loss, or by what the model replies."""
        if self.replies is None:
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        self.model.eval()  # type: ignore[union-attr]  # there is a model; every step of training sets it back
        found = self.replies.evaluate(self)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        return EvalLoopOutput(numpy.empty(0), None, metrics, len(self.replies.asked))

    @override
    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool,
                        ignore_keys: list[str] | None = None) -> Any:  # fmt: skip
        """Sums per sequence of the batch in place of logits: loss, tokens, correct, and the two marks of its channel
        where these are told apart, [S, 3 or 5]; [S, 1] stands where labels are expected. For a plugin's metric, there is
        beside the sums what it keeps of the logits, [S, T, ...], and labels are labels, [S, T]."""
        with torch.no_grad(), self.compute_loss_context_manager():
            inputs = self._prepare_inputs(inputs)
            _, scores, outputs = self.losses(model, inputs, None)
        sums = torch.stack([scores.loss, scores.tokens, scores.correct], dim=1)
        if self.channels:
            sums = torch.cat([sums, self.channels.marks(inputs[COLUMN], sums)], dim=1)
        if self.plugin is not None:
            values, labels = kept(self.plugin, outputs.logits, inputs)
            return None, (sums, values), labels
        return None, sums, sums[:, 1:2]

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Loss per learnt token and accuracy over the whole validation set, whatever the size of its batches, and what a
        plugin's metric reports."""
        given: Any = prediction.predictions
        sums = torch.as_tensor(given if self.plugin is None else given[0], dtype=torch.float64)
        loss_S, tokens_S, correct_S = sums[:, :3].unbind(1)
        right, total = self.accuracy(tokens_S, correct_S)
        found = {
            "loss": float(loss_S.sum() / tokens_S.sum().clamp(min=1)),
            self.accuracy_name: float(right / total.clamp(min=1)),
        }
        if self.channels:
            names = self.channels.of_marks(sums[:, 3:])
            for key, numerator, denominator in by_channel(names, loss_S, tokens_S):
                found[key] = float(numerator / denominator.clamp(min=1))
        if self.plugin is not None:
            found |= self.plugin.compute_metrics(EvalPrediction(given[1], prediction.label_ids))
        return found
