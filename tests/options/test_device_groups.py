"""Which devices of a Ray cluster do what, as it is written in --device_groups."""

from __future__ import annotations

import pytest

from swift.options.conditions import Words
from swift.options.device_groups import DeviceGroups, processes_on_ray, read_groups
from swift.options.parse import parse


def group(**changes):
    return {"device": "GPU", "ranks": 2, "workers": ["default"], **changes}


def read(**groups) -> DeviceGroups:
    found = read_groups({"nproc_per_node": 4, **groups})
    assert isinstance(found, DeviceGroups)
    return found


@pytest.mark.parametrize(("ranks", "meant"), [
    (3, (0, 1, 2)), ([1, 3], (1, 3)), ("list(range(0,4))", (0, 1, 2, 3)), ("list(range(2, 4))", (2, 3)),
    ("range(2)", (0, 1)),
])  # fmt: skip
def test_ranks_are_a_list_a_number_or_a_range(ranks, meant):
    assert read(all=group(ranks=ranks)).groups[0].ranks == meant


def test_a_number_of_ranks_means_the_next_free_ones():
    found = read(
        first=group(ranks=[0, 1], workers=["sampler"]), second=group(ranks=2), cpus=group(device="cpu", workers="orm")
    )
    assert [each.ranks for each in found.groups] == [(0, 1), (2, 3), (0, 1)]
    trains = found.working("default")
    assert trains is not None
    assert trains.name == "second"
    assert found.working("prm") is None


@pytest.mark.parametrize(("groups", "said"), [
    ({"nproc_per_node": 0, "a": group()}, "nproc_per_node"),
    ({"a": group()}, "nproc_per_node"),
    ({"nproc_per_node": 1, "a": {"device": "GPU"}}, "a must have device, ranks and workers"),
    ({"nproc_per_node": 1, "a": group(device="TPU")}, "TPU"),
    ({"nproc_per_node": 1, "a": group(ranks="all of them")}, "all of them"),
    ({"nproc_per_node": 1, "a": group(ranks="__import__('os')")}, "ranks of a"),
    ({"nproc_per_node": 1, "a": group(ranks=[-1])}, "ranks of a"),
    ({"nproc_per_node": 1, "a": group(ranks=[0, 0])}, "used already"),
    ({"nproc_per_node": 1, "a": group(), "b": group(ranks=[1], workers=["prm"])}, "used already"),
    ({"nproc_per_node": 1, "a": group(), "b": group(device="NPU", workers=["prm"])}, "GPUs or of NPUs"),
    ({"nproc_per_node": 1, "a": group(), "b": group()}, "default works in two groups"),
])  # fmt: skip
def test_what_is_not_understood_is_said(groups, said):
    words = read_groups(groups)
    assert isinstance(words, Words)
    assert said in words.en
    assert words.zh.startswith("--device_groups")


@pytest.mark.parameter("device_groups")
def test_the_ranks_that_train_are_the_processes_of_the_run(monkeypatch):
    for name in ("NPROC_PER_NODE", "NNODES", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    values = {"use_ray": True, "device_groups": {"nproc_per_node": 8, "all": group(ranks=8)}}
    assert processes_on_ray(values) == 8
    assert processes_on_ray({**values, "use_ray": False}) is None
    text = '{"nproc_per_node": 8, "all": {"device": "GPU", "ranks": 8, "workers": ["default"]}}'
    argv = ["--model", "m/m", "--dataset", "d/d", "--use_ray", "true", "--device_groups", text]
    assert parse("sft", argv).training.gradient_accumulation_steps == 2  # 16 rows, 8 processes
    assert parse("sft", [*argv, "--sequence_parallel_size", "4"]).training.gradient_accumulation_steps == 8
