"""The supervised loss against torch and against the formula written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from swift.losses import logps
from swift.losses.logps import token_logps
from swift.losses.objective import Objective
from swift.losses.projection import identity
from swift.losses.reduce import sequence_of_packed, sum_by_sequence
from swift.losses.supervised import Learnt, predicted, score, sequence_accuracy, token_accuracy


def case(rows: int = 7, vocabulary: int = 11, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, vocabulary, generator=generator).to(dtype).requires_grad_()
    return logits, torch.randint(0, vocabulary, (rows,), generator=generator)


def scored(logits, targets, weights, whose, count, objective=Objective()):  # noqa: B008 (a frozen value)
    learns = torch.ones(1, len(targets), dtype=torch.bool)
    return score(logits, identity(logits.shape[-1]), Learnt(learns, targets, weights, whose, count), objective)


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_log_probabilities_and_their_gradient_equal_torchs_whatever_the_chunk(chunk_rows, monkeypatch):
    monkeypatch.setattr(logps, "CHUNK_BYTES", 4 * 11 * chunk_rows)
    logits, targets = case()
    pull = torch.linspace(-1, 2, len(targets))
    ours = token_logps(logits, targets)
    theirs = -F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad((ours * pull).sum(), logits)
    (expected,) = torch.autograd.grad((theirs * pull).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_the_gradient_is_that_of_finite_differences():
    logits, targets = case(4, 5, torch.float64)
    step = 1e-2
    (gradient,) = torch.autograd.grad(token_logps(logits, targets).sum(), logits)
    bump = torch.zeros_like(logits)
    bump[2, 3] = step
    slope = (token_logps(logits + bump, targets).sum() - token_logps(logits - bump, targets).sum()) / (2 * step)
    assert float(gradient[2, 3]) == pytest.approx(float(slope.detach()), abs=1e-3)


def test_bfloat16_logits_are_normalised_in_float32_and_get_a_bfloat16_gradient():
    logits, targets = case(5, 300, torch.bfloat16)
    ours = token_logps(logits, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, logits.float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1))
    ours.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_no_learnt_token_gives_loss_zero_and_a_gradient_of_nothing():
    logits = torch.zeros(0, 9, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.int64)
    scores = scored(logits, empty, None, empty, 2)
    assert scores.loss.tolist() == [0, 0]
    scores.total.backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 9)


def test_weights_multiply_losses_and_leave_the_count_of_tokens_alone():
    logits, targets = case()
    weights = torch.tensor([0.0, 0.5, 1, 2, 1, 3, 0.25])
    whose = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    scores = scored(logits, targets, weights, whose, 3)
    by_hand = [0.0, 0.0, 0.0]
    for i in range(7):
        probabilities = torch.softmax(logits[i].double(), -1)
        by_hand[int(whose[i])] -= float(weights[i]) * float(probabilities[targets[i]].log().detach())
    assert scores.loss.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert scores.tokens.tolist() == [3, 2, 2]


def test_a_position_predicts_the_label_of_the_next_token():
    labels = torch.tensor([[-100, -100, 7, 8], [-100, 5, 6, -100]])
    assert predicted(labels).tolist() == [[-100, 7, 8, -100], [5, 6, -100, -100]]


def test_tokens_of_a_packed_row_are_told_apart():
    assert sequence_of_packed(torch.tensor([0, 2, 3, 6])).tolist() == [0, 0, 1, 2, 2, 2]
    assert sum_by_sequence(torch.tensor([1.0, 2, 4]), torch.tensor([2, 0, 2]), 3).tolist() == [2, 0, 5]


@pytest.mark.parameter("acc_strategy")
def test_token_accuracy_counts_tokens_and_sequence_accuracy_whole_sequences():
    tokens, correct = torch.tensor([3.0, 2, 0, 1]), torch.tensor([3.0, 1, 0, 1])
    assert [int(x) for x in token_accuracy(tokens, correct)] == [5, 6]
    assert [int(x) for x in sequence_accuracy(tokens, correct)] == [2, 3]  # the third sequence learns nothing


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_equals_that_of_transformers(smoothing):
    from transformers.trainer_pt_utils import LabelSmoother

    torch.manual_seed(0)
    logits_NV = torch.randn(7, 11, requires_grad=True)
    targets_N = torch.randint(0, 11, (7,))
    ours = scored(logits_NV, targets_N, None, torch.zeros(7, dtype=torch.long), 1, Objective(smoothing)).total / 7
    theirs = LabelSmoother(epsilon=smoothing)({"logits": logits_NV[None]}, targets_N[None])
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits_NV)[0] for loss in (ours, theirs)))
