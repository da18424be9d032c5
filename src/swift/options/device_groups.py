"""This file knows how `--device_groups` says which devices of a cluster do what.

nproc_per_node: 4               the devices of a node that are used
trainers:                       any name
  device: GPU                   GPU, NPU or CPU
  ranks: list(range(0, 8))      numbers of devices over all nodes; or how many; of CPU, how many processes
  workers: [default]            what is done there
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from swift.options.conditions import Values, Words

DEVICES = ("GPU", "NPU", "CPU")
TRAINS = "default"
"""The worker that runs `swift pt` and `swift sft`."""
_RANGE = re.compile(r"(?:list\()?\s*range\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)\s*\)?")


@dataclass(frozen=True)
class Group:
    """Devices that do the same work.

    ranks: the numbers of the devices over all nodes: device r is device r % nproc_per_node of node r // nproc_per_node.
    """

    name: str
    device: str
    ranks: tuple[int, ...]
    workers: tuple[str, ...]


@dataclass(frozen=True)
class DeviceGroups:
    """All groups, and how many devices of each node they use."""

    nproc_per_node: int
    groups: tuple[Group, ...]

    def working(self, worker: str) -> Group | None:
        """The group that has this worker."""
        return next((group for group in self.groups if worker in group.workers), None)


def read_groups(value: Mapping[Any, Any]) -> DeviceGroups | Words:
    """The groups, or what is wrong with them."""
    count = value.get("nproc_per_node")
    if not _is_count(count):
        return _wrong(
            "nproc_per_node must say how many devices of a node are used", "nproc_per_node 须为每个节点使用的设备数"
        )
    groups: list[Group] = []
    for name, described in value.items():
        if name == "nproc_per_node":
            continue
        group = _group(str(name), described, groups)
        if isinstance(group, Words):
            return group
        groups.append(group)
    return _together(groups) or DeviceGroups(count, tuple(groups))


def processes_on_ray(values: Values) -> int | None:
    """The processes that train with `--use_ray`; None without it, or when its groups are not understood."""
    found = read_groups(values["device_groups"]) if values.get("use_ray") and values.get("device_groups") else None
    group = found.working(TRAINS) if isinstance(found, DeviceGroups) else None
    return None if group is None else len(group.ranks)


def _group(name: str, described: Any, before: list[Group]) -> Group | Words:
    if not isinstance(described, Mapping) or described.keys() != {"device", "ranks", "workers"}:
        return _wrong(
            f"{name} must have device, ranks and workers, and nothing else",
            f"{name} 须且仅须包含 device、ranks、workers",
        )
    device, workers = str(described["device"]).upper(), described["workers"]
    workers = (workers,) if isinstance(workers, str) else tuple(workers or ())
    if device not in DEVICES:
        return _wrong(
            f"the device of {name} is {device}; there are GPU, NPU and CPU",
            f"{name} 的 device 为 {device}，可选 GPU、NPU、CPU",
        )
    taken = {rank for group in before if (group.device == "CPU") == (device == "CPU") for rank in group.ranks}
    ranks = _ranks(described["ranks"], taken)
    if not ranks:
        return _wrong(
            f"the ranks of {name} are {described['ranks']!r}; write a list of numbers, how many, or list(range(0, 4))",
            f"{name} 的 ranks 为 {described['ranks']!r}；请写成编号列表、个数，或 list(range(0, 4))",
        )
    if taken.intersection(ranks) or len(set(ranks)) < len(ranks):
        return _wrong(f"{name} uses a rank that is used already", f"{name} 使用了重复的 rank")
    return Group(name, device, ranks, workers)


def _ranks(value: Any, taken: Iterable[int]) -> tuple[int, ...]:
    """The ranks that are meant; () when it is unclear. A number means as many ranks, behind those that are taken."""
    if _is_count(value):
        first = max(taken, default=-1) + 1
        return tuple(range(first, first + value))
    if isinstance(value, str) and (found := _RANGE.fullmatch(value.strip())):
        bounds = [int(bound) for bound in found.groups() if bound is not None]
        return tuple(range(*bounds))
    if isinstance(value, list) and all(isinstance(rank, int) and rank >= 0 for rank in value):
        return tuple(value)
    return ()


def _together(groups: list[Group]) -> Words | None:
    """What is wrong with groups that are right each by itself."""
    kinds = {group.device for group in groups} - {"CPU"}
    if len(kinds) > 1:
        return _wrong("groups are either of GPUs or of NPUs", "各组不能混用 GPU 与 NPU")
    workers = [worker for group in groups for worker in group.workers]
    twice = sorted({worker for worker in workers if workers.count(worker) > 1})
    if twice:
        return _wrong(f"{', '.join(twice)} works in two groups", f"{'、'.join(twice)} 出现在两个组中")
    return None


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _wrong(en: str, zh: str) -> Words:
    return Words(f"--device_groups: {en}.", f"--device_groups：{zh}。")
