"""This file knows tuners of one's own: what a class must do, and how it is called where peft would be."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from swift.catalog.tuners import BUILT_IN, TUNERS
from swift.core.errors import ModelError, RunError, UsageError
from swift.models.info import adapter_folder, check_adapter, read_json
from swift.tuners.request import Run

CONFIG = "adapter_config.json"
CHILD = "swift_plugin"
"""The name under which a model carries its tuner."""


class Tuner:
    """What a tuner of one's own does: three functions of a model.

    Registered under a name, it is used by `--tuner_type NAME`, and wherever what it saved is used by `--adapters`.
    """

    @staticmethod
    def prepare_model(args: Any, model: nn.Module) -> nn.Module:
        """The model, ready to learn: what has requires_grad is trained. `args` has all options as attributes."""
        raise NotImplementedError  # a plugin says how

    @staticmethod
    def save_pretrained(model: nn.Module, save_directory: str, state_dict: Mapping[str, Tensor] | None = None,
                        safe_serialization: bool = True, **kwargs: Any) -> None:  # fmt: skip
        """Write what was trained: weights into adapter_model.safetensors, and what else it takes to read them.

        state_dict: the weights, where they had to be gathered from several devices.
        """
        raise NotImplementedError  # a plugin says how

    @staticmethod
    def from_pretrained(model: nn.Module, model_id: str, **kwargs: Any) -> nn.Module:
        """The model with what was saved in the folder `model_id`; with `is_trainable=True` in kwargs, ready to learn."""
        raise NotImplementedError  # a plugin says how


class PeftTuner(Tuner):
    """A tuner that makes models of peft: saved and read as peft does, only `prepare_model` is its own."""

    @staticmethod
    def save_pretrained(model: nn.Module, save_directory: str, state_dict: Mapping[str, Tensor] | None = None,
                        safe_serialization: bool = True, **kwargs: Any) -> None:  # fmt: skip
        """Write the adapter in peft's format."""
        assert isinstance(model, PeftModel), "prepare_model of a PeftTuner makes models of peft"
        model.save_pretrained(save_directory, safe_serialization=safe_serialization, state_dict=state_dict, **kwargs)

    @staticmethod
    def from_pretrained(model: nn.Module, model_id: str, **kwargs: Any) -> nn.Module:
        """The model with an adapter in peft's format."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Unexpected keyword arguments.*swift_type")  # it is ours
            return PeftModel.from_pretrained(model, model_id, **kwargs)  # type: ignore[arg-type]  # a model of transformers


class Plugged(nn.Module):
    """The tuner of a model. It travels inside the model and has no weights.

    name: `--tuner_type`. read_from: the folder that the model was read from, None for a new one.
    """

    def __init__(self, name: str, base: str, read_from: Path | None) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.read_from = read_from

    def save(self, model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None) -> None:
        """Let the tuner write, and say in adapter_config.json which one it was."""
        TUNERS[self.name].save_pretrained(model, str(folder), state_dict=state, safe_serialization=True)
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        config = {"base_model_name_or_path": self.base, **config, "swift_type": self.name}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        check_adapter(folder)

    def resume(self, folder: Path) -> None:
        """The model has been read from the checkpoint when it was made; it cannot be read again in place."""
        if self.read_from is None or self.read_from.resolve() != folder.resolve():
            raise RunError(f"{folder} cannot be read into a model that --tuner_type {self.name} has made already.")


def plugged_of(model: nn.Module) -> Plugged | None:
    """The tuner of one's own that a model carries; None for all others."""
    return next((child for child in model.children() if isinstance(child, Plugged)), None)


def is_plugged(folder: Path) -> bool:
    """Whether the adapter in a folder was saved by a tuner of one's own."""
    return read_json(folder / CONFIG).get("swift_type", BUILT_IN[0]) not in BUILT_IN


def attach_plugged(model: Any, name: str, run: Run, adapters: Sequence[str]) -> Any:
    """The model as the tuner of this name makes it, or reads it from the one of `adapters`, ready to learn."""
    tuner, base = tuner_class(name), str(model.name_or_path)
    if len(adapters) > 1:
        raise UsageError(f"--adapters: training goes on with exactly one adapter (got {len(adapters)}).")
    folder = adapter_folder(adapters[0]) if adapters else None
    if folder is None:
        made = tuner.prepare_model(SimpleNamespace(**run.values), model)
    else:
        made = tuner.from_pretrained(model, str(folder), is_trainable=True)
    if not isinstance(made, nn.Module) or not any(parameter.requires_grad for parameter in made.parameters()):
        raise ModelError(f"--tuner_type {name}: the tuner must return a model of which something has requires_grad.")
    made.add_module(CHILD, Plugged(name, base, folder))
    return made


def load_plugged(model: Any, folders: Sequence[Path]) -> Any:
    """The model as a tuner of one's own has saved it, for inference. Raises ModelError for several at once."""
    if len(folders) > 1:
        raise ModelError(f"--adapters {' '.join(map(str, folders))}: a tuner of your own is used by itself. Give one.")
    name = read_json(folders[0] / CONFIG)["swift_type"]
    return tuner_class(name).from_pretrained(model, str(folders[0])).requires_grad_(False).eval()


def tuner_class(name: str) -> type[Tuner]:
    """The class registered under a name. Raises UsageError when there is none, or it lacks a function."""
    if name not in TUNERS:
        raise UsageError(
            f"--tuner_type {name} is registered nowhere. Pass the file that registers it: --external_plugins <file>."
        )
    tuner = TUNERS[name]
    lacking = [each for each in ("prepare_model", "save_pretrained", "from_pretrained") if each not in dir(tuner)]
    if lacking:
        raise UsageError(
            f"--tuner_type {name}: the class {tuner!r} lacks {', '.join(lacking)} (see swift.tuner_plugin)."
        )
    return tuner
