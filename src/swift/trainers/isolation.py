"""This file knows whether the sequences of one row see each other in a model, by trying it on the model itself.

A model that looks for neither restarting positions nor borders lets every sequence read the ones before it, trains
without an error, and is worse for it. So nothing is taken from lists of architectures: the model is run on a few random
tokens, and it is asked whether the logits of a sequence depend on its neighbour.
"""

from __future__ import annotations

import inspect
import random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swift.chat.render import Sample
from swift.core.errors import ModelError
from swift.core.labels import IGNORED
from swift.core.logs import get_logger
from swift.data.collate import Flattened
from swift.models.evaluating import evaluating
from swift.models.stand_in import is_here, stand_in
from swift.models.varlen import VARLEN, can_attend_by_sequence, watch_windows

FIRST, SECOND = 24, 17
"""The tokens of the two sequences that are tried."""
NOT_OF_THE_MODEL = ("labels", "loss_weights")
TOLERANCE, HALF_TOLERANCE = 1e-4, 0.2
"""The most that the logits of a token may differ behind another sequence, as a share of their deviation: the order of
sums changes with the length of a row. In float32, and where numbers have 8 or 11 bits."""


def isolate(model: PreTrainedModel, attn_impl: str | None, flag: str) -> None:
    """Choose an attention by which the sequences of a row do not see each other, and prove it.

    The proof is made on the model itself; on a smaller one of its kind where its weights are divided over processes.

    attn_impl: what was asked for. In place of sdpa, or of what transformers chose, comes attention sequence by
        sequence, where it gives the same numbers; eager and FlashAttention stay.
    flag: what needs it, for the message: `--packing`, `--padding_free`, or an option with its value.

    Raises ModelError when sequences see each other whatever the attention.
    """
    tried = model if is_here(model) else stand_in(model)
    _isolate(tried, attn_impl, flag)
    chosen = tried.config.get_text_config()._attn_implementation
    if tried is not model and chosen is not None:
        model.set_attn_implementation(chosen)


def _isolate(model: PreTrainedModel, attn_impl: str | None, flag: str) -> None:
    config = model.config.get_text_config()
    given = config._attn_implementation
    assert given is not None, "a model that is loaded has its attention"
    alone = _alone(model)
    if attn_impl in (None, "sdpa") and can_attend_by_sequence(model):
        model.set_attn_implementation(VARLEN)
        with watch_windows() as windows:
            leak = _leak(model, alone)
        if leak is None and windows.agree:
            get_logger().info("%s: attention is computed sequence by sequence, without a mask", flag)
            return
        model.set_attn_implementation(given)
    why = _leak(model, alone)
    if why is not None:
        shown = flag if " " in flag else f"{flag} true"
        other = "Drop --attn_impl eager, or drop" if attn_impl == "eager" and can_attend_by_sequence(model) else "Drop"
        raise ModelError(
            f"{shown} does not work with {config.model_type} and {given} attention: {why}. {other} {flag}: rows of "
            f"a batch are then padded, and --group_by_length true keeps the padding small."
        )
    get_logger().info("%s: %s attention keeps the rows of a batch apart", flag, given)


def isolate_if_it_can(model: PreTrainedModel, attn_impl: str | None) -> bool:
    """Whether rows can be laid end to end without seeing each other, the attention for it being chosen, as `isolate`
    does it. A model for which they cannot is left as it was."""
    try:
        isolate(model, attn_impl, "rows are laid end to end, which saves padding (--padding_free false pads)")
    except ModelError:
        return False
    return True


def _leak(model: PreTrainedModel, alone: Tensor) -> str | None:
    """Why this model cannot be given several sequences in one row, in a clause; None when it can.

    alone: the logits of the sequence that is watched, in a row of its own.

    The model runs two rows of 41 random tokens, as it does in training. A path by which a sequence reads its neighbour
    shows in the gradient, which is exactly 0 where there is none, whatever the precision. That positions begin again
    shows in the logits, and so does a neighbour that is seen without a gradient.
    """
    if not _takes_borders(model):
        return "its forward pass takes no positions or no borders of sequences"
    one, other, watched = trial_sequences(model)
    try:
        with torch.enable_grad():
            behind_one, reads = _run(model, [one, watched])
            behind_other, _ = _run(model, [other, watched])
    except ValueError as error:  # transformers refuses borders where a kernel for them is missing
        return str(error).strip().rstrip(".")
    if reads:
        return "rows that are laid end to end see each other (tried on this model)"
    tolerance = tolerance_of(alone.dtype)
    apart = max(distance(alone, behind_one), distance(alone, behind_other))
    if not apart <= tolerance * float(alone.double().std()):
        return "a row behind another one does not give the logits that it gives alone (tried on this model)"
    return None


@torch.no_grad()
def _alone(model: PreTrainedModel) -> Tensor:
    """The logits of the watched sequence in a row of its own, which is no packed row: nothing but its tokens."""
    watched = torch.tensor([trial_sequences(model)[2]], device=embeddings(model).device)
    with evaluating(model):
        return states_of(model, input_ids=watched)[0]


def _run(model: PreTrainedModel, sequences: list[list[int]]) -> tuple[Tensor, bool]:
    """The logits of the last of these sequences, [SECOND, vocabulary], in one row, and whether they depend on what
    stands before it."""
    embedded: list[Tensor] = []

    def watch(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some models change their embeddings in place

    row = Flattened()([Sample(ids, [IGNORED] * len(ids)) for ids in sequences])
    device = embeddings(model).device
    fed = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in row.items()
        if name not in NOT_OF_THE_MODEL
    }
    hook = model.get_input_embeddings().register_forward_hook(watch)
    try:
        with evaluating(model):
            logits = states_of(model, **fed)[0, -SECOND:]
    finally:
        hook.remove()
    gradients = torch.autograd.grad(logits.float().square().sum(), embedded)
    reads = any(bool((gradient[0, :-SECOND] != 0).any()) for gradient in gradients)
    return logits.detach(), reads


def states_of(model: PreTrainedModel, **fed: Any) -> Tensor:
    """What the model says of every token, [B, T, ...]: its logits, or the states below a head that looks at one."""
    if model.get_output_embeddings() is not None:
        return model(**fed, use_cache=False).logits
    return model.base_model(**fed, use_cache=False).last_hidden_state


def trial_sequences(model: PreTrainedModel) -> tuple[list[int], list[int], list[int]]:
    """Two neighbours and the sequence that is watched, always the same random tokens."""
    draw, vocabulary = random.Random(0), len(embeddings(model))
    one, other, watched = ([draw.randrange(vocabulary) for _ in range(size)] for size in (FIRST, FIRST, SECOND))
    return one, other, watched


def embeddings(model: PreTrainedModel) -> Tensor:
    """The vectors of the vocabulary, [vocabulary, D]."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor), "input embeddings have a weight"
    return weight


def distance(first_TV: Tensor, second_TV: Tensor) -> float:
    """The root of the mean squared difference of the middle token; rounding may send a few to another expert."""
    return float((first_TV.double() - second_TV.double()).square().mean(-1).sqrt().median())


def tolerance_of(dtype: torch.dtype) -> float:
    """The most that logits of this type may differ, as a share of their deviation."""
    return TOLERANCE if dtype in (torch.float32, torch.float64) else HALF_TOLERANCE


def _takes_borders(model: PreTrainedModel) -> bool:
    """Whether the model's forward pass takes what a row of sequences brings."""
    inner = model if model.get_output_embeddings() is not None else model.base_model
    parameters = inspect.signature(inner.forward).parameters
    has_rest = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return "position_ids" in parameters and (has_rest or "cu_seq_lens_q" in parameters)
