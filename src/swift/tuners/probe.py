"""This file knows what a model says to a prompt that any model can be given, so that two states of it can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PROMPT_LENGTH = 32


def spread_prompt(model: nn.Module) -> list[int]:
    """A prompt of token ids spread evenly over the vocabulary of a model."""
    config: Any = model.config
    return torch.linspace(0, config.get_text_config().vocab_size - 1, PROMPT_LENGTH).long().tolist()


def prompt_logits(model: nn.Module) -> Tensor:
    """What a model says to the prompt of `spread_prompt`; see `logits_for`."""
    return logits_for(model, spread_prompt(model))


@torch.no_grad()
def logits_for(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """Logits [T, V] for a prompt, in float32 on the CPU.

    Of a model without a head its states [T, E]; of a classifier the outputs for the prompt as one text, [1, C].
    """
    model.eval()
    ids_BT = torch.tensor([list(ids)], device=next(model.parameters()).device)
    said = model(input_ids=ids_BT, use_cache=False)
    found = said.logits if "logits" in said else said.last_hidden_state
    return (found if found.dim() == 2 else found[0]).float().cpu()
