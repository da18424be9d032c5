"""This file knows how a loss of the user's own (`--loss_type`) is called, and what is kept of it.

Axes: B rows, T tokens, N learnt tokens, S sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from swift.data.collate import FILLING
from swift.losses.logps import token_logps
from swift.losses.plugin import callable_loss
from swift.losses.reduce import sum_by_sequence
from swift.losses.supervised import Learnt, Scores, learnt
from swift.parallel.exchange import joined
from swift.parallel.mesh import Mesh
from swift.trainers.scoring import Way, sequences
from swift.trainers.sharing import own_learnt


class CustomLoss:
    """A registered loss, which sees all logits."""

    def __init__(self, name: str, args: Any, trainer: Any, *, dft: bool) -> None:
        self.trainer = trainer
        self.dft = dft
        self.call, self.divides = callable_loss(name, args, trainer)

    def run(self, model: nn.Module, inputs: Mapping[str, Any], way: Way,
            num_items_in_batch: Tensor | int | None, batches: int) -> tuple[Tensor, Scores, Any]:  # fmt: skip
        """The loss of a batch as a part of that of its step of so many batches, its scores, and what the model returned.

        The scores count what the loss says as that of each learnt token; its gradient is in the loss alone. Processes
        that share a row have the loss of the whole row each.
        """
        tokens = learnt(inputs["labels"], inputs.get("loss_weights"), *sequences(inputs))
        own = tokens if way.mesh is None else own_learnt(way.mesh, tokens)
        outputs = model(**way.fed(inputs))
        way.balance(outputs, inputs)
        tokens, own = tokens.to(outputs.logits.device), own.to(outputs.logits.device)
        outputs["loss"], right_BT = self._per_token(outputs.logits, own)
        given, row = outputs, inputs
        if way.mesh is not None:
            row = _text_of(inputs)
            given = WholeRow(outputs, row["labels"].shape[1], way.mesh)
            right_BT = joined(right_BT[0], way.mesh)[None]
        further = {
            "num_items_in_batch": num_items_in_batch, "loss_scale": row.get("loss_weights"), "trainer": self.trainer,
        }  # fmt: skip
        empty = row["labels"].numel() == 0  # of samples that fill up a set
        loss = given.loss.sum() if empty else self.call(given, row["labels"], further)
        if num_items_in_batch is not None and not self.divides:
            loss = loss / batches
        return loss, _scores(loss, right_BT, tokens, tokens.count - (way.mesh is not None)), outputs

    def _per_token(self, logits_BTV: Tensor, tokens: Learnt) -> tuple[Tensor, Tensor]:
        """What each position loses by its prediction, weighted, with a gradient, 0 where nothing is predicted; and 1
        where its prediction is the model's first choice, else 0. [B, T] each."""
        logits_NV = logits_BTV[tokens.learns]
        logps_N = token_logps(logits_NV, tokens.targets)
        loss_N = -logps_N * logps_N.detach().exp() if self.dft else -logps_N
        if tokens.weights is not None:
            loss_N = loss_N * tokens.weights
        places, nothing_BT = tokens.learns.nonzero(as_tuple=True), torch.zeros_like(tokens.learns, dtype=torch.float32)
        right_N = (logits_NV.argmax(-1) == tokens.targets).float()
        return nothing_BT.index_put(places, loss_N), nothing_BT.index_put(places, right_N)


class WholeRow:
    """What a model returned for a row that processes share, without the padding at its end.

    loss [1, T], and `logits` [1, T, V], which are sent around when they are asked for, by all processes or by none, and
    whose gradients travel back. Everything else is what the model returned for the tokens that this process holds.
    """

    def __init__(self, outputs: Any, length: int, mesh: Mesh) -> None:
        self._outputs = outputs
        self._length = length
        self._mesh = mesh
        self.loss = self._whole(outputs.loss)

    @cached_property
    def logits(self) -> Tensor:
        """Of every token of the row, [1, T, V]."""
        return self._whole(self._outputs.logits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outputs, name)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def _whole(self, own_1TX: Tensor) -> Tensor:
        return joined(own_1TX[0], self._mesh)[None, : self._length]


def _text_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Labels and weights of a row without what stands at its end: samples that fill up the set, and padding."""
    behind = 1 + (int(inputs[FILLING].sum()) if FILLING in inputs else 0)
    end = int(inputs["cu_seq_lens_q"][-1 - behind])
    return {name: inputs[name][:, :end] for name in ("labels", "loss_weights") if name in inputs}


@torch.no_grad()
def _scores(loss: Tensor, right_BT: Tensor, tokens: Learnt, count: int) -> Scores:
    """The scores of the first `count` sequences."""
    right_N = right_BT[tokens.learns]
    ones_N = torch.ones_like(right_N)
    tokens_S, correct_S = (sum_by_sequence(each, tokens.sequence, tokens.count)[:count] for each in (ones_N, right_N))
    return Scores(loss.detach().float() * tokens_S.sum(), loss.detach().float() * tokens_S, tokens_S, correct_S)
