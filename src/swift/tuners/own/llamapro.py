"""This file knows block expansion (LLaMA-Pro, arXiv:2401.02415): new layers that are trained while the others stay."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from swift.core.errors import ModelError, UsageError
from swift.tuners.own.layers import decoder_layers
from swift.tuners.probe import prompt_logits

LAST_OF_A_BRANCH = re.compile(
    r"(?:^|\.)(?:o_proj|out_proj|wo|dense|c_proj|down_proj|output_linear|dense_4h_to_h|fc2|fc_out|w2)(?:\.\w+)?$"
)
"""Parameters of the projections that end attention and MLP; experts keep theirs as one parameter."""


@dataclass(frozen=True)
class LlamaProConfig:
    """num_new_blocks: how many layers are added. num_groups: in how many places."""

    num_new_blocks: int
    num_groups: int


def expand(model: PreTrainedModel, config: LlamaProConfig) -> list[str]:
    """Add layers that change nothing yet; the names of the new layers.

    The layers are divided into groups, of equal size where their number allows. Behind the last of each group stand
    num_new_blocks / num_groups copies of it, whose attention and MLP end in zeros, so that a copy is the identity
    (section 3.2). The config and the numbers by which layers find their key-value cache follow.

    Raises UsageError for numbers that do not divide, ModelError for a model in which a copy would not be the identity,
    or that its config could not describe.
    """
    prefix, layers = decoder_layers(model)
    count = len(layers)
    last_of_groups = places(count, config)
    _require_plain(model)
    is_real = model.device.type != "meta"
    before = prompt_logits(model) if is_real else None
    copies = config.num_new_blocks // config.num_groups
    for last in reversed(last_of_groups):
        for _ in range(copies):
            layers.insert(last + 1, _identity(layers[last]))
    for number, layer in enumerate(layers):
        _renumber(layer, number)
    _describe(model.config.get_text_config(), [number for number in last_of_groups for _ in range(copies)])
    if before is not None and not torch.equal(before, prompt_logits(model)):
        raise ModelError(
            f"--tuner_type llamapro: a copied {type(layers[0]).__name__} with zeros at the end of its attention and its "
            f"MLP is not the identity, so the expanded model would not be the model. Use --tuner_type lora."
        )
    _require_described(model)
    first_new = [last + 1 + copies * group for group, last in enumerate(last_of_groups)]
    return [f"{prefix}.{first + offset}" for first in first_new for offset in range(copies)]


def places(num_layers: int, config: LlamaProConfig) -> list[int]:
    """The layers behind which new ones go: the last of each group, the groups as equal as they can be.

    Raises UsageError when blocks cannot be dealt evenly to groups, or when there are more groups than layers.
    """
    if config.num_new_blocks % config.num_groups:
        raise UsageError(
            f"--llamapro_num_new_blocks {config.num_new_blocks} is no multiple of --llamapro_num_groups "
            f"{config.num_groups}: every group gets the same number of new layers."
        )
    if config.num_groups > num_layers:
        raise UsageError(
            f"--llamapro_num_groups {config.num_groups}: the model has {num_layers} layers, and a group has at least one."
            f" Give at most {num_layers}."
        )
    return [(group + 1) * num_layers // config.num_groups - 1 for group in range(config.num_groups)]


def _identity(layer: nn.Module) -> nn.Module:
    """A copy of a layer that passes on what it is given."""
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if LAST_OF_A_BRANCH.search(name):
                parameter.zero_()
    return twin


def _renumber(layer: nn.Module, number: int) -> None:
    """Tell a layer which place it has, by which it finds its keys and values in a cache."""
    for module in layer.modules():
        if isinstance(vars(module).get("layer_idx"), int):
            module.layer_idx = number  # type: ignore[assignment]  # modules take any attribute


def _describe(config: PreTrainedConfig, copied: Sequence[int]) -> None:
    """Let a config say how many layers there are now, and of each what it says of the layer that was copied."""
    count = config.num_hidden_layers
    values = config.to_dict()
    lists = [key for key, value in values.items() if "layer" in key and isinstance(value, list) and value]
    order = sorted([*range(count), *copied])
    for key in lists:
        value = values[key]
        if len(value) != count:
            raise ModelError(
                f"--tuner_type llamapro: {key} in the config of a {config.model_type} counts layers in a way that "
                f"further layers would upset ({value}). Use --tuner_type lora."
            )
        setattr(config, key, [value[number] for number in order])
    config.num_hidden_layers = len(order)


def _require_plain(model: PreTrainedModel) -> None:
    if model.config.to_dict().get("quantization_config"):
        raise ModelError(
            "--tuner_type llamapro: the model is quantized, and quantized layers cannot be trained. Use the model it was "
            "quantized from, or --tuner_type lora."
        )


def _require_described(model: PreTrainedModel) -> None:
    """The config must describe the model, or it could not be loaded again once it is merged."""
    with torch.device("meta"):
        described = type(model)(model.config).state_dict()
    found = {name: value.shape for name, value in model.state_dict().items()}
    if found != {name: value.shape for name, value in described.items()}:
        raise ModelError(
            f"--tuner_type llamapro: a {model.config.model_type} has layers of several kinds, in an order that its config "
            f"cannot describe with further layers between them. Choose --llamapro_num_new_blocks and "
            f"--llamapro_num_groups otherwise, or use --tuner_type lora."
        )
