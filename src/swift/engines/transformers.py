"""This file knows how a model of transformers continues prompts, for one caller with many of them or many with one each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    EosTokenCriteria,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from swift.chat.render import Prompt
from swift.core import environment
from swift.core.errors import EngineError
from swift.core.logs import get_logger
from swift.engines.adapters import Adapters
from swift.engines.base import Completion, Delta, Request, Sampling, requests_of
from swift.engines.beams import search
from swift.engines.compiling import Compiling
from swift.engines.continuous import Continuous
from swift.engines.detokenizer import Detokenizer
from swift.engines.forward import Forward
from swift.engines.jobs import Heard, Job
from swift.engines.prefixes import Prefixes
from swift.engines.renewal import renewed
from swift.engines.rows import Choice, PromptTold, Row
from swift.engines.runner import Runner
from swift.engines.schedule import Limits, Schedule, Tokens
from swift.engines.settings import Settings, context_length_of
from swift.engines.structures import Structures
from swift.engines.trial import agrees
from swift.engines.whole import Prepared, Whole, padded_inputs, prepare

if TYPE_CHECKING:
    from peft import PeftModel  # seconds to import, and needed for its name only

AUTOMATIC_BATCH = 32
"""Requests that a server answers together when nobody said how many."""
WATCHED = {"cpu": 256}
"""Tokens of prompts that are read between two tokens of replies that someone watches, by kind of device."""
WATCHED_ELSEWHERE = 2048


class Transformers:
    """A model and its tokenizer, ready to continue prompts.

    max_batch_size: how many prompts are continued together; -1 is all of them.
    stop_token_ids: tokens that end a turn, beside the eos of the generation config and of the tokenizer.
    context_length: the most tokens of prompt and reply together; None asks the model's config.
    adapters: those of the model's adapters that requests may name; None of them is active for a request without.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch_size: int = 1,
        stop_token_ids: Sequence[int] = (),
        context_length: int | None = None,
        adapters: Sequence[str] = (),
    ) -> None:
        if max_batch_size < 1 and max_batch_size != -1:
            raise EngineError(f"--max_batch_size must be a positive number, or -1 for no limit (got {max_batch_size}).")
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.context_length = context_length if context_length is not None else context_length_of(model)
        self._settings = Settings(model.generation_config, tokenizer, stop_token_ids, self.context_length)
        self._adapters = Adapters(model, adapters)
        self._forward = Forward(model, self._adapters)
        self._prefixes = Prefixes()
        self._structures: Structures | None = None
        self._compiling = Compiling()
        self._asks_more: bool | None = None
        kind = model.device.type
        self._schedule = Schedule(
            self._runner,
            self._search,
            Tokens(tokenizer, self._settings.end_ids),
            Limits(max_batch_size, WATCHED.get(kind, WATCHED_ELSEWHERE)),
        )

    @property
    def adapters(self) -> Sequence[str]:
        """The names a request may give as its adapter."""
        return self._adapters.names

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts.

        What a prompt gets does not depend on its neighbours. Raises EngineError when one leaves no room for a reply.
        """
        return self.complete(requests_of(prompts, sampling))

    def complete(
        self, requests: Sequence[Request], done: Callable[[], object] = lambda: None
    ) -> list[list[Completion]]:
        """The completions of each request, in order; completion j of a request draws with its seed + j.

        done: called whenever a request has all of its completions.
        """
        heard: SimpleQueue[BaseException | None] = SimpleQueue()
        collectors = [_Collector(heard, request.sampling.n) for request in requests]
        jobs = [self._job(request, hear, streamed=False) for request, hear in zip(requests, collectors, strict=True)]
        # The longest first: prompts of like length are read together, and the end of the batch is not one long row.
        order = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].rows[0].prompt_ids))
        try:
            self._schedule.submit([jobs[i] for i in order])
            for _ in requests:
                error = heard.get()
                if error is not None:
                    raise error
                done()
        finally:
            for job in jobs:
                job.cancelled = True
        for job in jobs:
            self._debug(job)
        return [[collector.found[index] for index in sorted(collector.found)] for collector in collectors]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The pieces of one completion, a piece per token; characters are never split.

        Raises EngineError for more than one completion or beam: they have no order in time.
        """
        if sampling.num_beams > 1:
            raise EngineError(f"--stream true needs --num_beams 1 (got {sampling.num_beams}): beams end all at once.")
        if sampling.n > 1:
            raise EngineError(f"A stream carries one completion, not n = {sampling.n}.")
        return self.pieces(Request(prompt, sampling))

    async def answer(self, request: Request) -> AsyncGenerator[Delta, None]:
        """The pieces of all completions as they grow; leaving the iterator frees the place at the next token.

        Raises EngineError, before the first piece, for a request that cannot be answered.
        """
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Sequence[Delta] | BaseException] = asyncio.Queue()

        def hear(news: Sequence[Delta] | BaseException) -> None:
            try:
                loop.call_soon_threadsafe(heard.put_nowait, news)
            except RuntimeError:  # the loop has ended, and with it whoever asked
                job.cancelled = True

        make = partial(self._job, request, hear, streamed=True)
        job = make() if request.sampling.structure is None else await self._compiling.do(make)
        told = Heard(job)
        try:
            self._schedule.submit([job])
            while not told.is_over:
                for delta in told.deltas(await heard.get()):
                    yield delta
            self._debug(job)
        finally:
            job.cancelled = True

    def pieces(self, request: Request) -> Iterator[Delta]:
        """The same as `answer`, for who waits in a thread. It is asked at once, not when the first piece is."""
        heard: SimpleQueue[Sequence[Delta] | BaseException] = SimpleQueue()
        job = self._job(request, heard.put, streamed=True)
        self._schedule.submit([job])
        return self._pieces(job, heard)

    def check(self, request: Request) -> None:
        """Raises EngineError for a request that cannot be answered."""
        self._job(request, lambda _: None, streamed=False)

    def add_adapter(self, name: str, load: Callable[[Any], Any]) -> None:
        """One more adapter for requests to name. `load` gives the model with it, and is called between two steps."""
        if name in self._adapters.names:
            raise EngineError(f"There is an adapter {name!r} already.")

        def errand() -> None:
            self.model = load(self.model).eval()
            self._adapters.add(self.model, [name])
            self._forward.rebind(self.model)

        self._schedule.between_steps(errand)

    def forget(self) -> None:
        """Forget what was computed of earlier prompts: the weights have changed."""
        self._prefixes.clear()

    def load_weights(self, folder: Path) -> None:
        """Answer by the weights of another checkpoint from now on, and forget earlier prompts.

        Replies that are growing go on with the new weights, and what was computed for them by the old ones. Raises
        EngineError for a model with adapters, and for weights that do not fit.
        """
        if self.model is not self._forward.base:
            raise EngineError(
                "A model with adapters is not given other weights: they belong to the adapters. Merge them."
            )
        fresh = renewed(self.model, folder)

        def errand() -> None:
            self.model = fresh
            self._forward.rebind(fresh)
            self._prefixes.clear()

        self._schedule.between_steps(errand)

    def close(self) -> None:
        """End what is running and let go of the model; memory it held on an accelerator can be used again."""
        self._compiling.close()
        self._schedule.close()
        self._prefixes.clear()
        self.model = None
        self._forward.release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _pieces(self, job: Job, heard: SimpleQueue[Sequence[Delta] | BaseException]) -> Iterator[Delta]:
        told = Heard(job)
        try:
            while not told.is_over:
                yield from told.deltas(heard.get())
            self._debug(job)
        finally:
            job.cancelled = True

    # --------------------------------------------------------------------------------------------------- preparation

    def _job(self, request: Request, hear: Any, *, streamed: bool) -> Job:
        sampling = request.sampling
        self._settings.check(sampling)
        self._adapters.check(request.adapter)
        limit = self._settings.limit(len(request.prompt.input_ids), sampling)
        choice, stop = self._settings.choice(sampling), self._settings.stop_words(sampling)
        follows = streamed or bool(stop)
        told = None if sampling.prompt_logprobs is None else PromptTold(sampling.prompt_logprobs)
        rows = [
            Row(
                request.prompt.input_ids, limit, choice, index, request.adapter, stop,
                None if sampling.seed is None else torch.Generator().manual_seed(sampling.seed + index),
                Detokenizer(self.tokenizer) if follows else None,
                None if sampling.structure is None else self._compiled().matcher(sampling.structure),
                prompt_told=told,
            )
            for index in range(sampling.n)
        ]  # fmt: skip
        if sampling.num_beams == 1 and self._has_more():
            for row in rows:
                self._add_more(row, sampling)
        return Job(request, rows, hear, streamed)

    def _compiled(self) -> Structures:
        if self._structures is None:
            vocabulary = self.model.config.get_text_config().vocab_size
            self._structures = Structures(self.tokenizer, self._settings.end_ids, vocabulary)
        return self._structures

    def _has_more(self) -> bool:
        """Whether the generation config asks for more than a Choice can say (bad words, n-grams, a minimal length, ...)."""
        if self._asks_more is None:
            neutral = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
            prepared = self._prepared([Row([self._settings.pad_id], self.context_length - 1)], neutral)
            self._asks_more = bool(prepared.processors) or bool(_more(prepared))
        return self._asks_more

    def _add_more(self, row: Row, sampling: Sampling) -> None:
        """Let transformers' own processors choose for a row, with all that the generation config asks for."""
        prepared = self._prepared([row], sampling)
        row.processors, row.criteria = prepared.processors, _more(prepared) or None
        kept = row.choice
        row.choice = Choice(
            samples=kept.samples, presence_penalty=kept.presence_penalty, frequency_penalty=kept.frequency_penalty,
            top_logprobs=kept.top_logprobs,
        )  # fmt: skip

    def _prepared(self, rows: Sequence[Row], sampling: Sampling) -> Prepared:
        return self.model.generate(
            **padded_inputs(rows, self._settings.pad_id, self.model.device),
            generation_config=self._settings.generation_config(rows, sampling),
            custom_generate=prepare,
            tokenizer=self.tokenizer,
        )

    # ----------------------------------------------------------------------------------------- for the thread

    def _runner(self) -> Runner:
        for adds_mask in (True, False) if self._forward.may_add_mask else (False,):
            self._forward = Forward(self.model, self._adapters, adds_mask=adds_mask)
            if self._forward.may_be_plain and agrees(self._forward, self._settings.pad_id):
                return Continuous(self._forward, self._prefixes, self._settings.pad_id, self.tokenizer)
        if self.max_batch_size != 1:
            get_logger().info(
                "the memory of %s is not keys and values of single tokens: its batches run to their end, and requests "
                "wait for the next one", type(self._forward.base).__name__,
            )  # fmt: skip
        return Whole(lambda rows: self._prepared(rows, Sampling(temperature=0)), self._adapters, self.tokenizer)

    def _search(self, jobs: Sequence[Job]) -> None:
        """Beams of a batch share one length and one setting, so only requests that agree in them are searched together."""

        def alike(job: Job) -> tuple[Sampling, str | None, int]:
            sampling = job.request.sampling
            told = sampling if self._settings.samples(sampling) else replace(sampling, seed=None)
            return told, job.request.adapter, job.rows[0].limit

        for (sampling, adapter, _), group in groupby(jobs, key=alike):
            some = list(group)
            self._adapters.use([adapter])
            search(self.model, self.tokenizer, self._settings, [job.rows for job in some], sampling)
            for job in some:
                for row in job.rows:
                    job.finished(row, self.tokenizer)

    def _debug(self, job: Job) -> None:
        if environment.SWIFT_DEBUG.flag():
            for row in job.rows:
                get_logger().info("input_ids: %s", row.prompt_ids)
                get_logger().info("generated_ids: %s (%s)", row.token_ids, row.reason)


class _Collector:
    """Keeps the completions of a request, and tells when there are all of them, or an error."""

    def __init__(self, heard: SimpleQueue[BaseException | None], count: int) -> None:
        self.found: dict[int, Completion] = {}
        self._heard = heard
        self._count = count

    def __call__(self, news: Sequence[Delta] | BaseException) -> None:
        if isinstance(news, BaseException):
            self._heard.put(news)
            return
        self.found.update((delta.index, delta.completion) for delta in news if delta.completion is not None)
        if len(self.found) == self._count:
            self._heard.put(None)


def _more(prepared: Prepared) -> Any:
    """The criteria of a generation config that are neither ends of turns nor stop words, which rows know by themselves."""
    return StoppingCriteriaList(
        [each for each in prepared.criteria if not isinstance(each, (EosTokenCriteria, StopStringCriteria))]
    )
