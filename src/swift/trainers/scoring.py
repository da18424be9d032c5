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
from swift.data.collate import FILLING
from swift.losses.experts import Routing, imbalance, routing
from swift.losses.objective import Objective
from swift.losses.projection import Projection, identity
from swift.losses.reduce import sequence_of_packed
from swift.losses.supervised import Learnt, Scores, learnt, score
from swift.models.evaluating import evaluating
from swift.models.inner import inner_model
from swift.models.output_layer import PROBE, instead_of_logits, output_layer, projection
from swift.models.stand_in import is_here, stand_in
from swift.parallel.exchange import summed
from swift.parallel.mesh import Mesh
from swift.trainers.sharing import own_learnt

NOT_OF_THE_MODEL = ("labels", "loss_weights", "channel", FILLING)


@dataclass(frozen=True)
class Way:
    """From a batch to the losses of its learnt tokens.

    projection, layer: hidden states are taken in front of the output layer, and logits made a few at a time.
    keeps_few: else, the model is told to make logits for some columns only.
    router: the model is asked how its experts were chosen, for the loss that balances them.
    mesh: the processes that share each row, of which this one runs its own part.
    per_token: to how many experts a token is sent, where the loss that balances them is made from parts of a row.
    """

    projection: Projection | None
    layer: nn.Module | None
    keeps_few: bool
    router: bool = False
    mesh: Mesh | None = None
    per_token: int | None = None

    def run(self, model: nn.Module, inputs: Mapping[str, Any], objective: Objective) -> tuple[Scores, Any]:
        """The scores of a batch, and what the model returned. There is no cache: with one, packed sequences would see
        each other."""
        tokens = learnt(inputs["labels"], inputs.get("loss_weights"), *sequences(inputs))
        if self.mesh is not None:
            tokens = own_learnt(self.mesh, tokens)
        scores, outputs = self._run(model, self.fed(inputs), tokens, objective)
        self.balance(outputs, inputs)
        return scores, outputs

    def _run(self, model: nn.Module, fed: dict[str, Any], tokens: Learnt, objective: Objective) -> tuple[Scores, Any]:
        if self.projection is None or self.layer is None:
            return self._score_logits(model, fed, tokens, objective)
        way, layer = self.projection, self.layer

        def take(hidden_BTD: Tensor) -> Scores:
            there = tokens.to(hidden_BTD.device)
            return score(hidden_BTD[there.learns], way, there, objective)

        return instead_of_logits(model, layer, fed, take)

    def fed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch the model is given, on this process."""
        fed = {name: value for name, value in inputs.items() if name not in NOT_OF_THE_MODEL}
        if self.router:
            fed["output_router_logits"] = True
        return {**(fed if self.mesh is None else self.mesh.fed(fed)), "use_cache": False}

    def balance(self, outputs: Any, inputs: Mapping[str, Any]) -> None:
        """Make the loss that balances experts that of the whole row, where processes share it; of its text alone."""
        if self.mesh is None or self.per_token is None:
            return
        own = self.mesh.own(inputs["input_ids"].shape[1]).to(inputs["cu_seq_lens_q"].device)
        sent = routing(outputs.router_logits, self.per_token, own < inputs["cu_seq_lens_q"][-2])
        counts = summed(torch.stack([sent.chosen, sent.tokens.expand_as(sent.chosen)]), self.mesh.group)
        chances = summed(sent.chances, self.mesh.group)
        outputs["aux_loss"] = imbalance(Routing(counts[0], chances, counts[1, 0]))

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


def choose_way(model: nn.Module, use_logits_to_keep: bool | None, *, router: bool, divided: bool = False,
               mesh: Mesh | None = None) -> Way:  # fmt: skip
    """As `--use_logits_to_keep` says: all logits with false, otherwise those of learnt tokens, where the model allows.

    divided: the weights of the output layer are divided over processes, and gathered for its own forward pass alone.
    mesh: the processes that share each row.

    Raises UsageError when it was asked for and the model does not; ModelError when experts are to be balanced and the
    model has none, does not say how it chooses them, or balances them by a loss that cannot be made from parts of a row.
    """
    tried = _tried_router(model) if router else None
    per_token = None if tried is None or mesh is None else _experts_per_token(tried)
    every = Way(None, None, keeps_few=False, router=router, mesh=mesh, per_token=per_token)
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
def _tried_router(model: nn.Module) -> Any:
    """What the model returns for a few tokens, with the loss that balances its experts; ModelError when it has none."""
    outputs: Any = {}
    if "output_router_logits" in inspect.signature(_innermost(model)).parameters:
        inner = inner_model(model)
        tried = inner if is_here(inner) else stand_in(inner)
        ids = torch.tensor([PROBE], device=next(tried.parameters()).device)
        with evaluating(tried):
            outputs = tried(input_ids=ids, use_cache=False, output_router_logits=True)
    if not isinstance(outputs.get("aux_loss"), Tensor):
        raise ModelError(
            f"--router_aux_loss_coef has no effect on {type(inner_model(model)).__name__}: it has no experts, or "
            f"no loss that balances them. Drop the flag."
        )
    return outputs


def _experts_per_token(outputs: Any) -> int:
    """The number of experts to which a token is sent, with which our loss that balances them is the model's.

    Raises ModelError when there is none.
    """
    logits, expected = outputs.router_logits, outputs.aux_loss.float()
    for count in range(1, logits[0].shape[-1] + 1):
        found = imbalance(routing(logits, count)).to(expected.device)
        if torch.isclose(found, expected, rtol=1e-3, atol=0):
            return count
    raise ModelError(
        "--router_aux_loss_coef does not work with --sequence_parallel_size here: the loss by which this model balances "
        "its experts is not the product of shares and mean probabilities, so it cannot be made from parts of a row. Drop "
        "one of them."
    )
