"""Losses without all logits against the same losses with them, value and gradient, whatever the chunks."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from swift.losses import chunked, objective
from swift.losses.chunked import learn, token_logps_of
from swift.losses.objective import Objective
from swift.losses.projection import Projection, plain

N, D, V = 13, 6, 17


def case(dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    targets = torch.randint(0, V, (N,), generator=generator)
    return draw(N, D), draw(V, D), draw(V), targets, torch.rand(N, generator=generator) * 3


def by_hand(logits, targets, weights, smoothing=0.0, dft=False):
    """The formula in float64, from torch's own softmax."""
    logps = logits.double().log_softmax(-1)
    losses = -(1 - smoothing) * logps.gather(-1, targets[:, None]).squeeze(-1) - smoothing * logps.mean(-1)
    if dft:
        losses = losses * logps.gather(-1, targets[:, None]).squeeze(-1).exp().detach()
    return losses * weights.double()


def rows_of(count: int, monkeypatch) -> None:
    """Chunks of so many rows, gone through in blocks of so many."""
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", 4 * V * count)
    monkeypatch.setitem(objective.BLOCK_BYTES, "cpu", 4 * V * max(1, count // 2))


@pytest.mark.parametrize("count", [1, 4, 100])
@pytest.mark.parametrize(("smoothing", "dft"), list(itertools.product([0.0, 0.2], [False, True])))
def test_losses_and_gradients_are_those_of_the_formula_whatever_the_chunk(count, smoothing, dft, monkeypatch):
    rows_of(count, monkeypatch)
    hidden, weight, bias, targets, weights = case()
    found = learn(hidden, plain(weight, bias), targets, weights, Objective(smoothing, dft))
    expected = by_hand(F.linear(hidden, weight, bias), targets, weights, smoothing, dft)
    torch.testing.assert_close(found.losses.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.total.double(), expected.sum(), rtol=1e-6, atol=1e-6)
    leaves = (hidden, weight, bias)
    ours = torch.autograd.grad(found.total / 7, leaves)
    theirs = torch.autograd.grad(expected.sum() / 7, leaves)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_the_first_choice_counts_as_right_also_where_another_token_is_as_likely():
    logits = torch.tensor([[2.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
    found = learn(logits, Projection(lambda x: x, 3), torch.tensor([1, 1]), None, Objective())
    assert found.correct.tolist() == (logits.argmax(-1) == 1).float().tolist() == [0, 1]


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_scaled_and_capped_logits(scale, cap, monkeypatch):
    rows_of(4, monkeypatch)
    hidden, weight, _, targets, weights = case()
    logits = F.linear(hidden, weight) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    expected = by_hand(logits, targets, weights)
    way = Projection(lambda h: F.linear(h, weight), V, lambda: [weight], scale, cap)
    found = learn(hidden, way, targets, weights, Objective())
    torch.testing.assert_close(found.total.double(), expected.sum(), rtol=1e-6, atol=1e-6)
    for mine, other in zip(torch.autograd.grad(found.total, (hidden, weight)),
                           torch.autograd.grad(expected.sum(), (hidden, weight)), strict=True):  # fmt: skip
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_what_is_frozen_gets_no_gradient_and_costs_none():
    hidden, weight, bias, targets, weights = case()
    weight.requires_grad_(False)
    found = learn(hidden, plain(weight, bias), targets, weights, Objective())
    found.total.backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert bias.grad is not None
    with torch.no_grad():
        assert not learn(hidden, plain(weight, bias), targets, weights, Objective()).total.requires_grad


def test_gradients_of_many_bfloat16_chunks_are_summed_in_float32(monkeypatch):
    rows_of(1, monkeypatch)
    hidden, weight, bias, targets, weights = case(torch.bfloat16)
    learn(hidden, plain(weight, bias), targets, weights, Objective()).total.backward()
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight, bias)]
    by_hand(F.linear(*exact), targets, weights).sum().backward()
    for mine, other in zip((hidden, weight, bias), exact, strict=True):
        assert mine.grad.dtype == torch.bfloat16
        error = (mine.grad.double() - other.grad).norm() / other.grad.norm()
        assert error < 0.01


def test_nothing_learnt_gives_nothing():
    hidden, weight, bias, *_ = case()
    empty = torch.zeros(0, dtype=torch.int64)
    found = learn(hidden[:0], plain(weight, bias), empty, None, Objective())
    found.total.backward()
    assert float(found.total.detach()) == 0
    assert float(hidden.grad.abs().sum()) == 0
    assert token_logps_of(hidden[:0], plain(weight, bias), empty).shape == (0,)


@pytest.mark.parametrize("count", [1, 4, 100])
def test_log_probabilities_of_hidden_states_take_any_gradient(count, monkeypatch):
    rows_of(count, monkeypatch)
    hidden, weight, bias, targets, _ = case()
    pull = torch.linspace(-2, 1, N)
    ours = token_logps_of(hidden, plain(weight, bias), targets)
    theirs = -F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    leaves = (hidden, weight, bias)
    for mine, other in zip(torch.autograd.grad((ours.exp() * pull).sum(), leaves),
                           torch.autograd.grad((theirs.exp() * pull).sum(), leaves), strict=True):  # fmt: skip
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_logits_of_all_tokens_are_never_there_at_once(monkeypatch):
    """The output layer is asked for a few rows at a time, forward and backward."""
    rows_of(4, monkeypatch)
    hidden, weight, _, targets, weights = case()
    seen: list[int] = []

    def layer(some):
        seen.append(len(some))
        return F.linear(some, weight)

    way = Projection(layer, V, lambda: [weight])
    learn(hidden, way, targets, weights, Objective()).total.backward()
    assert seen == [4, 4, 4, 1]
    seen.clear()
    token_logps_of(hidden, way, targets).sum().backward()
    assert seen[:4] == [4, 4, 4, 1]
    assert sorted(seen[4:]) == [1, 4, 4, 4]
