"""This file knows where the layers of a language model are, and how something is added to them.

Axes: B rows, T tokens, D channels of hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from swift.core.errors import ModelError

MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
"""What layers call the module that follows their attention."""


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The layers of the language model, bottom first, and the name of the list.

    Raises ModelError when the model has no such list.
    """
    count = model.config.get_text_config().num_hidden_layers
    inside = set(model.get_decoder().modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and module in inside:
            return name, module
    raise ModelError(
        f"{type(model).__name__} has no list of {count} layers, as its config would have it: methods that change layers "
        f"cannot be used with it. Use --tuner_type lora."
    )


def mlps(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The MLP of every layer, with its name. Raises ModelError for a layer that has none under a known name."""
    prefix, layers = decoder_layers(model)
    for index, layer in enumerate(layers):
        children = dict(layer.named_children())
        found = next((name for name in MLP_NAMES if name in children), None)
        if found is None:
            raise ModelError(
                f"--tuner_type adapter: {type(layer).__name__} has no module named {', '.join(MLP_NAMES)}, after which "
                f"an adapter could stand. It has: {', '.join(children)}. Use --tuner_type lora."
            )
        yield f"{prefix}.{index}.{found}", children[found]


def linear_in_type(hidden_BTD: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer computed in the type of what it is given, whatever type its weights are kept in.

    So a model in bfloat16 keeps no copy of its hidden states in float32 for the backward pass.
    """
    bias = None if layer.bias is None else layer.bias.to(hidden_BTD.dtype)
    return linear(hidden_BTD, layer.weight.to(hidden_BTD.dtype), bias)


def hidden_size(model: PreTrainedModel) -> int:
    """The channels of the hidden states between layers."""
    return model.config.get_text_config().hidden_size


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device
