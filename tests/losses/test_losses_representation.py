"""Every loss against a slow loop that follows its formula word by word."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from swift.losses import representation as losses
from swift.losses.representation import InfonceSettings, Matches

SIZES = (2, 1, 3, 4)


def matches(seed: int = 0, sizes=SIZES, labels=None) -> Matches:
    draw = torch.Generator().manual_seed(seed)

    def vectors(count):
        return functional.normalize(torch.randn(count, 6, generator=draw, dtype=torch.float64), dim=-1)

    documents = vectors(sum(sizes))
    known = [1.0 if i == 0 else 0.0 for size in sizes for i in range(size)] if labels is None else labels
    return Matches(vectors(len(sizes)), documents, tuple(sizes), torch.tensor(known, dtype=torch.float64))


def rows(of: Matches):
    """(anchor, its documents, their labels) of each row."""
    start = 0
    for anchor, size in zip(of.anchors, of.sizes, strict=True):
        yield anchor, of.documents[start : start + size], of.labels[start : start + size]
        start += size


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_cosine_similarity_is_the_squared_error_of_each_pair():
    of = matches(labels=[0.9, 0.1, 1.0, 0.2, 0.0, 0.4, 0.5, 0.6, 0.7, 0.8])
    slow = [(cosine(a, d) - float(y)) ** 2 for a, docs, ys in rows(of) for d, y in zip(docs, ys, strict=True)]
    torch.testing.assert_close(losses.cosine_similarity(of), torch.tensor(slow, dtype=torch.float64))


def test_contrastive_pulls_matches_and_pushes_what_is_within_the_margin():
    of = matches()
    slow = []
    for anchor, documents, labels in rows(of):
        for document, label in zip(documents, labels, strict=True):
            d, y = 1 - cosine(anchor, document), float(label)
            slow.append(0.5 * (y * d**2 + (1 - y) * max(0.0, 0.5 - d) ** 2))
    torch.testing.assert_close(losses.contrastive(of), torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [SIZES, (2,), (1, 1), (5,)])
def test_online_contrastive_looks_at_the_hard_pairs_of_the_batch(sizes):
    of = matches(3, sizes)
    distances = [(1 - cosine(a, d), float(y)) for a, docs, ys in rows(of) for d, y in zip(docs, ys, strict=True)]
    positive = [d for d, y in distances if y > 0.5]
    negative = [d for d, y in distances if y <= 0.5]
    mean = [sum(kind) / len(kind) if kind else math.nan for kind in (positive, negative)]
    hard_negative = [d for d in negative if d < (max(positive) if len(positive) > 1 else mean[1])]
    hard_positive = [d for d in positive if d > (min(negative) if len(negative) > 1 else mean[0])]
    slow = sum(d**2 for d in hard_positive) + sum(max(0.0, 0.5 - d) ** 2 for d in hard_negative)
    assert float(losses.online_contrastive(of)) == pytest.approx(slow)


def slow_infonce(of: Matches, settings: InfonceSettings) -> list[float]:
    every = list(rows(of))
    found = []
    for i, (anchor, documents, _) in enumerate(every):
        target = float(anchor @ documents[0])
        candidates = [
            float(anchor @ other)
            for j, (_, docs, _) in enumerate(every)
            for k, other in enumerate(docs)
            if (settings.uses_batch or j == i) and not (j == i and k == 0)
        ]
        if settings.includes_queries:
            candidates += [float(anchor @ other) for j, (other, _, _) in enumerate(every) if j != i]
        if settings.includes_documents:
            candidates += [
                float(documents[0] @ other)
                for j, (_, docs, _) in enumerate(every)
                for k, other in enumerate(docs)
                if not (j == i and k == 0)
            ]
        if settings.masks_fake_negatives:
            candidates = [each for each in candidates if each <= target + settings.fake_negative_margin]
        scores = [target, *candidates]
        total = math.log(sum(math.exp(each / settings.temperature) for each in scores))
        found.append(total - target / settings.temperature)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"temperature": 0.5}, {"uses_batch": False}, {"masks_fake_negatives": True},
        {"masks_fake_negatives": True, "fake_negative_margin": -0.2}, {"includes_queries": True},
        {"includes_documents": True}, {"uses_batch": False, "masks_fake_negatives": True},
        {"includes_queries": True, "includes_documents": True, "masks_fake_negatives": True},
    ],
)  # fmt: skip
def test_infonce_is_the_cross_entropy_of_the_match_among_its_candidates(settings):
    of, chosen = matches(5), InfonceSettings(**settings)
    slow = torch.tensor(slow_infonce(of, chosen), dtype=torch.float64)
    torch.testing.assert_close(losses.infonce(of, chosen), slow)


def test_every_row_has_the_hard_negatives_asked_for_or_none():
    cut = losses.with_negatives(matches(), 2)
    assert cut.sizes == (3, 1, 3, 3)
    kept = dict(enumerate(rows(matches())))
    for i, (_, documents, _) in enumerate(rows(cut)):
        whole = kept[i][1]
        assert torch.equal(documents[0], whole[0])
        assert all(any(torch.equal(each, known) for known in whole[1:]) for each in documents[1:])
    assert torch.equal(cut.documents[1], cut.documents[2])  # the one there is, twice


def test_pointwise_and_listwise_scores_of_rerankers():
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, 0, 0, 1, 0], dtype=torch.float64)
    slow = [
        -math.log(1 / (1 + math.exp(-s if y else s))) for s, y in zip(scores.tolist(), labels.tolist(), strict=True)
    ]
    torch.testing.assert_close(losses.pointwise(scores, labels), torch.tensor(slow, dtype=torch.float64))
    found = losses.listwise(scores, (3, 2), 2.0)
    first = math.log(sum(math.exp(s / 2) for s in (1.0, -2.0, 0.5))) - 0.5
    second = math.log(sum(math.exp(s / 2) for s in (3.0, 0.0))) - 1.5
    torch.testing.assert_close(found, torch.tensor([first, second], dtype=torch.float64))
    found.sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert losses.first_is_best(scores, (3, 2)).tolist() == [True, True]


def test_classifications_are_those_of_transformers():
    """The losses of a model of transformers are means over what ours gives one by one."""
    from transformers.loss.loss_utils import ForSequenceClassificationLoss

    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=draw)
    labels = {
        "single_label_classification": torch.tensor([0, 2, 1, 1]),
        "multi_label_classification": torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]),
        "regression": torch.randn(4, 3, generator=draw),
    }

    class Config:
        num_labels = 3

    for problem, known in labels.items():
        Config.problem_type = problem
        theirs = ForSequenceClassificationLoss(known, logits, Config)
        torch.testing.assert_close(losses.CLASSIFICATIONS[problem](logits, known).mean(), theirs)


def test_right_answers_are_exact():
    logits = torch.tensor([[2.0, -1.0, 0.5], [-1.0, -2.0, -3.0]])
    assert losses.right_single(logits, torch.tensor([0, 2])).tolist() == [True, False]
    hot = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    assert losses.right_multi(logits, hot).tolist() == [True, False]
