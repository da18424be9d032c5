"""This file knows a request that is being answered: its rows, who hears of them, and what was heard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from swift.engines.base import Delta, Request, TokenLogprob
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
            prompt, told = self._prompt(row), self._fresh(row)
            if row.piece or told or prompt:
                self.news.append(Delta(row.piece, logprobs=told, index=row.index, prompt_logprobs=prompt))

    def finished(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
        """Note the end of a row: what its last token completed, then what was held back, with the whole."""
        if row.token_ids:
            self.grew(row)
        completion = row.completion(tokenizer)
        self.ended += 1
        self.news.append(Delta(row.piece, completion, index=row.index, prompt_logprobs=self._prompt(row)))

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

    def _prompt(self, row: Row) -> list[TokenLogprob] | None:
        """What is told of the prompt, as long as nothing is told of the row."""
        return row.prompt_logprobs if row.index not in self.told else None

    def _fresh(self, row: Row) -> list[TokenLogprob]:
        told = self.told.get(row.index, 0)
        self.told[row.index] = len(row.logprobs)
        return row.logprobs[told:]


class Heard:
    """What the listener of a request has heard of it."""

    def __init__(self, job: Job) -> None:
        self._left = len(job.rows)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to hear."""
        return not self._left

    def deltas(self, news: Sequence[Delta] | BaseException) -> Sequence[Delta]:
        """The pieces in what was heard. Raises what has gone wrong."""
        if isinstance(news, BaseException):
            raise news
        self._left -= sum(delta.completion is not None for delta in news)
        return news
