"""This file knows on which devices a model is put: `--device_map`, `--max_memory`, and what is chosen without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from swift.core import environment
from swift.core.errors import UsageError
from swift.models.info import read_json

SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that distribute layers over devices by their memory."""

DeviceMap = str | dict[str, Any]


@dataclass(frozen=True)
class Placement:
    """The arguments of `from_pretrained` that say where weights go; None leaves them on the CPU."""

    device_map: DeviceMap | None
    max_memory: dict[int | str, Any] | None = None


def place(
    device_map: Mapping[Any, Any] | str | None, max_memory: Mapping[Any, Any] | None, *, training: bool
) -> Placement:
    """Where the weights of a model go.

    device_map: a strategy (auto, balanced, sequential), a device, a mapping from modules to devices, or the path of a
    JSON file with such a mapping. GPU numbers count from this process's own: with several processes on a node the
    local rank is added. None is the GPU of this process; all GPUs, when there is one process and more than one GPU;
    or the CPU. Raises UsageError for a word that is no device, and for --max_memory with nothing to distribute.
    """
    wanted = _read_map(device_map)
    if max_memory is not None and wanted not in SPREADING:
        raise UsageError(
            f"--max_memory distributes layers over devices, which only --device_map {', '.join(SPREADING)} do "
            f"(got {device_map or 'none'}). Add --device_map auto."
        )
    if wanted is None:
        return Placement(_default_map(training=training))
    if isinstance(wanted, dict):
        return Placement({name: _own(device) for name, device in wanted.items()})
    if wanted not in SPREADING:
        _require_device(wanted)
    memory = None if max_memory is None else {_own(_number(key)): size for key, size in max_memory.items()}
    return Placement(wanted, memory)


def _default_map(*, training: bool) -> DeviceMap | None:
    """The device of this process; all GPUs when it is alone with several of them."""
    if torch.cuda.is_available():
        alone = environment.world_size() == 1
        if alone and torch.cuda.device_count() > 1:
            return "auto"
        return f"cuda:{environment.local_rank() % torch.cuda.device_count()}"
    if torch.accelerator.is_available() and not training:
        accelerator = torch.accelerator.current_accelerator()
        return None if accelerator is None else accelerator.type
    return None


def _read_map(device_map: Mapping[Any, Any] | str | None) -> DeviceMap | None:
    if isinstance(device_map, str):
        path = Path(device_map).expanduser()
        return read_json(path) if path.is_file() else device_map
    return None if device_map is None else {str(name): _number(device) for name, device in device_map.items()}


def _require_device(name: str) -> None:
    try:
        torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"--device_map {name} is neither a strategy ({', '.join(SPREADING)}), nor a device (cpu, cuda:0, mps), nor "
            f"JSON text, nor the path of a JSON file that exists."
        ) from None


def _number(value: Any) -> Any:
    """JSON has no whole numbers as keys: "0" is GPU 0."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _own(device: Any) -> Any:
    """A GPU number counted from the first GPU of this process."""
    return device + environment.local_rank() if isinstance(device, int) else device
