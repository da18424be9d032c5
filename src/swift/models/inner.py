"""This file knows the model of transformers inside an adapter."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def inner_model(model: nn.Module) -> PreTrainedModel:
    """The model itself, or the one that an adapter was put around. What trains in several processes is unwrapped before."""
    if isinstance(model, PreTrainedModel):
        return model
    adapter: Any = model
    return adapter.get_base_model()
