"""The metrics of result rows, against values computed by hand and by the packages the field uses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.catalog.components import METRICS
from swift.trainers.metrics import accuracy, bleu, common_subsequence, rouge, tokens

WORDS = st.lists(st.sampled_from("abcd"), max_size=14)


def rows(*pairs):
    return [{"response": response, "labels": labels, "messages": []} for response, labels in pairs]


@pytest.mark.parameter("metric")
def test_accuracy_is_the_share_of_equal_replies_among_rows_with_labels():
    assert accuracy(rows(("a", "a"), ("a", "A"), ("b", "b"), ("c", None), ("a b", "a"))) == {"acc": 0.5}
    assert accuracy(rows(("a", None))) == {}


@pytest.mark.parameter("metric")
def test_rouge_by_hand():
    # 2 of 3 words and 1 of 2 pairs in common, as seen from both sides; the common subsequence is "the fox"
    scores = rouge(rows(("the fox sleeps", "the fox runs")))
    assert scores["rouge-1"] == pytest.approx(100 * 2 / 3)
    assert scores["rouge-2"] == pytest.approx(100 / 2)
    assert scores["rouge-l"] == pytest.approx(100 * 2 / 3)
    # 2/3 words, 1/2 pairs, then 1/(2 * 1) and 1/(4 * 1) for the orders without a match; equal lengths
    assert scores["bleu-4"] == pytest.approx(100 * (2 / 3 * 1 / 2 * 1 / 2 * 1 / 4) ** (1 / 4))


def test_rouge_of_equal_texts_is_100_and_of_strangers_0():
    assert rouge(rows(("one two three four", "one two three four"))) == pytest.approx(dict.fromkeys(KEYS, 100.0))
    assert rouge(rows(("one", "two"), ("", "two"), ("one", ""))) == dict.fromkeys(KEYS, 0.0)
    assert rouge(rows(("one", None))) == {}


KEYS = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


def test_rouge_is_the_mean_over_rows():
    good, bad = rows(("one two", "one two")), rows(("one", "two"))
    assert rouge(good + bad)["rouge-1"] == pytest.approx(50.0)


def test_chinese_is_compared_character_by_character():
    assert tokens("今天天气好，ok 3.5 don't") == [
        "今", "天", "天", "气", "好", "，", "ok", "3", ".", "5", "don", "'", "t",
    ]  # fmt: skip
    assert rouge(rows(("今天好", "今天坏")))["rouge-1"] == pytest.approx(100 * 2 / 3)


@given(WORDS, WORDS)
def test_the_bits_count_the_longest_common_subsequence(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(a, b) == table[-1][-1]


@settings(deadline=None)  # the first call imports the package
@given(WORDS, WORDS)
def test_rouge_equals_that_of_rouge_score(a, b):
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(" ".join(b), " ".join(a))
    ours = rouge(rows((" ".join(a), " ".join(b))))
    for name, key in (("rouge-1", "rouge1"), ("rouge-2", "rouge2"), ("rouge-l", "rougeL")):
        assert ours[name] == pytest.approx(100 * theirs[key].fmeasure)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_bleu_equals_that_of_nltk(a, b):
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    theirs = sentence_bleu([b], a, smoothing_function=SmoothingFunction().method3) if a else 0.0
    assert bleu(a, b) == pytest.approx(theirs)


def test_every_choice_of_the_option_is_a_metric():
    from typing import get_args

    from swift.options.serving import InferOptions

    choices = [name for arm in get_args(InferOptions.model_fields["metric"].annotation) for name in get_args(arm)]
    assert set(choices) == set(METRICS)
