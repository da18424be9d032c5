"""This file knows what stands between a model and a checkpoint of it that others can read, and how to get past it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft.tuners.trainable_tokens import TrainableTokensLayer as TokenRows
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from swift.core.errors import ModelError


def make_savable(config: GenerationConfig) -> None:
    """Let a generation config be saved that transformers would refuse to write, hours later, at the first checkpoint.

    Published configs have sampling values without `do_sample`; with it they are valid. What stands in a checkpoint is
    the model's own file, a copy (`Companions.files`). Raises ModelError when the config is wrong in another way.
    """
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
        try:
            config.validate(strict=True)
        except ValueError as error:
            raise ModelError(
                f"generation_config.json of the model cannot be saved again; correct it: {error}"
            ) from error


def without_whole_embeddings(model: nn.Module, state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is to be saved, less the embeddings of which an adapter trains rows: the rows of new tokens are enough.

    Of a tied output layer not even those are needed: it takes the embedding's.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, TokenRows)]
    if not layers:
        return state_dict
    left = tuple(f"{name}." if layer.tied_adapter else f"{name}.base_layer." for name, layer in layers)
    return {name: value for name, value in (state_dict or model.state_dict()).items() if not name.startswith(left)}


def without_copies(model: nn.Module, state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is to be saved, less the weights that are another one's: gathering has made copies of them."""
    if state_dict is None or not isinstance(model, PreTrainedModel):
        return state_dict
    return {name: value for name, value in state_dict.items() if name not in model.all_tied_weights_keys}


def save_on_this_node(model: PreTrainedModel, folder: Path) -> None:
    """Save a whole model on a process that is not the first of all (`--save_on_each_node`).

    `save_pretrained` asks the model whether this process writes, and the model knows of one disk only. So it is asked
    of a view of the model, with the same parameters and another answer.
    """
    view = copy.copy(model)
    view.should_save_on_this_rank = lambda is_main_process: is_main_process  # type: ignore[method-assign]  # of this view alone
    view.save_pretrained(folder)
