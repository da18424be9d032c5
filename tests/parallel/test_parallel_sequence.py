"""Attention over a row that several processes share equals attention on one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from swift.models.varlen import attend_by_sequence
from swift.parallel.attention import SharedAttention
from swift.parallel.mesh import Mesh, Shape, make_mesh, shape_for
from together import in_processes

HEADS, KV_HEADS, CHANNELS = 8, 4, 16
LENGTHS = (40, 7, 49)
PATIENCE = timedelta(minutes=2)


def states() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), CHANNELS) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]


def borders() -> torch.Tensor:
    return torch.nn.functional.pad(torch.tensor(LENGTHS, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))


class Layer(torch.nn.Module):
    """What attention asks of its layer."""

    num_key_value_groups = HEADS // KV_HEADS
    is_causal = True


def attended(attend: Any, query: Any, key: Any, value: Any, window: int | None) -> torch.Tensor:
    settings = {"scaling": CHANNELS**-0.5, "dropout": 0.0, "sliding_window": window}
    return attend(Layer(), query, key, value, None, cu_seq_lens_q=borders(), **settings)[0]


def whole(window: int | None) -> list[torch.Tensor]:
    """Output and gradients of query, key and value, on one process."""
    *inputs, direction = states()
    for tensor in inputs:
        tensor.requires_grad_()
    output = attended(attend_by_sequence, *inputs, window)
    output.backward(direction.transpose(1, 2))
    return [output.detach().transpose(1, 2), *(tensor.grad for tensor in inputs)]


def shared(mesh: Mesh, window: int | None) -> list[torch.Tensor]:
    """The same of one of several processes: its share of the tokens."""
    own = mesh.own(sum(LENGTHS))
    *inputs, direction = (tensor[:, :, own] for tensor in states())
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attended(SharedAttention(mesh, attend_by_sequence), *inputs, window)
    output.backward(direction.transpose(1, 2))
    return [output.detach().transpose(1, 2), *(tensor.grad for tensor in inputs)]


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("shape", [Shape(2, 1), Shape(1, 2), Shape(2, 2), Shape(1, 4)], ids=str)
def test_shared_attention_and_its_gradients_equal_those_of_one_process(
    shape: Shape, window: int | None, tmp_path: Path
) -> None:
    def work(rank: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        mesh = make_mesh(shape, rank, shape.size, PATIENCE)
        return mesh.own(sum(LENGTHS)), shared(mesh, window)

    expected = whole(window)
    for own, found in in_processes(shape.size, work, tmp_path):
        for want, have in zip(expected, found, strict=True):
            torch.testing.assert_close(have, want[:, :, own], rtol=1e-4, atol=5e-6)  # a ring adds in float32


@pytest.mark.slow
def test_two_rows_at_a_time_are_shared_by_two_processes_each(tmp_path: Path) -> None:
    def work(rank: int) -> tuple[int, int, torch.Tensor]:
        mesh = make_mesh(Shape(2, 1), rank, 4, PATIENCE)
        return mesh.row, mesh.rows, mesh.own(8)

    answers = in_processes(4, work, tmp_path)
    assert [(row, rows) for row, rows, _ in answers] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [own.tolist() for *_, own in answers[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(("size", "heads", "shape"), [
    (2, 8, Shape(2, 1)), (4, 2, Shape(2, 2)), (4, 3, Shape(1, 4)), (8, 4, Shape(4, 2)), (6, 4, Shape(2, 3)),
])  # fmt: skip
def test_heads_are_shared_as_far_as_they_go_and_a_ring_does_the_rest(size: int, heads: int, shape: Shape) -> None:
    assert shape_for(size, heads) == shape


@pytest.mark.parametrize("shape", [Shape(4, 1), Shape(2, 3), Shape(1, 4)], ids=str)
def test_every_token_belongs_to_one_process(shape: Shape) -> None:
    length = 3 * shape.multiple
    meshes = [Mesh(shape, rank, 1, None, None, None) for rank in range(shape.size)]  # type: ignore[arg-type]  # no groups are needed
    owned = torch.cat([mesh.own(length) for mesh in meshes])
    assert sorted(owned.tolist()) == list(range(length))


def test_a_ring_shares_the_work_of_a_causal_attention_evenly() -> None:
    meshes = [Mesh(Shape(1, 4), rank, 1, None, None, None) for rank in range(4)]  # type: ignore[arg-type]  # no groups are needed
    work = {int((mesh.own(64) + 1).sum()) for mesh in meshes}
    assert len(work) == 1
