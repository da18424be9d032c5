"""This file knows what a model says to a prompt that any model can be given, so that two states of it can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PROMPT_LENGTH = 32


@torch.no_grad()
def prompt_logits(model: nn.Module) -> Tensor:
    """Logits [T, V] in float32 for a prompt of token ids spread evenly over the vocabulary.

    Of a model without a head its states [T, E]; of a classifier the outputs for the prompt as one text, [1, C].
    """
    model.eval()
    config: Any = model.config
    vocab_size = config.get_text_config().vocab_size
    ids_BT = torch.linspace(0, vocab_size - 1, PROMPT_LENGTH).long()[None]
    device = next(model.parameters()).device
    said = model(input_ids=ids_BT.to(device), use_cache=False)
    found = said.logits if "logits" in said else said.last_hidden_state
    return (found if found.dim() == 2 else found[0]).float()
