"""This file knows how single weights of a checkpoint are read, without a model being made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from swift.core.errors import ModelError
from swift.models.weights import check_safetensors, weight_files

OUTER = "model."
"""What the names of a model with an output layer have in front, and those of one without have not."""


def stored_weights(folder: Path) -> Callable[[str], Tensor]:
    """What reads a weight by the name it has in the model, on the CPU and in the type it is stored in.

    Only the weight that is asked for is read. It raises ModelError for a name that the checkpoint does not have.
    """
    files = {name: path for path in weight_files(folder) for name in _names(path)}

    def read(name: str) -> Tensor:
        other = name.removeprefix(OUTER) if name.startswith(OUTER) else OUTER + name
        found = next((each for each in (name, other) if each in files), None)
        if found is None:
            raise ModelError(f"{folder} holds no weight of the name {name}, nor {other}.")
        return _read(files[found], found)

    return read


def _names(path: Path) -> set[str]:
    return check_safetensors(path) if path.suffix == ".safetensors" else set(_torch_file(path))


def _read(path: Path, name: str) -> Tensor:
    if path.suffix != ".safetensors":
        return _torch_file(path)[name].clone()
    with safe_open(path, framework="pt") as opened:
        return opened.get_tensor(name)


def _torch_file(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
