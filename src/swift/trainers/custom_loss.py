"""This file knows how a loss of the user's own (`--loss_type`) is called, and what is kept of it.

Axes: B rows, T tokens, N learnt tokens, S sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swift.losses.logps import token_logps
from swift.losses.plugin import callable_loss
from swift.losses.reduce import sum_by_sequence
from swift.losses.supervised import Learnt, Scores, learnt
from swift.trainers.scoring import Way, sequences


class CustomLoss:
    """A registered loss, which sees all logits."""

    def __init__(self, name: str, args: Any, trainer: Any, *, dft: bool) -> None:
        self.trainer = trainer
        self.dft = dft
        self.call, self.divides = callable_loss(name, args, trainer)

    def run(self, model: nn.Module, inputs: Mapping[str, Any], way: Way,
            num_items_in_batch: Tensor | int | None, batches: int) -> tuple[Tensor, Scores, Any]:  # fmt: skip
        """The loss of a batch as a part of that of its step of so many batches, its scores, and what the model returned.

        The scores count what the loss says as that of each learnt token; its gradient is in the loss alone.
        """
        tokens = learnt(inputs["labels"], inputs.get("loss_weights"), *sequences(inputs))
        outputs = model(**way.fed(inputs))
        tokens = tokens.to(outputs.logits.device)
        outputs["loss"] = self._per_token(outputs.logits, tokens)
        further = {
            "num_items_in_batch": num_items_in_batch, "loss_scale": inputs.get("loss_weights"), "trainer": self.trainer,
        }  # fmt: skip
        loss = self.call(outputs, inputs["labels"], further)
        if num_items_in_batch is not None and not self.divides:
            loss = loss / batches
        return loss, _scores(loss, outputs.logits, tokens), outputs

    def _per_token(self, logits_BTV: Tensor, tokens: Learnt) -> Tensor:
        """What each position loses by its prediction, weighted, with a gradient; 0 where nothing is predicted, [B, T]."""
        logps_N = token_logps(logits_BTV[tokens.learns], tokens.targets)
        loss_N = -logps_N * logps_N.detach().exp() if self.dft else -logps_N
        if tokens.weights is not None:
            loss_N = loss_N * tokens.weights
        places = tokens.learns.nonzero(as_tuple=True)
        return torch.zeros_like(tokens.learns, dtype=torch.float32).index_put(places, loss_N)


@torch.no_grad()
def _scores(loss: Tensor, logits_BTV: Tensor, tokens: Learnt) -> Scores:
    correct_N = (logits_BTV[tokens.learns].argmax(-1) == tokens.targets).float()
    ones_N = torch.ones_like(correct_N)
    tokens_S, correct_S = (sum_by_sequence(each, tokens.sequence, tokens.count) for each in (ones_N, correct_N))
    return Scores(loss.detach().float() * tokens_S.sum(), loss.detach().float() * tokens_S, tokens_S, correct_S)
