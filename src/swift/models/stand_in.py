"""This file knows how to try something on a model whose weights are elsewhere: on a smaller one of its kind.

While weights are divided over processes (ZeRO-3), or only the first process has read them (FSDP), a model cannot run.
What depends on its code and not on its weights is tried on a model of the same class, with random weights and as few
layers as show every kind of layer it has.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.fsdp import is_fsdp_enabled

from swift.parallel.partitions import is_partitioned

LEAST_LAYERS = 2
SEED = 0


def is_here(model: nn.Module) -> bool:
    """Whether every process has all weights of the model; all give the same answer.

    With FSDP the first process reads them for all, and has them for a while.
    """
    return not is_fsdp_enabled() and not any(is_partitioned(parameter) for parameter in model.parameters())


def stand_in(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and width with random weights, on the CPU, in the type and with the attention of `model`.

    It is the same in every process, and making it draws nothing from the random numbers of the run.
    """
    config = copy.deepcopy(model.config)
    text: Any = config.get_text_config()
    kinds = text.to_dict().get("layer_types")
    layers = _prefix_with_all(kinds) if kinds else LEAST_LAYERS
    if layers < text.num_hidden_layers:
        if kinds:
            text.layer_types = kinds[:layers]
        text.num_hidden_layers = layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        made: Any = type(model)(config)
    return made.to(model.dtype).eval()


def _prefix_with_all(kinds: list[str]) -> int:
    """The length of the shortest beginning that has every kind, and at least LEAST_LAYERS."""
    return max(LEAST_LAYERS, *(kinds.index(kind) + 1 for kind in set(kinds)))
