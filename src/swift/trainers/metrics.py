"""This file knows how good replies are: accuracy and overlap, computed over rows of results."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7a3"
"""Kana, Chinese characters and Hangul: scripts written without blanks, or with blanks that do not part words."""
TOKEN = re.compile(rf"[{IDEOGRAPHS}]|[^\W_{IDEOGRAPHS}]+|[^\w\s]|_")


def accuracy(rows: Sequence[Row]) -> dict[str, float]:
    """The share of rows whose `response` equals their `labels`, from 0 to 1.

    Rows without labels are not counted; {} when there is no other.
    """
    pairs = _answered(rows)
    if not pairs:
        return {}
    return {"acc": sum(response == label for response, label in pairs) / len(pairs)}


def rouge(rows: Sequence[Row]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2, ROUGE-L (F1) and BLEU-4 times 100, each the mean over rows; {} when no row has labels.

    Tokens are words, and single characters of Chinese, Japanese and Korean, so that the numbers need no dictionary
    and do not depend on one. Case counts.
    """
    pairs = _answered(rows)
    if not pairs:
        return {}
    split = [(tokens(str(response)), tokens(str(label))) for response, label in pairs]
    measures: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
        "rouge-1": lambda response, label: rouge_n(response, label, 1),
        "rouge-2": lambda response, label: rouge_n(response, label, 2),
        "rouge-l": rouge_l,
        "bleu-4": bleu,
    }
    return {name: 100 * sum(measure(*pair) for pair in split) / len(split) for name, measure in measures.items()}


def tokens(text: str) -> list[str]:
    """Words and numbers whole, Chinese, Japanese and Korean by character, every other mark by itself."""
    return TOKEN.findall(text)


def rouge_n(response: Sequence[str], label: Sequence[str], n: int) -> float:
    """F1 of the n-grams that both have, repeated ones counted as often as both repeat them (Lin 2004, ROUGE-N)."""
    ours, theirs = _ngrams(response, n), _ngrams(label, n)
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(response: Sequence[str], label: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004, ROUGE-L with beta 1)."""
    return _f1(common_subsequence(response, label), len(response), len(label))


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, a whole row of the table at a time in the bits of one number.

    Hyyrö 2004, "Bit-parallel LCS-length computation revisited": V' = (V + (V & M)) | (V & ~M), where M has the
    places of a symbol; zeros of V are the length.
    """
    places: dict[Hashable, int] = {}
    for index, symbol in enumerate(a):
        places[symbol] = places.get(symbol, 0) | (1 << index)
    everything = (1 << len(a)) - 1
    row = everything
    for symbol in b:
        matched = row & places.get(symbol, 0)
        row = ((row + matched) | (row - matched)) & everything
    return len(a) - row.bit_count()


def bleu(response: Sequence[str], label: Sequence[str], order: int = 4) -> float:
    """BLEU of one sentence against one reference, from 0 to 1 (Papineni et al. 2002, eq. 3).

    brevity * exp(mean over n of log p_n), where p_n is the share of the response's n-grams that the label has. An
    order without a match counts 1 / (2^k * number of n-grams), k being how many such orders have come so far (Chen
    and Cherry 2014, smoothing 3), so that short replies do not all score 0. Not one common word is 0.
    """
    logs, missed = 0.0, 0
    for n in range(1, order + 1):
        ours = _ngrams(response, n)
        matched, total = (ours & _ngrams(label, n)).total(), max(ours.total(), 1)
        if matched == 0 and n == 1:
            return 0.0
        if matched == 0:
            missed += 1
        precision = matched / total if matched else 1 / (2**missed * total)
        logs += math.log(precision)
    brevity = 1.0 if len(response) > len(label) else math.exp(1 - len(label) / len(response))
    return brevity * math.exp(logs / order)


def _answered(rows: Sequence[Row]) -> list[tuple[Any, Any]]:
    return [(row["response"], row["labels"]) for row in rows if row["labels"] is not None]


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0
