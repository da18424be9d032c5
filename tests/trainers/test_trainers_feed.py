"""Which rows a process is dealt."""

from __future__ import annotations

from swift.trainers.feed import Dealing, Feed


def test_neighbours_are_dealt_the_same_rows_and_one_of_them_speaks() -> None:
    dealt = [Dealing(rank, 6, 2) for rank in range(6)]
    assert [each.row for each in dealt] == [0, 0, 1, 1, 2, 2]
    assert {each.rows for each in dealt} == {3}
    assert [each.leads for each in dealt] == [True, False] * 3


def test_twins_are_dealt_the_same_rows_and_others_their_own() -> None:
    assert Feed([], None, dict, 0, twins=2).dealing(3, 4) == Dealing(3, 4, 2)
    assert Feed([], None, dict, 0).dealing(3, 4).row == 3
