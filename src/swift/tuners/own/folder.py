"""This file knows how what one of our methods has trained is written beside its settings, and read back.

`adapter_config.json` names the method (`swift_type`), its settings, the model, and the modules trained whole;
`adapter_model.safetensors` holds the weights of what was added and of those modules, by their names in the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from swift.core.errors import ModelError
from swift.models.info import check_adapter, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHILD = "swift_tuning"
"""The name under which a model carries what it was given."""


class Tuning(nn.Module):
    """What a model was given by a method of ours. It travels inside the model and has no weights of its own.

    method: `--tuner_type`. settings: with which the method is repeated on the same model. places: the full names of
    the modules whose weights are saved. whole: those of them that the model had before.
    """

    def __init__(self, method: str, settings: Mapping[str, Any], places: Sequence[str], whole: Sequence[str]) -> None:
        super().__init__()
        self.method = method
        self.settings = dict(settings)
        self.places = tuple(places)
        self.whole = tuple(whole)

    def names(self, model: nn.Module) -> list[str]:
        """Which weights are saved, by their names in the model; tied ones once, under the first of their names."""
        found: dict[int, str] = {}
        for name, value in model.state_dict(keep_vars=True).items():
            if any(name.startswith(f"{place}.") for place in self.places):
                found.setdefault(id(value), name)
        return list(found.values())

    def save(self, model: PreTrainedModel, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write both files; `state` is the model's where it had to be gathered from several devices."""
        described = {
            "swift_type": self.method,
            "base_model_name_or_path": model.name_or_path,
            **self.settings,
            "modules_to_save": list(self.whole),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        values = model.state_dict() if state is None else state
        save_file({name: values[name].contiguous() for name in self.names(model)}, folder / WEIGHTS, {"format": "pt"})

    @torch.no_grad()
    def load(self, model: nn.Module, folder: Path) -> None:
        """Read the weights into the model; each must find its place, and each place its weight.

        Raises ModelError when the file is missing or damaged, or does not fit.
        """
        check_adapter(folder)
        try:
            stored = load_file(folder / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"--adapters {folder}: {WEIGHTS} cannot be read: {error}") from error
        state = model.state_dict()
        own = {name: state[name] for name in self.names(model)}
        unplaced, missing = sorted(stored.keys() - own.keys()), sorted(own.keys() - stored.keys())
        shapes = [name for name in stored.keys() & own.keys() if stored[name].shape != own[name].shape]
        if unplaced:
            raise misfit(folder, f"{len(unplaced)} of its weights have no place there, {unplaced[0]} among them")
        if missing:
            raise misfit(folder, f"it lacks {len(missing)} weights, {missing[0]} among them")
        if shapes:
            name = min(shapes)
            raise misfit(
                folder, f"{name} has shape {list(stored[name].shape)}, and {list(own[name].shape)} is expected"
            )
        for name, value in stored.items():
            own[name].copy_(value)


def carry(model: PreTrainedModel, tuning: Tuning) -> None:
    """Let the model carry what it was given."""
    model.add_module(CHILD, tuning)


def drop(model: PreTrainedModel) -> None:
    """Let the model forget how it came to its weights: they are its own from now on."""
    delattr(model, CHILD)


def tuning_of(model: nn.Module) -> Tuning | None:
    """What a model was given by a method of ours; None when it was given nothing."""
    return next((child for child in model.children() if isinstance(child, Tuning)), None)


def is_own(folder: Path) -> bool:
    """Whether the adapter in a folder was made by a method of ours, and not by peft."""
    return "swift_type" in read_json(folder / CONFIG)


def misfit(folder: Path, why: str) -> ModelError:
    """The refusal of an adapter that does not fit the model, with the model it was trained on."""
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    return ModelError(
        f"--adapters {folder} does not fit the model: {why}. It was trained on {base}; pass that model with --model."
    )
