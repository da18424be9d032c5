"""This file knows a request that is being answered: its rows, and who hears of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from swift.engines.base import Delta, Request
from swift.engines.rows import Row

Hear = Callable[[Sequence[Delta] | BaseException], None]
"""Told what is new, in the thread of the engine; an exception is the last it hears."""


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way.

    rows: one per completion.
    streamed: whether every piece is told; else whole completions only.
    cancelled: set, from any thread, when nobody listens any more.
    news: what was not told yet.
    told: how many log-probabilities of each row were told.
    ended: how many rows have.
    """

    request: Request
    rows: list[Row]
    hear: Hear
    streamed: bool
    cancelled: bool = False
    news: list[Delta] = field(default_factory=list)
    told: dict[int, int] = field(default_factory=dict)
    ended: int = 0

    @property
    def searches(self) -> bool:
        """Whether it asks for beam search, which looks at whole replies."""
        return self.request.sampling.num_beams > 1

    @property
    def done(self) -> bool:
        """Whether nothing more is to be done for it."""
        return self.cancelled or self.ended == len(self.rows)

    def grew(self, row: Row) -> None:
        """Note a token of a row that goes on."""
        if self.streamed:
            told = self._fresh(row)
            if row.piece or told:
                self.news.append(Delta(row.piece, logprobs=told, index=row.index))

    def finished(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
        """Note the end of a row: what its last token completed, then what was held back, with the whole."""
        if row.token_ids:
            self.grew(row)
        completion = row.completion(tokenizer)
        self.ended += 1
        self.news.append(Delta(row.piece, completion, index=row.index))

    def tell(self) -> None:
        """Let the listener hear what is new."""
        if self.news and not self.cancelled:
            news, self.news = self.news, []
            self.hear(news)

    def fail(self, error: BaseException) -> None:
        """Let the listener hear that nothing more will come, and why."""
        if not self.done:
            self.ended = len(self.rows)
            self.hear(error)

    def _fresh(self, row: Row) -> list:
        told = self.told.get(row.index, 0)
        self.told[row.index] = len(row.logprobs)
        return row.logprobs[told:]
