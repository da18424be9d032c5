"""This file knows the output layer of a model: what becomes of hidden states, and how they are had in its place.

Axes: B rows, T tokens, D channels of a hidden state, V vocabulary.

Which families scale or cap their logits is not taken from a list of them: what the config names is tried on the model
itself, and where our way from hidden states to logits does not give the model's logits, there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from swift.losses.projection import Projection
from swift.models.evaluating import evaluating
from swift.models.inner import inner_model

T = TypeVar("T")
PROBE = (1, 5, 2, 7, 3)
"""Token ids that every vocabulary has."""
SCALES: Mapping[str, Callable[[float], float]] = {
    "logit_scale": lambda value: value,
    "logits_scaling": lambda value: 1 / value,
    "lm_head_multiplier": lambda value: value,
}
"""Name in a config -> what logits are multiplied by."""
CAP = "final_logit_softcapping"


def instead_of_logits(model: nn.Module, layer: nn.Module, fed: Mapping[str, Any],
                      use: Callable[[Tensor], T]) -> tuple[T, Any]:  # fmt: skip
    """Run the model, call `use` with the hidden states [B, T, D] that its output layer is about to be given, and give
    the layer the last position only: what `use` returns, and the outputs, with logits of that position.

    `use` is called inside the forward pass, where sharded parameters are whole and a mixed precision holds. The model
    may be inside others, for which this is a forward pass like any other.
    """
    results: list[T] = []

    def intercept(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BTD, *rest = inputs
        results.append(use(hidden_BTD))
        # with the strides of a slice torch would not see one row, and transpose the matrix of a layer that is not learnt
        return hidden_BTD[:, -1:].clone(memory_format=torch.contiguous_format), *rest

    handle = layer.register_forward_pre_hook(intercept)
    try:
        outputs = model(**fed)
    finally:
        handle.remove()
    [result] = results
    return result, outputs


def output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits, as the model names it; inside an adapter it may be one with an adapter of its own."""
    layer = inner_model(model).get_output_embeddings()
    return layer if isinstance(layer, nn.Module) else None


@torch.no_grad()
def projection(model: nn.Module) -> Projection | None:
    """How this model comes from hidden states to logits; None where that cannot be told from outside.

    The model runs five tokens, and the way is taken that gives its logits.
    """
    layer = output_layer(model)
    if layer is None:
        return None
    inner = inner_model(model)
    with evaluating(model):
        logits_TV, hidden_TD = _tried(inner, layer)
        if hidden_TD is None or logits_TV.ndim != 2:
            return None
        leaves = _leaves(layer, hidden_TD)
        for scale, cap in _ways(inner.config):
            # the hooks of a layer are for whoever calls the model, and would be met twice
            way = Projection(layer.forward, logits_TV.shape[-1], lambda: (*layer.parameters(), *leaves), scale, cap)
            if _alike(way(hidden_TD), logits_TV):
                return way
    return None


def _tried(model: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The logits of a few tokens, [T, V], and the hidden states of which the layer makes them, [T, D]; None when it is
    called in another way than once with a batch of hidden states."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    try:
        device = next(model.parameters()).device
        logits_BTV = model(input_ids=torch.tensor([PROBE], device=device), use_cache=False).logits
    finally:
        handle.remove()
    fits = len(seen) == 1 and seen[0].ndim == 3 and seen[0].shape[:2] == (1, len(PROBE))
    return logits_BTV[0], seen[0][0] if fits else None


def _ways(config: PreTrainedConfig) -> Iterator[tuple[float, float | None]]:
    """The scales and caps that a config may mean, the simplest first."""
    values = config.get_text_config().to_dict()
    yield 1.0, None
    cap = values.get(CAP)
    if isinstance(cap, (int, float)):
        yield 1.0, float(cap)
    for name, factor in SCALES.items():
        value = values.get(name)
        if isinstance(value, (int, float)) and value:
            yield factor(float(value)), None


def _leaves(layer: nn.Module, hidden_TD: Tensor) -> tuple[Tensor, ...]:
    """What else the layer computes with and is learnt: an adapter may take its weights from another layer."""
    with torch.enable_grad():
        logits_TV = layer.forward(hidden_TD)
    found: list[Tensor] = []
    waiting, seen = [logits_TV.grad_fn], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [after for after, _ in node.next_functions]
    return tuple(found)


def _alike(ours_TV: Tensor, theirs_TV: Tensor) -> bool:
    """Whether these are the same logits, up to the order of sums."""
    ours, theirs = ours_TV.double(), theirs_TV.double().to(ours_TV.device)
    epsilon = torch.finfo(ours_TV.dtype).eps
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= 16 * epsilon * theirs.abs().max())
