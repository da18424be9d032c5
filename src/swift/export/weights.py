"""This file knows how weights are written: in safetensors or torch's format, in files of a size."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from swift.core.errors import RunError, UsageError
from swift.models.weights import INDEXES, check_folder, weight_files

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def shard_size(text: str) -> int:
    """`--max_shard_size` in bytes: 5GB is 5 x 10^9. Raises UsageError for what is no size."""
    match = _SIZE.fullmatch(text)
    unit = UNITS.get(match.group(2).upper()) if match else None
    size = int(float(match.group(1)) * unit) if match and unit else 0
    if size <= 0:
        raise UsageError(f"--max_shard_size must be a size such as 5GB or 500MB (got {text!r}).")
    return size


def write_weights(model: PreTrainedModel, folder: Path, *, max_shard_size: int, safe: bool) -> None:
    """Write config, generation config and weights into a folder, and check what was written.

    safe: safetensors, else torch's own format (`pytorch_model.bin`) with the same names and the same division.
    Raises RunError when the disk has no room for them.
    """
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(f"{folder} has {free / 1e9:.1f} GB free, and the weights take {needed / 1e9:.1f} GB.")
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if not safe:
        _to_torch_format(folder)
    check_folder(folder)


def _to_torch_format(folder: Path) -> None:
    """Rewrite each safetensors file as a `.bin` file; transformers itself writes safetensors only."""
    for path in weight_files(folder):
        torch.save(load_file(path), folder / _torch_name(path.name))
        path.unlink()
    safe_index, torch_index = (folder / name for name in INDEXES)
    if safe_index.is_file():
        index = json.loads(safe_index.read_text(encoding="utf-8"))
        index["weight_map"] = {name: _torch_name(file) for name, file in index["weight_map"].items()}
        torch_index.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        safe_index.unlink()


def _torch_name(name: str) -> str:
    """model-00001-of-00002.safetensors -> pytorch_model-00001-of-00002.bin."""
    return f"pytorch_{name}".replace(".safetensors", ".bin")
