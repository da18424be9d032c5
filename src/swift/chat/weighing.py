"""This file knows how weights of what is said become weights of tokens.

A weight belongs to characters. The tokens are those that the text has without weights, and each takes the weight of its
first character.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from swift.chat.messages import Message
from swift.chat.skeletons import TextPiece
from swift.chat.weights import Base, LossPlan, LossScale
from swift.core.errors import DataError


class Run(NamedTuple):
    """Characters of one weight, up to `end`."""

    end: int
    weight: float


Runs = tuple[Run, ...]
"""The weights of a text: runs in order, the last of which ends where the text does."""


def weigh(text: str, query: str | None, refinements: Sequence[LossScale]) -> Runs:
    """The weights of a text that is learnt, neighbours of one weight in one run.

    Raises DataError when a refinement gives pieces that are not the text.
    """
    pieces = [(text, 1.0)]
    for refinement in refinements:
        parted: list[tuple[str, float]] = []
        for piece, weight in pieces:
            parts, weights = refinement.get_loss_scale(piece, query=query)
            if "".join(parts) != piece or len(parts) != len(weights):
                raise DataError(
                    f"--loss_scale: the pieces of {type(refinement).__name__} are not the text it was given."
                )
            parted += [(part, weight * float(scale)) for part, scale in zip(parts, weights, strict=True)]
        pieces = parted
    runs: list[Run] = []
    end = 0
    for piece, weight in pieces:
        if not piece:
            continue
        end += len(piece)
        if runs and runs[-1].weight == weight:
            runs.pop()
        runs.append(Run(end, weight))
    return tuple(runs)


def window(runs: Runs, start: int, end: int) -> Runs:
    """The weights of the characters from `start` to `end`, counted from `start`; empty when there are none."""
    found: list[Run] = []
    for run in runs:
        if run.end > start and start < end:
            found.append(Run(min(run.end, end) - start, run.weight))
            if run.end >= end:
                break
    return tuple(found)


def token_weights(runs: Runs, starts: Sequence[int]) -> list[float]:
    """The weight of each token, which is that of its first character.

    starts: the first character of each token, in order.
    """
    weights: list[float] = []
    at = 0
    for start in starts:
        while at < len(runs) - 1 and runs[at].end <= start:
            at += 1
        weights.append(runs[at].weight)
    return weights


def is_on(piece: TextPiece, learnt: Sequence[bool], base: Base) -> bool:
    """Whether a piece is learnt at all."""
    return base == "all" if piece.turn is None else learnt[piece.turn]


def runs_of(
    pieces: Sequence[TextPiece],
    learnt: Sequence[bool],
    messages: Sequence[Message],
    plan: LossPlan,
    stops: Sequence[str],
) -> list[Runs] | None:
    """The weights of every piece as the refinements of --loss_scale say; None when there are none.

    learnt: whether each message is learnt; stops: the words that end replies.
    """
    if not plan.refinements:
        return None
    said: dict[int, str] = {}
    for piece in pieces:
        if piece.turn is not None and learnt[piece.turn]:
            said[piece.turn] = said.get(piece.turn, "") + piece.text
    weighed = {turn: _reply(text, _query(messages, turn), plan, stops) for turn, text in said.items()}
    found: list[Runs] = []
    at = dict.fromkeys(weighed, 0)
    for piece in pieces:
        if piece.turn is None or piece.turn not in weighed:
            found.append((Run(len(piece.text), float(is_on(piece, learnt, plan.base))),))
            continue
        begin, end = at[piece.turn], at[piece.turn] + len(piece.text)
        found.append(window(weighed[piece.turn], begin, end))
        at[piece.turn] = end
    return found


def mixed(pieces: Sequence[TextPiece], runs: Sequence[Runs] | None) -> list[tuple[str, bool]]:
    """The pieces within which the weight changes, and whether each goes on from another piece."""
    return [(pieces[i].text, i > 0) for i, weights in enumerate(runs or []) if len(weights) > 1]


def weights_of(
    runs: Sequence[Runs] | None, ids: Sequence[Sequence[int]], starts: Iterator[list[int]]
) -> list[list[float]] | None:
    """The weights of the tokens of every piece; `starts` gives where tokens begin, for each piece of `mixed`."""
    if runs is None:
        return None
    return [
        token_weights(piece, next(starts)) if len(piece) > 1 else [piece[0].weight if piece else 0.0] * len(tokens)
        for piece, tokens in zip(runs, ids, strict=True)
    ]


def _reply(text: str, query: str | None, plan: LossPlan, stops: Sequence[str]) -> Runs:
    """The weights of a reply; the word that ends it weighs 1."""
    said = text.rstrip()
    body = len(said) - max((len(word) for word in stops if said.endswith(word)), default=len(said) - len(text))
    runs = weigh(text[:body], query, plan.refinements)
    if body < len(text):
        kept = runs[:-1] if runs and runs[-1].weight == 1 else runs
        return (*kept, Run(len(text), 1.0))
    return runs


def _query(messages: Sequence[Message], turn: int) -> str | None:
    """What the user said last before a reply."""
    return next((message.content for message in reversed(messages[:turn]) if message.role == "user"), None)
