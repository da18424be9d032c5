"""This file knows how replies grow out of what vLLM puts out: tokens become text, and ends of turns are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift.engines.base import Completion, Delta, FinishReason, Request, TokenLogprob
from swift.engines.detokenizer import Detokenizer, decode


@dataclass
class _Growing:
    """One completion that grows."""

    text: Detokenizer
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    is_begun: bool = False
    completion: Completion | None = None


class Reply:
    """What has come of a request so far.

    prompt, parameters, lora: the request in vLLM's words. end_ids: the tokens that end a turn.
    news: pieces that nobody has taken yet.
    """

    def __init__(self, request: Request, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int], *,
                 prompt: Any, parameters: Any, lora: Any) -> None:  # fmt: skip
        self.request = request
        self.prompt = prompt
        self.parameters = parameters
        self.lora = lora
        self.news: list[Delta] = []
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._prompt: list[TokenLogprob] | None = None
        self._growing = [_Growing(Detokenizer(tokenizer)) for _ in range(request.sampling.n)]

    @property
    def completions(self) -> list[Completion]:
        """Those that are complete, in order."""
        return [each.completion for each in self._growing if each.completion is not None]

    @property
    def is_complete(self) -> bool:
        """Whether all of them are."""
        return all(each.completion is not None for each in self._growing)

    def take(self, output: Any) -> list[Delta]:
        """The pieces in an output of vLLM."""
        top = self.request.sampling.prompt_logprobs
        if top is not None and self._prompt is None and output.prompt_logprobs:
            self._prompt = self._told(self.request.prompt.input_ids[1:], output.prompt_logprobs[1:], top)
        return [
            self._delta(part, index)
            for part in output.outputs
            for index in self._indices(part.index)
            if self._growing[index].completion is None
        ]

    def _indices(self, index: int) -> Sequence[int]:
        """The completions that a part belongs to: all of them where vLLM makes one, as it does of greedy ones."""
        return (index,) if self.parameters.n == len(self._growing) else range(len(self._growing))

    def _delta(self, part: Any, index: int) -> Delta:
        growing = self._growing[index]
        ids = list(part.token_ids)
        reason: FinishReason | None = None
        if part.finish_reason is not None:
            reason = "length" if part.finish_reason == "length" else "stop"
            if ids and ids[-1] in self._end_ids:
                ids, reason = ids[:-1], "stop"
        prompt, growing.is_begun = None if growing.is_begun else self._prompt, True
        sampling = self.request.sampling
        told = self._told(ids, part.logprobs, sampling.top_logprobs or 0) if sampling.wants_logprobs else []
        piece = "".join(growing.text.add(token_id) for token_id in ids)
        growing.token_ids += ids
        growing.logprobs += told
        if reason is None:
            return Delta(piece, None, told, index, prompt, ids)
        piece += growing.text.finish()
        logprobs = growing.logprobs if sampling.wants_logprobs else None
        growing.completion = Completion(growing.token_ids, growing.text.text, reason, logprobs, self._prompt)
        return Delta(piece, growing.completion, told, index, prompt, ids)

    def _told(self, ids: Sequence[int], logprobs: Any, count: int) -> list[TokenLogprob]:
        """What vLLM says of these tokens, with so many of the likeliest."""
        told = []
        if logprobs is None:
            return told
        for token_id, known in zip(ids, logprobs, strict=False):  # the end of a turn is no token of the reply
            likeliest = sorted((each.rank, other, each.logprob) for other, each in known.items() if each.rank <= count)
            top = tuple((other, self._word(other), value) for _, other, value in likeliest[:count])
            told.append(TokenLogprob(token_id, self._word(token_id), known[token_id].logprob, top))
        return told

    def _word(self, token_id: int) -> str:
        return decode(self._tokenizer, [token_id])
