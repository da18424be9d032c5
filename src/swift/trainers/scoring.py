"""This file knows how a batch is run through a model and compared with its labels, and by which way that is best.

Axes: B rows, T tokens, K columns in which some row learns, D channels of a hidden state, N learnt tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from swift.core.errors import ModelError, UsageError
from swift.core.logs import get_logger
from swift.losses.objective import Objective
from swift.losses.projection import Projection, identity
from swift.losses.reduce import sequence_of_packed
from swift.losses.supervised import Learnt, Scores, learnt, score
from swift.models.evaluating import evaluating
from swift.models.inner import inner_model
from swift.models.output_layer import PROBE, instead_of_logits, output_layer, projection
from swift.models.stand_in import is_here, stand_in
from swift.parallel.mesh import Mesh
from swift.trainers.sharing import OF_TOKENS, own_learnt, own_part

NOT_OF_THE_MODEL = ("labels", "loss_weights", "channel")


@dataclass(frozen=True)
class Way:
    """From a batch to the losses of its learnt tokens.

    projection, layer: hidden states are taken in front of the output layer, and logits made a few at a time.
    keeps_few: else, the model is told to make logits for some columns only.
    router: the model is asked how its experts were chosen, for the loss that balances them.
    mesh: the processes that share each row, of which this one runs its own part.
    """

    projection: Projection | None
    layer: nn.Module | None
    keeps_few: bool
    router: bool = False
    mesh: Mesh | None = None

    def run(self, model: nn.Module, inputs: Mapping[str, Any], objective: Objective) -> tuple[Scores, Any]:
        """The scores of a batch, and what the model returned. There is no cache: with one, packed sequences would see
        each other."""
        tokens = learnt(inputs["labels"], inputs.get("loss_weights"), *sequences(inputs))
        fed = self.fed(inputs)
        if self.mesh is not None:
            tokens = own_learnt(self.mesh, tokens)
            fed |= own_part(self.mesh, {name: fed[name] for name in OF_TOKENS})
        if self.projection is None or self.layer is None:
            return self._score_logits(model, fed, tokens, objective)
        way, layer = self.projection, self.layer

        def take(hidden_BTD: Tensor) -> Scores:
            there = tokens.to(hidden_BTD.device)
            return score(hidden_BTD[there.learns], way, there, objective)

        return instead_of_logits(model, layer, fed, take)

    def fed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch the model is given."""
        fed = {name: value for name, value in inputs.items() if name not in NOT_OF_THE_MODEL}
        if self.router:
            fed["output_router_logits"] = True
        return {**fed, "use_cache": False}

    def _score_logits(
        self, model: nn.Module, fed: dict[str, Any], tokens: Learnt, objective: Objective
    ) -> tuple[Scores, Any]:
        columns_K = tokens.learns.any(0).nonzero().squeeze(-1)
        if self.keeps_few:
            outputs = model(**fed, logits_to_keep=columns_K)
            logits_BKV = outputs.logits
        else:
            outputs = model(**fed)
            logits_BKV = outputs.logits[:, columns_K.to(outputs.logits.device)]
        there = tokens.to(logits_BKV.device)
        logits_NV = logits_BKV[there.learns[:, columns_K.to(logits_BKV.device)]]
        return score(logits_NV, identity(logits_NV.shape[-1]), there, objective), outputs


def choose_way(model: nn.Module, use_logits_to_keep: bool | None, *, router: bool, divided: bool = False) -> Way:
    """As `--use_logits_to_keep` says: all logits with false, otherwise those of learnt tokens, where the model allows.

    divided: the weights of the output layer are divided over processes, and gathered for its own forward pass alone.

    Raises UsageError when it was asked for and the model does not; ModelError when experts are to be balanced and the
    model has none, or does not say how it chooses them.
    """
    if router:
        _check_router(model)
    every = Way(None, None, keeps_few=False, router=router)
    if use_logits_to_keep is False:
        return every
    way, layer = None if divided else projection(model), output_layer(model)
    if way is not None:
        return replace(every, projection=way, layer=layer)
    if "logits_to_keep" in inspect.signature(_innermost(model)).parameters:
        return replace(every, keeps_few=True)
    if use_logits_to_keep:
        raise UsageError(
            f"--use_logits_to_keep true: {type(model).__name__} cannot leave out logits. Drop the flag, or set false."
        )
    get_logger().info("%s makes the logits of all tokens, learnt or not", type(model).__name__)
    return every


def sequences(inputs: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Which sequence each token belongs to, [B, T], and how many sequences there are: rows, or those of a packed row."""
    input_ids_BT = inputs["input_ids"]
    if "cu_seq_lens_q" in inputs:
        return sequence_of_packed(inputs["cu_seq_lens_q"])[None], len(inputs["cu_seq_lens_q"]) - 1
    rows_B1 = torch.arange(len(input_ids_BT), device=input_ids_BT.device)[:, None]
    return rows_B1.expand_as(input_ids_BT), len(input_ids_BT)


def _innermost(model: nn.Module) -> Callable[..., Any]:
    """The forward pass of the model itself, inside an adapter."""
    return inner_model(model).forward


@torch.no_grad()
def _check_router(model: nn.Module) -> None:
    """Raise ModelError unless the model returns a loss that balances its experts, tried on a few tokens."""
    takes = "output_router_logits" in inspect.signature(_innermost(model)).parameters
    if takes:
        inner = inner_model(model)
        tried = inner if is_here(inner) else stand_in(inner)
        ids = torch.tensor([PROBE], device=next(tried.parameters()).device)
        with evaluating(tried):
            outputs = tried(input_ids=ids, use_cache=False, output_router_logits=True)
        takes = isinstance(outputs.get("aux_loss"), Tensor)
    if not takes:
        raise ModelError(
            f"--router_aux_loss_coef has no effect on {type(inner_model(model)).__name__}: it has no experts, or "
            f"no loss that balances them. Drop the flag."
        )
