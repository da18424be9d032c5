from __future__ import annotations

from dataclasses import replace

import pytest
from chat_families import chat

from swift.chat.weights import LossScale, is_learnt, parse_loss_scale
from swift.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("default", LossScale("default")),
        ("last_round", LossScale("last_round")),
        ("all", LossScale("all")),
        ("ignore_empty_think", LossScale("default", ignore_empty_think=True)),
        ("last_round+ignore_empty_think", LossScale("last_round", ignore_empty_think=True)),
    ],
)
def test_a_base_strategy_and_refinements_are_read(text, scale) -> None:
    assert parse_loss_scale(text) == scale


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hermes", "not available yet: hermes"),
        ("default+react", "not available yet: react"),
        ("last_rund", "Did you mean: last_round?"),
        ("ignore_empty_think+all", "stands in front"),
        ("ignore_empty_think+ignore_empty_think", "twice"),
        ("", "unknown strategy ''"),
    ],
)
def test_every_other_name_is_refused_with_a_way_out(text, words) -> None:
    with pytest.raises(UsageError, match=r"--loss_scale") as caught:
        parse_loss_scale(text)
    assert words in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_loss_scale("default+hermes+nonsense")
    assert len(caught.value.problems) == 2


def test_a_message_that_says_whether_it_is_learnt_comes_before_the_strategy() -> None:
    talk = chat("Q", "A", "Q", "A", "Q", "A", system="S").messages
    asked = [replace(talk[0]), *talk[1:2], replace(talk[2], loss=True), *talk[3:6], replace(talk[6], loss=False)]
    assert is_learnt(talk, "default") == [False, False, True, False, True, False, True]
    assert is_learnt(talk, "last_round") == [False, False, False, False, False, False, True]
    assert is_learnt(talk, "all") == [True] * 7
    assert is_learnt(asked, "last_round") == [False, False, True, False, False, False, False]
    assert is_learnt(asked, "all") == [True] * 6 + [False]
