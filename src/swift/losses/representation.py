"""This file knows the losses of embeddings, rerankers and classifiers, and how often these are right.

Axes: R rows of a batch, N sequences, D documents of all rows, K candidates of a row, G groups of documents, C classes
or values of a classification, E channels of an embedding.

A loss gives a value per thing it is a mean over, so that whoever calls it divides by the number of these things in the
whole optimizer step: the size of batches then changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Problem = Literal["regression", "single_label_classification", "multi_label_classification"]


@dataclass(frozen=True)
class Matches:
    """Embeddings of some rows: an anchor each, and documents it is compared with, first the one that matches it.

    anchors [R, E], documents [D, E]: of length 1 where the model normalises them.
    sizes: the documents of each row, which lie end to end; R numbers that sum up to D, each at least 1.
    labels [D]: how alike anchor and document are, 1 for the same meaning and 0 for none.
    """

    anchors: Tensor
    documents: Tensor
    sizes: tuple[int, ...]
    labels: Tensor

    @property
    def row_of(self) -> Tensor:
        """The row of each document, [D]."""
        sizes = torch.tensor(self.sizes, device=self.anchors.device)
        return torch.arange(len(self.sizes), device=sizes.device).repeat_interleave(sizes)

    @property
    def first_of(self) -> Tensor:
        """The place among all documents of the one that matches, for each row, [R]."""
        return torch.tensor([0, *accumulate(self.sizes)][:-1], device=self.anchors.device)

    @property
    def cosines(self) -> Tensor:
        """The cosine of each document with its anchor, [D]."""
        return functional.cosine_similarity(self.anchors[self.row_of], self.documents, dim=-1)


@dataclass(frozen=True)
class InfonceSettings:
    """How candidates are chosen and weighed; see `infonce`.

    hard_negatives: how many documents that do not match each row has, by leaving out its last or repeating them in
        turn; None leaves them as they are.
    """

    temperature: float = 0.1
    uses_batch: bool = True
    hard_negatives: int | None = None
    masks_fake_negatives: bool = False
    fake_negative_margin: float = 0.1
    includes_queries: bool = False
    includes_documents: bool = False


# ----------------------------------------------------------------------------------------------------------- embeddings


def cosine_similarity(matches: Matches) -> Tensor:
    """`(cos(a, b) - label)^2` for each pair of anchor and document, [D] (Reimers and Gurevych 2019, section 3)."""
    return (matches.cosines - matches.labels).square()


def contrastive(matches: Matches, margin: float = 0.5) -> Tensor:
    """`(y d^2 + (1 - y) max(0, margin - d)^2) / 2` with d = 1 - cos, for each pair, [D] (Hadsell et al. 2006, eq. 4)."""
    distance_D = 1 - matches.cosines
    near_D, far_D = distance_D.square(), functional.relu(margin - distance_D).square()
    return (matches.labels * near_D + (1 - matches.labels) * far_D) / 2


def online_contrastive(matches: Matches, margin: float = 0.5) -> Tensor:
    """`sum d_pos^2 + sum max(0, margin - d_neg)^2` over the hard pairs of a batch, with d = 1 - cos: one value, [1].

    A pair that does not match is hard when it is nearer than the farthest one that matches; one that matches when it is
    farther than the nearest one that does not. Where there is at most one of the other kind, the mean distance of its
    own kind is what it is held against. Pairs with a label above 0.5 match. (Sentence Transformers, OnlineContrastive.)
    """
    distance_D = 1 - matches.cosines
    is_match_D = matches.labels > 0.5
    positive, negative = distance_D[is_match_D], distance_D[~is_match_D]
    hard_negative = negative[negative < (positive.max() if len(positive) > 1 else negative.mean())]
    hard_positive = positive[positive > (negative.min() if len(negative) > 1 else positive.mean())]
    return (hard_positive.square().sum() + functional.relu(margin - hard_negative).square().sum())[None]


def infonce(matches: Matches, settings: InfonceSettings) -> Tensor:
    """`-log(exp(s_pos / T) / sum_k exp(s_k / T))` for each row, s being dot products, [R] (van den Oord et al. 2018).

    The candidates k of a row are its own documents, and with `uses_batch` those of all rows. Then also, as in Qwen3
    Embedding (arXiv:2506.05176, eq. 1): `includes_queries`, the other anchors against this one; `includes_documents`,
    all other documents against the one that matches. With `masks_fake_negatives` a candidate whose similarity is more
    than `fake_negative_margin` above s_pos is taken for another match and left out.
    """
    if settings.hard_negatives is not None:
        matches = with_negatives(matches, settings.hard_negatives)
    first_R, rows = matches.first_of, torch.arange(len(matches.sizes), device=matches.anchors.device)
    scores_RD = matches.anchors @ matches.documents.T
    matching_R = scores_RD[rows, first_R]
    is_target_RD = torch.zeros_like(scores_RD, dtype=torch.bool)
    is_target_RD[rows, first_R] = True
    blocks, left_out = [scores_RD], [torch.zeros_like(is_target_RD)]
    if not settings.uses_batch:
        left_out = [matches.row_of != rows[:, None]]
    if settings.includes_queries:
        blocks.append(matches.anchors @ matches.anchors.T)
        left_out.append(torch.eye(len(rows), dtype=torch.bool, device=rows.device))
    if settings.includes_documents:
        blocks.append(matches.documents[first_R] @ matches.documents.T)
        left_out.append(is_target_RD)
    scores_RK, is_out_RK = torch.cat(blocks, dim=1), torch.cat(left_out, dim=1)
    if settings.masks_fake_negatives:
        is_fake_RK = scores_RK.detach() > (matching_R.detach() + settings.fake_negative_margin)[:, None]
        is_fake_RK[rows, first_R] = False
        is_out_RK = is_out_RK | is_fake_RK
    scores_RK = scores_RK.masked_fill(is_out_RK, -torch.inf) / settings.temperature
    return functional.cross_entropy(scores_RK, first_R, reduction="none")


def with_negatives(matches: Matches, count: int) -> Matches:
    """Every row with `count` documents that do not match: its first ones, or repeated in turn; none where it has none."""
    places: list[int] = []
    sizes: list[int] = []
    for start, size in zip([0, *accumulate(matches.sizes)], matches.sizes, strict=False):
        negatives = [start + 1 + i % (size - 1) for i in range(count)] if size > 1 else []
        places += [start, *negatives]
        sizes.append(1 + len(negatives))
    chosen = torch.tensor(places, device=matches.documents.device)
    return replace(
        matches,
        documents=matches.documents[chosen],
        labels=matches.labels[chosen],
        sizes=tuple(sizes),
    )


# ------------------------------------------------------------------------------------------------------------ rerankers


def pointwise(scores_N: Tensor, labels_N: Tensor) -> Tensor:
    """Binary cross-entropy of the sigmoid of each score with its label, [N] (Nogueira and Cho 2019, eq. 1)."""
    return functional.binary_cross_entropy_with_logits(scores_N, labels_N, reduction="none")


def listwise(scores_N: Tensor, sizes: tuple[int, ...], temperature: float) -> Tensor:
    """`-log(exp(s_0 / T) / sum_k exp(s_k / T))` for each group, s_0 being its match's, [G] (Cao et al. 2007, ListNet).

    sizes: the sequences of each group; they lie end to end and the first one matches.
    """
    parts = [part / temperature for part in scores_N.split(list(sizes))]
    scores_GK = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-torch.inf)
    return functional.cross_entropy(scores_GK, scores_GK.new_zeros(len(parts), dtype=torch.int64), reduction="none")


def first_is_best(scores_N: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Whether the first sequence of each group has its highest score, [G]."""
    return torch.stack([part.argmax() == 0 for part in scores_N.split(list(sizes))])


# ------------------------------------------------------------------------------------------------------- classification


def single_label(logits_NC: Tensor, classes_N: Tensor) -> Tensor:
    """Cross-entropy of each sequence with its class, [N]."""
    return functional.cross_entropy(logits_NC, classes_N, reduction="none")


def multi_label(logits_NC: Tensor, labels_NC: Tensor) -> Tensor:
    """Binary cross-entropy of each sequence with each class, [N * C]; labels are 1 for its classes and 0 for others."""
    return functional.binary_cross_entropy_with_logits(logits_NC, labels_NC, reduction="none").flatten()


def regression(values_NC: Tensor, labels_NC: Tensor) -> Tensor:
    """Squared error of each value of each sequence, [N * C]."""
    return (values_NC - labels_NC).square().flatten()


CLASSIFICATIONS: dict[Problem, Callable[[Tensor, Tensor], Tensor]] = {
    "single_label_classification": single_label,
    "multi_label_classification": multi_label,
    "regression": regression,
}
"""`--problem_type` -> its loss."""


def right_single(logits_NC: Tensor, classes_N: Tensor) -> Tensor:
    """Whether the likeliest class of each sequence is its own, [N]."""
    return logits_NC.argmax(-1) == classes_N


def right_multi(logits_NC: Tensor, labels_NC: Tensor) -> Tensor:
    """Whether exactly the classes of a sequence are likelier than not, [N]."""
    return ((logits_NC >= 0) == (labels_NC > 0.5)).all(-1)


RIGHT: dict[Problem, Callable[[Tensor, Tensor], Tensor]] = {
    "single_label_classification": right_single,
    "multi_label_classification": right_multi,
}
"""`--problem_type` -> which sequences are classified right; a regression is never exactly right."""
