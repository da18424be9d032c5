"""This file knows on which devices a model is put: `--device_map`, `--max_memory`, and what is chosen without them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from swift.core import environment
from swift.core.errors import ModelError, UsageError
from swift.core.paths import is_file
from swift.models.info import read_json

SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that distribute layers over devices by their memory."""

DeviceMap = str | dict[str, Any]


@dataclass(frozen=True)
class Devices:
    """What there is to put a model on, seen from one process of a node.

    kind: cuda, mps, npu, ..., or cpu. count: devices of that kind that this process sees.
    num_processes: processes on this node, which share the devices. rank: the place of this process among them.
    """

    kind: str
    count: int
    num_processes: int = 1
    rank: int = 0

    @property
    def own(self) -> tuple[int, ...]:
        """The devices of this process: with 2 processes and 4 devices, 0 and 2 of the first, 1 and 3 of the second."""
        if self.rank >= self.count > 0:
            return (self.rank % self.count,)
        return tuple(range(self.rank, self.count, self.num_processes))

    @property
    def first(self) -> Devices:
        """The same with one device for this process, the first of its own: DeepSpeed moves a model to one."""
        return replace(self, num_processes=max(self.num_processes, self.count))


@dataclass(frozen=True)
class Placement:
    """The arguments of `from_pretrained` that say where weights go; None leaves them on the CPU."""

    device_map: DeviceMap | None
    max_memory: dict[int | str, Any] | None = None


def devices_here() -> Devices:
    """The devices of this machine and the place of this process on it."""
    processes, rank = environment.LOCAL_WORLD_SIZE.integer() or 1, environment.local_rank()
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return Devices("cpu", 0, processes, rank)
    return Devices(accelerator.type, torch.accelerator.device_count(), processes, rank)


def place(
    device_map: Mapping[Any, Any] | str | None,
    max_memory: Mapping[Any, Any] | None,
    devices: Devices,
    *,
    training: bool,
    sharded: bool = False,
) -> Placement:
    """Where the weights of a model go.

    device_map: a strategy (auto, balanced, sequential), a device, a mapping from modules to devices, or the path of a
    JSON file with such a mapping. Device numbers of mappings and of `max_memory` count from this process's first: with
    several processes on a node the local rank is added. A strategy uses the devices of this process alone.
    None is the device of this process; all of its devices, where it has several; or the CPU. Weights that are
    `sharded` over processes are placed by what shards them.

    Raises UsageError for a word that is no device, for --max_memory with nothing to distribute, and for a device that
    is not there or belongs to another process.
    """
    wanted = _read_map(device_map)
    if max_memory is not None and wanted not in SPREADING:
        raise UsageError(
            f"--max_memory distributes layers over devices, which only --device_map {', '.join(SPREADING)} do "
            f"(got {device_map or 'none'}). Add --device_map auto."
        )
    if isinstance(wanted, str) and wanted not in SPREADING:
        _require_device(wanted)
    if wanted is None:
        wanted = None if sharded else _default_map(devices, training=training)
    if isinstance(wanted, dict):
        return Placement({name: _own(device, devices, "--device_map") for name, device in wanted.items()})
    if wanted not in SPREADING:
        return Placement(wanted)
    if max_memory is not None:
        return Placement(
            wanted, {_own(_number(key), devices, "--max_memory"): size for key, size in max_memory.items()}
        )
    return Placement(wanted, _free_memory(devices.own) if devices.num_processes > 1 and devices.own else None)


def require_trainable(device_map: Mapping[str, Any] | None) -> None:
    """Refuse to train a model of which a part is not on a device that computes.

    device_map: where the modules of the loaded model are; None for one device.
    """
    places = {str(device) for device in (device_map or {}).values()}
    offloaded = places & {"disk", "meta"} or (places & {"cpu"} if places - {"cpu"} else set())
    if offloaded:
        modules = [name for name, device in (device_map or {}).items() if str(device) in offloaded]
        raise ModelError(
            f"--device_map leaves {', '.join(modules[:4])} on {' and '.join(sorted(offloaded))}, which only inference "
            f"can do: weights that learn must lie where they are computed. Use more devices, --deepspeed zero3_offload, "
            f"or --quant_method bnb."
        )


def _default_map(devices: Devices, *, training: bool) -> DeviceMap | None:
    """The device of this process; all of its devices when it has several."""
    if devices.kind == "cuda" and len(devices.own) > 1:
        return "auto"
    if devices.kind in ("cuda", "npu"):
        return f"{devices.kind}:{min(devices.own)}"
    return None if devices.kind == "cpu" or training else devices.kind


def _free_memory(own: Iterable[int]) -> dict[int | str, Any]:
    """The free bytes of the devices of this process: what the strategies distribute over."""
    return {index: torch.accelerator.get_memory_info(index)[0] for index in own}


def _read_map(device_map: Mapping[Any, Any] | str | None) -> DeviceMap | None:
    if isinstance(device_map, str):
        if not is_file(device_map):
            return device_map
        device_map = read_json(Path(device_map).expanduser())
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
    """JSON has no whole numbers as keys: "0" is device 0."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _own(device: Any, devices: Devices, option: str) -> Any:
    """A device number counted from the first device of this process, which must be one of its own."""
    if not isinstance(device, int):
        return device
    if devices.num_processes > 1 and device % devices.num_processes:
        raise UsageError(
            f"{option} names device {device}, which another process of this node has: there are "
            f"{devices.num_processes} of them, and each counts its devices 0, {devices.num_processes}, "
            f"{2 * devices.num_processes}, ... The local rank is added to these numbers."
        )
    if device + devices.rank >= devices.count:
        raise UsageError(
            f"{option} names device {device}, and process {devices.rank} of this node would put it on device "
            f"{device + devices.rank}: there are {devices.count} of kind {devices.kind} here."
        )
    return device + devices.rank
