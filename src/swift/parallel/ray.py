"""This file knows how a command runs on a Ray cluster: one actor per rank, in which the command runs as under torchrun.

The command is a process of its own beside its actor: it has its main thread, so it hears signals as it does in a
terminal, and its memory goes with it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from swift.core import environment
from swift.core.errors import RunError, UsageError
from swift.core.extras import need
from swift.core.logs import get_logger
from swift.options.device_groups import TRAINS, DeviceGroups, Group, read_groups
from swift.options.general import GeneralOptions

VISIBLE = {"GPU": "CUDA_VISIBLE_DEVICES", "NPU": "ASCEND_RT_VISIBLE_DEVICES"}
"""Device -> the variable that says which of them a process sees."""
LAST_WORDS = 20
"""How many lines of what a process said are kept for the case that it fails."""
PATIENCE = 20.0
"""Seconds that processes have to end by themselves after another one has failed."""


@dataclass(frozen=True)
class Home:
    """Where an actor is: its node, the address of that, a port that is free there, and its own devices."""

    node: str
    address: str
    port: int
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code, and the last lines it wrote to standard error."""

    code: int
    last_words: tuple[str, ...]


class Member:
    """An actor: it runs the command of one rank."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: subprocess.Popen[str] | None = None

    def __repr__(self) -> str:
        return self._name

    def home(self, device: str) -> Home:
        """Where this actor is."""
        ray = need("ray", "--use_ray true")
        context = ray.get_runtime_context()
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return Home(
            context.get_node_id(), ray.util.get_node_ip_address(), port,
            tuple(context.get_accelerator_ids().get(device, ())),
        )  # fmt: skip

    def run(self, argv: Sequence[str], variables: Mapping[str, str], folder: str) -> Ending:
        """Run `swift argv` in a folder, and pass on what it says."""
        # Ray keeps Ctrl-C from the processes of its nodes; the command is to hear it when it is told.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "swift", *argv], env=environment.inherited(**variables),
            cwd=folder if Path(folder).is_dir() else None, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        assert self._process.stderr is not None, "it was opened as a pipe"
        for line in self._process.stderr:
            last_words.append(line.rstrip())
            sys.stderr.write(line)
            sys.stderr.flush()
        return Ending(self._process.wait(), tuple(last_words))

    def tell(self, number: int) -> None:
        """Send the command a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def run(name: str, argv: Sequence[str], general: GeneralOptions) -> int:
    """Run `swift name argv` on the devices of the group that trains; returns its exit code.

    Raises MissingPackage without ray, RunError when the cluster has too few devices or a rank fails, KeyboardInterrupt
    when it was ended by Ctrl-C: the first one lets every rank save and end, the second one ends them at once.
    """
    ray = need("ray", "--use_ray true")
    groups = read_groups(general.device_groups or {})
    assert isinstance(groups, DeviceGroups), "the rules of the options have read them"
    group = groups.working(TRAINS)
    assert group is not None, "the rules of the options have seen it"
    _connect(ray, group, general.ray_exp_name)
    try:
        with _Signals() as signals:
            return _Crew(ray, group, groups.nproc_per_node, general.ray_exp_name, signals).work([name, *argv])
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, group: Group, name: str | None) -> None:
    """Join the cluster of RAY_ADDRESS, or begin one on this machine, with as many CPUs as there are processes."""
    settings: dict[str, Any] = {"namespace": name or "swift", "logging_level": "WARNING", "include_dashboard": False}
    if not environment.RAY_ADDRESS.is_set():
        settings["num_cpus"] = max(os.cpu_count() or 1, len(group.ranks))
    ray.init(**settings)
    wanted = {"CPU": len(group.ranks), **({} if group.device == "CPU" else {group.device: len(group.ranks)})}
    there = ray.cluster_resources()
    lacking = [
        f"{count} {kind} (it has {there.get(kind, 0):g})"
        for kind, count in wanted.items()
        if there.get(kind, 0) < count
    ]
    if lacking:
        raise RunError(
            f"--device_groups: the group {group.name} asks the Ray cluster for {' and '.join(lacking)}. Ask for less, or "
            "set RAY_ADDRESS to a larger cluster."
        )


class _Signals:
    """Notes SIGINT and SIGTERM while it is entered, and does nothing else about them."""

    def __init__(self) -> None:
        self.heard: list[signal.Signals] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.heard.append(signal.Signals(number))


class _Crew:
    """The actors of one run, by rank, and what they were told."""

    def __init__(self, ray: ModuleType, group: Group, per_node: int, name: str | None, signals: _Signals) -> None:
        self.ray = ray
        self.group = group
        self.signals = signals
        self.told = 0
        self.nodes = [rank // per_node for rank in group.ranks]
        self.room = self._reserve(name)
        self.actors = [self._actor(rank, name) for rank in range(len(group.ranks))]

    def work(self, argv: list[str]) -> int:
        """Run the command everywhere, and wait for it."""
        homes = self._get([actor.home.remote(self.group.device) for actor in self.actors])
        get_logger().info(
            "Ray: %d processes on %s", len(homes),
            ", ".join(f"{address} ({count})" for address, count in Counter(home.address for home in homes).items()),
        )  # fmt: skip
        folder = str(Path.cwd())
        running = {
            actor.run.remote(argv, variables, folder): rank
            for rank, (actor, variables) in enumerate(zip(self.actors, places(homes, self.group.device), strict=True))
        }
        codes: dict[int, int] = {}
        while running:
            for reference in self._ended(list(running)):
                rank = running.pop(reference)
                ending = self._ending(reference, rank)
                codes[rank] = ending.code
                if ending.code and not self.signals.heard:
                    self._end(list(running))
                    raise RunError(_failure(rank, homes[rank], ending))
        if signal.SIGINT in self.signals.heard:
            raise KeyboardInterrupt
        return max(codes.values())

    def _reserve(self, name: str | None) -> Any:
        """Room for all actors, those of a node together; waits until the cluster has it."""
        bundles = [self._needs(count) for _, count in sorted(Counter(self.nodes).items())]
        room = self.ray.util.placement_group(bundles, strategy="SPREAD", name=f"{name}-room" if name else "")
        waited = False
        while not self.ray.wait([room.ready()], timeout=0.5 if not waited else 5)[0]:
            if self.signals.heard:
                raise KeyboardInterrupt
            if not waited:
                get_logger().info("Ray: waiting until the cluster has %s", bundles)
            waited = True
        return room

    def _needs(self, count: int) -> dict[str, int]:
        return {"CPU": count, **({} if self.group.device == "CPU" else {self.group.device: count})}

    def _actor(self, rank: int, name: str | None) -> Any:
        strategies = self.ray.util.scheduling_strategies
        bundle = sorted(set(self.nodes)).index(self.nodes[rank])
        device = self.group.device
        settings: dict[str, Any] = {
            "num_cpus": 1,
            "max_concurrency": 2,  # the second one tells the command signals
            "scheduling_strategy": strategies.PlacementGroupSchedulingStrategy(
                self.room, placement_group_bundle_index=bundle
            ),
        }
        if device == "GPU":
            settings["num_gpus"] = 1
        elif device == "NPU":
            settings["resources"] = {"NPU": 1}
        if name:
            settings["name"] = f"{name}-{rank}"
        try:
            return self.ray.remote(Member).options(**settings).remote(f"{name or 'swift'} rank {rank}")
        except ValueError as error:  # a name that is taken
            raise UsageError(f"--ray_exp_name {name}: {error}") from error

    def _get(self, references: list[Any]) -> list[Any]:
        while self.ray.wait(references, num_returns=len(references), timeout=0.5)[1]:
            if self.signals.heard:
                raise KeyboardInterrupt
        return self.ray.get(references)

    def _ended(self, references: list[Any]) -> list[Any]:
        """Those that have ended, at least one, unless a signal has come: it is passed on."""
        ended, _ = self.ray.wait(references, timeout=0.5)
        for number in self.signals.heard[self.told :]:
            again = number in self.signals.heard[: self.told]
            self._tell(signal.SIGKILL if again else number)
            self.told += 1
        return ended

    def _ending(self, reference: Any, rank: int) -> Ending:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            words = str(error).strip().splitlines() or [type(error).__name__]
            get_logger().error("Ray: the actor of rank %d was lost: %s", rank, words[0])
            return Ending(1, tuple(words[:LAST_WORDS]))

    def _tell(self, number: signal.Signals) -> None:
        for actor in self.actors:
            actor.tell.remote(int(number))

    def _end(self, references: list[Any]) -> None:
        """End what still runs: kindly, and after some seconds not."""
        if not references:
            return
        self._tell(signal.SIGTERM)
        _, left = self.ray.wait(references, num_returns=len(references), timeout=PATIENCE)
        if left:
            self._tell(signal.SIGKILL)
            self.ray.wait(left, num_returns=len(left), timeout=PATIENCE)


def places(homes: Sequence[Home], device: str) -> list[dict[str, str]]:
    """The variables of the environment by which each process knows its place, as torchrun would set them.

    The processes of a node see the devices of all of them, so that a device is found by its LOCAL_RANK.
    """
    nodes = Counter(home.node for home in homes)
    first = homes[0]
    address = "127.0.0.1" if len(nodes) == 1 else first.address
    seen: Counter[str] = Counter()
    made = []
    for rank, home in enumerate(homes):
        variables = {
            "RANK": rank, "WORLD_SIZE": len(homes), "LOCAL_RANK": seen[home.node], "LOCAL_WORLD_SIZE": nodes[home.node],
            "MASTER_ADDR": address, "MASTER_PORT": first.port, "TORCHELASTIC_RUN_ID": "ray",
        }  # fmt: skip
        if device in VISIBLE:
            variables[VISIBLE[device]] = ",".join(
                number for each in homes if each.node == home.node for number in each.devices
            )
        made.append({name: str(value) for name, value in variables.items()})
        seen[home.node] += 1
    return made


def _failure(rank: int, home: Home, ending: Ending) -> str:
    said = "\n".join(f"  {line}" for line in ending.last_words)
    return f"rank {rank} on {home.address} ended with exit code {ending.code}; the others were ended. Its last words:\n{said}"
