"""How tokens are chosen: the same cuts as transformers' own, row by row, whatever the other rows want."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swift.engines import choosing
from swift.engines.choosing import adjusted, among_likeliest, choose, draw, ranked, within
from swift.engines.rows import Choice, Row

VOCABULARY = 3000
CHOICES = [
    Choice(True, 0.7, top_k=20), Choice(True, 1.3, top_p=0.6), Choice(True, 1.0, min_p=0.1), Choice(True, 2.0, 50, 0.9, 0.01),
    Choice(True, 1.0, top_k=1), Choice(True, 0.01, top_p=0.99), Choice(True, 1.5, top_p=0.999), Choice(True, 1.0),
    Choice(True, 1.0, top_k=5000), Choice(True, 5.0, top_p=0.999), Choice(True, 1.0, top_k=300, top_p=0.5),
]  # fmt: skip


def logits(rows, seed=0, coarse=False):
    made = 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return (4 * made).round() / 4 if coarse else made  # coarse ones have many ties, as those of bfloat16


def theirs(choice):
    made = LogitsProcessorList()
    if choice.temperature != 1.0:
        made.append(TemperatureLogitsWarper(choice.temperature))
    if choice.top_k:
        made.append(TopKLogitsWarper(choice.top_k))
    if choice.top_p < 1:
        made.append(TopPLogitsWarper(choice.top_p))
    if choice.min_p:
        made.append(MinPLogitsWarper(choice.min_p))
    return made


@pytest.mark.parametrize("choice", CHOICES)
def test_a_row_draws_from_what_the_warpers_of_transformers_leave(choice):
    scores = logits(1)
    expected = torch.softmax(theirs(choice)(None, scores.clone()), -1)[0]
    cumulated = torch.cumsum(expected.sort(descending=True, stable=True).values.double(), 0)
    order = expected.sort(descending=True, stable=True).indices
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        share = torch.rand(1, generator=torch.Generator().manual_seed(seed))
        drawn = int(draw(scores, [Row([1], 9, choice, generator=generator)]))
        assert expected[drawn] > 0
        if choice.top_k or choice.top_p < 1 or choice.min_p:
            assert drawn == int(order[torch.searchsorted(cumulated, share.double() * cumulated[-1], right=True)])


@pytest.mark.parametrize("coarse", [False, True])
def test_what_a_row_draws_does_not_depend_on_the_others(coarse):
    scores = logits(len(CHOICES), coarse=coarse)
    for seed in range(10):
        rows = [Row([1], 9, c, generator=torch.Generator().manual_seed(seed + i)) for i, c in enumerate(CHOICES)]
        together = choose(scores, rows)
        for i, choice in enumerate(CHOICES):
            alone = Row([1], 9, choice, generator=torch.Generator().manual_seed(seed + i))
            assert choose(scores[i : i + 1], [alone]) == [together[i]]


def test_ties_of_the_last_of_top_k_may_be_drawn_too():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0, 2.0]])
    values, order = ranked(scores, 6)
    kept = within(values, torch.logsumexp(scores, -1, keepdim=True), [Choice(True, top_k=2)])
    assert order[kept].tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize("rung", [2, 8, 5000])
def test_how_many_tokens_are_sorted_changes_nothing(rung, monkeypatch):
    scores, share = logits(6), torch.rand(6, 1, generator=torch.Generator().manual_seed(1))
    choices = [CHOICES[i] for i in (0, 1, 2, 3, 5, 10)]
    expected = among_likeliest(scores, choices, share)
    monkeypatch.setattr(choosing, "LADDER", (rung,))
    assert among_likeliest(scores, choices, share).tolist() == expected.tolist()


def test_the_repetition_penalty_is_that_of_transformers_on_prompt_and_reply():
    scores = logits(2)
    rows = [Row([5, 6, 7, 5], 9, Choice(repetition_penalty=1.7), token_ids=[8, 8]), Row([5], 9)]
    ids = torch.tensor([[5, 6, 7, 5, 8, 8]])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, scores[:1].clone())
    found = adjusted(scores, rows)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], scores[1])
    assert found is not scores, "the logits themselves are told as they were"
