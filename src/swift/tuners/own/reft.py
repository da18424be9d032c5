"""This file knows representation finetuning (ReFT, arXiv:2404.03592): edits of what layers put out, in a few directions.

Axes: B rows, T tokens, D channels of hidden states, R directions (`--reft_rank`).

Every edit has the form h + P^T (s - t): s is what the directions P [R, D] shall say of h, t what they say now, or 0.
It acts on every position, of the prompt and of the reply: so it means the same for a padded row, a packed one, and a
token that is generated from a cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from swift.core.errors import UsageError
from swift.tuners.own.layers import decoder_layers, device_of, hidden_size, linear_in_type

NAME = "reft"
"""Under which it stands in the layer whose output it edits."""


@dataclass(frozen=True)
class Form:
    """What distinguishes the kinds of an edit.

    orthonormal: P is R of the paper, with orthonormal rows; else any matrix (W2).
    constant: s is a vector b; else W h + b.
    subtracts: t is P h; else 0, and the edit adds.
    """

    orthonormal: bool
    constant: bool
    subtracts: bool

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keys of `--reft_args` that have an effect."""
        activated = () if self.constant else ("act_fn",)
        biased = ("add_bias",) if self.subtracts and not self.orthonormal else ()
        return ("dropout", *activated, *biased)


FORMS = {
    "LoreftIntervention": Form(orthonormal=True, constant=False, subtracts=True),  # h + R^T (W h + b - R h), eq. 2
    "NoreftIntervention": Form(orthonormal=False, constant=False, subtracts=True),  # h + W2^T (W1 h + b - W2 h)
    "ConsreftIntervention": Form(orthonormal=True, constant=True, subtracts=True),  # h + R^T (b - R h)
    "LobireftIntervention": Form(orthonormal=True, constant=True, subtracts=False),  # h + R^T b
    "DireftIntervention": Form(orthonormal=True, constant=False, subtracts=False),  # h + R^T (W h + b)
    "NodireftIntervention": Form(orthonormal=False, constant=False, subtracts=False),  # h + W2^T (W1 h + b), eq. 3
}
"""`--reft_intervention_type` -> its form; the paper's section 3.2 and the ablations of its appendix."""


@dataclass(frozen=True)
class ReftConfig:
    """layers: numbers of the layers that are edited, None for all. args: dropout, act_fn, add_bias."""

    layers: Sequence[int] | None
    rank: int
    intervention_type: str
    args: Mapping[str, Any] | None


class Directions(nn.Module):
    """The directions of an edit, as columns [D, R]: a learnt matrix, or where asked its orthonormal factor.

    The factor is Q of A = Q U, with U upper triangular and positive on its diagonal, which makes Q unique and smooth in
    A. It does not change with the length of A's columns, so that weight decay does not bend it. (torch's own
    parametrization by Householder vectors loses a direction as soon as decay moves its diagonal from 1.)
    """

    def __init__(self, width: int, rank: int, orthonormal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(width, rank)))
        self.orthonormal = orthonormal

    def forward(self) -> Tensor:
        """The columns, from what they are learnt as."""
        if not self.orthonormal:
            return self.weight
        columns_DR, upper_RR = torch.linalg.qr(self.weight)
        return columns_DR * upper_RR.diagonal().sign()

    def fixed(self) -> Directions:
        """The same directions, computed once: for a model that learns no more and is asked for many tokens."""
        made = Directions(*self.weight.shape, orthonormal=False)
        made.weight = nn.Parameter(self().detach(), requires_grad=False)
        return made


class Intervention(nn.Module):
    """One edit. Its weights are float32 whatever the type of the model, and computed with in the type of what is edited.

    act_fn: on W h + b. dropout: on the edited state, as the authors have it. add_bias: t has a learnt bias too.
    """

    def __init__(self, width: int, rank: int, form: Form, *, act_fn: str | None = None, dropout: float = 0.0,
                 add_bias: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.form = form
        self.directions = Directions(width, rank, form.orthonormal)
        self.source = nn.Parameter(torch.rand(rank)) if form.constant else nn.Linear(width, rank, dtype=torch.float32)
        self.bias = nn.Parameter(torch.zeros(rank)) if add_bias else None
        self.act = nn.Identity() if act_fn is None else ACT2FN[act_fn]
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The edited hidden states."""
        kind = hidden_BTD.dtype
        columns_DR = self.directions().to(kind)
        if isinstance(self.source, nn.Linear):
            change = self.act(linear_in_type(hidden_BTD, self.source))
        else:
            change = self.source.to(kind)
        if self.form.subtracts:
            said_BTR = hidden_BTD @ columns_DR
            change = change - (said_BTR if self.bias is None else said_BTR + self.bias.to(kind))
        return self.dropout(hidden_BTD + (change @ columns_DR.T).to(kind))

    def edit(self, _layer: nn.Module, _inputs: Any, output: Any) -> Any:
        """The output of a layer, edited; what a layer gives beside its hidden states stays."""
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


def add_interventions(model: PreTrainedModel, config: ReftConfig) -> list[str]:
    """Put an edit behind the layers of a model; the names of the new modules.

    Raises UsageError for layers that are not there, a rank above the width, and arguments without an effect.
    """
    prefix, layers = decoder_layers(model)
    chosen = list(range(len(layers))) if config.layers is None else sorted(set(config.layers))
    absent = [number for number in chosen if number >= len(layers)]
    if absent or not chosen:
        raise UsageError(
            f"--reft_layers {' '.join(map(str, absent))}: the model has layers 0 to {len(layers) - 1}. Leave the option "
            f"out for all of them."
        )
    width = hidden_size(model)
    if config.rank > width:
        raise UsageError(f"--reft_rank {config.rank}: hidden states have {width} channels, and no more directions.")
    form = FORMS[config.intervention_type]
    arguments = checked_arguments(config)
    for number in chosen:
        intervention = Intervention(width, config.rank, form, **arguments).to(device_of(layers[number]))
        layers[number].add_module(NAME, intervention)
        layers[number].register_forward_hook(intervention.edit)
    return [f"{prefix}.{number}.{NAME}" for number in chosen]


def fix_directions(model: PreTrainedModel) -> None:
    """Compute the directions of every edit once, in a model that learns no more."""
    for module in model.modules():
        if isinstance(module, Intervention):
            module.directions = module.directions.fixed()


def checked_arguments(config: ReftConfig) -> dict[str, Any]:
    """`--reft_args`, all of which must mean something for the kind of intervention; else UsageError."""
    arguments = dict(config.args or {})
    known = FORMS[config.intervention_type].arguments
    idle = [name for name in arguments if name not in known]
    if idle:
        raise UsageError(
            f"--reft_args: {', '.join(map(str, idle))} has no effect on {config.intervention_type}. What has: "
            f"{', '.join(known)}."
        )
    wrong = [
        name
        for name, fits in (
            ("dropout", lambda value: isinstance(value, (int, float)) and 0 <= value < 1),
            ("act_fn", lambda value: value is None or value in ACT2FN),
            ("add_bias", lambda value: isinstance(value, bool)),
        )
        if name in arguments and not fits(arguments[name])
    ]
    if wrong:
        raise UsageError(
            f"--reft_args: {', '.join(f'{name} = {arguments[name]!r}' for name in wrong)}. dropout is a number from 0 "
            f"to below 1, act_fn an activation of transformers such as relu, add_bias true or false."
        )
    return arguments
