"""This file knows how engines of others are asked that grow one completion per request: SGLang and LMDeploy.

A host is such an engine, as far as it differs from its like. What they have in common is here: requests of many callers meet in
one event loop, which has a thread of its own; n completions are n requests, each with a seed of its own; text is made of token
ids, stop words are looked for in it, and a completion that has come to its end before the host knows is aborted there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from swift.chat.render import Prompt
from swift.core.errors import EngineError
from swift.engines.background import END, Background, begun, together
from swift.engines.base import Completion, Delta, FinishReason, Request, Sampling, Structure, TokenLogprob, requests_of
from swift.engines.compiling import Compiling
from swift.engines.detokenizer import Detokenizer, decode
from swift.engines.rows import Choice, contains_stop
from swift.engines.settings import Settings
from swift.engines.structures import check_structure

CLOSED = "The engine was closed before the reply was complete."


@dataclass(frozen=True, slots=True)
class Asked:
    """One completion that a host is asked for.

    limit: how many tokens it may have. seed: of its draws; None leaves them to chance. adapter: the name it has in `Served`.
    end_ids: tokens that end it.
    """

    prompt_ids: list[int]
    choice: Choice
    limit: int
    end_ids: frozenset[int]
    seed: int | None = None
    structure: Structure | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A token that has come. logprob: None when it was not asked for. top: the likeliest in its place, likeliest first."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class News:
    """The tokens that a host has made since it was last heard of; the last news say why it stopped."""

    tokens: Sequence[Token]
    reason: FinishReason | None = None


class Host(Protocol):
    """An engine that grows completions, one per request, in the event loop it is asked in."""

    def check(self, asked: Asked) -> None:
        """Raises EngineError for what this engine cannot do."""
        ...

    def grow(self, asked: Asked) -> AsyncGenerator[News, None]:
        """A completion while it grows. Closing the generator aborts it. Raises EngineError for what is refused."""
        ...

    async def add_adapter(self, name: str, folder: Path) -> None:
        """One more adapter for requests to name. Raises EngineError where there cannot be."""
        ...

    async def forget(self) -> None:
        """Forget what was computed of earlier prompts."""
        ...

    async def load_weights(self, folder: Path) -> None:
        """Answer by the weights of another checkpoint from now on, and forget earlier prompts. Raises EngineError."""
        ...

    def close(self) -> None:
        """End the engine and its processes; its event loop has ended."""
        ...


class Growing:
    """One completion that grows out of the news of a host."""

    def __init__(self, asked: Asked, index: int, stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.asked = asked
        self.completion: Completion | None = None
        self._index = index
        self._stop = stop
        self._tokenizer = tokenizer
        self._text = Detokenizer(tokenizer)
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def take(self, news: News) -> Delta:
        """The piece that some news make. What comes behind the end of the completion is left out."""
        piece, told = "", []
        reason: FinishReason | None = None
        for token in news.tokens:
            if token.token_id in self.asked.end_ids:
                reason = "stop"
                break
            fresh = self._text.add(token.token_id)
            piece += fresh
            self._token_ids.append(token.token_id)
            if token.logprob is not None:
                told.append(self._told(token, token.logprob))
            if fresh and contains_stop(self._text.text, len(fresh), self._stop):
                reason = "stop"
                break
            if len(self._token_ids) >= self.asked.limit:
                reason = "length"
                break
        self._logprobs += told
        reason = reason or news.reason
        if reason is None:
            return Delta(piece, logprobs=told, index=self._index)
        piece += self._text.finish()
        logprobs = None if self.asked.choice.top_logprobs is None else self._logprobs
        self.completion = Completion(self._token_ids, self._text.text, reason, logprobs)
        return Delta(piece, self.completion, told, self._index)

    def _told(self, token: Token, logprob: float) -> TokenLogprob:
        top = tuple((other, decode(self._tokenizer, [other]), value) for other, value in token.top)
        return TokenLogprob(token.token_id, decode(self._tokenizer, [token.token_id]), logprob, top)


class Hosted:
    """A model that an engine of others serves.

    adapters: the names a request may give; always: the name of the adapter of requests that give none.
    background: the event loop in which the host lives.
    """

    def __init__(self, host: Host, settings: Settings, tokenizer: PreTrainedTokenizerBase, background: Background, *,
                 adapters: Sequence[str] = (), always: str | None = None) -> None:  # fmt: skip
        self.host = host
        self.tokenizer = tokenizer
        self._settings = settings
        self._background = background
        self._names = tuple(adapters)
        self._always = always
        self._compiling = Compiling()
        self._listening: set[Callable[[Any], None]] = set()
        self._closed = False

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its reply together."""
        return self._settings.context_length

    @property
    def adapters(self) -> Sequence[str]:
        """The names a request may give as its adapter."""
        return self._names

    @property
    def is_async(self) -> bool:
        """Whether many callers may ask it at once (`answer`)."""
        return True

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts. Raises EngineError."""
        return self.complete(requests_of(prompts, sampling))

    def complete(
        self, requests: Sequence[Request], heard: Callable[[], object] | None = None
    ) -> list[list[Completion]]:
        """The completions of each request, in order; completion j of a request draws with its seed + j.

        heard: is called in another thread whenever a request is complete.
        """
        growing = [self.opened(request) for request in requests]
        return self._background.do(self._all(growing, heard))

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The pieces of one completion. Raises EngineError for more than one: they have no order in time."""
        if sampling.n > 1:
            raise EngineError(f"A stream carries one completion, not n = {sampling.n}.")
        return self.pieces(Request(prompt, sampling))

    def pieces(self, request: Request) -> Iterator[Delta]:
        """The pieces of all completions of a request, which grows from now on."""
        return begun(self._followed(self.opened(request)))

    async def answer(self, request: Request) -> AsyncGenerator[Delta, None]:
        """The pieces of all completions as they grow; leaving the iterator early aborts the request.

        Raises EngineError, before the first piece, for a request that cannot be answered.
        """
        make = partial(self.opened, request)
        growing = make() if request.sampling.structure is None else await self._compiling.do(make)
        async with aclosing(self._answered(growing)) as deltas:
            async for delta in deltas:
                yield delta

    def check(self, request: Request) -> None:
        """Raises EngineError for a request that cannot be answered."""
        self.opened(request)

    def add_adapter(self, name: str, folder: Path) -> None:
        """One more adapter for requests to name. Raises EngineError where there cannot be."""
        if name in self._names:
            raise EngineError(f"There is an adapter {name!r} already.")
        self._background.do(self.host.add_adapter(name, folder))
        self._names = (*self._names, name)

    def forget(self) -> None:
        """Forget what was computed of earlier prompts: the weights have changed."""
        self._background.do(self.host.forget())

    def load_weights(self, folder: Path) -> None:
        """Answer by the weights of another checkpoint from now on, and forget earlier prompts. Raises EngineError."""
        if not (folder / "config.json").is_file():
            raise EngineError(f"{folder} is no checkpoint: it has no config.json.")
        self._background.do(self.host.load_weights(folder))

    def close(self) -> None:
        """End what is running, then the engine and its processes."""
        if self._closed:
            return
        self._closed = True
        self._compiling.close()
        for hear in tuple(self._listening):
            hear(EngineError(CLOSED))
        self._background.close()
        self.host.close()

    def opened(self, request: Request) -> list[Growing]:
        """The completions of a request, of which nothing is there yet. Raises EngineError for what cannot be answered."""
        sampling = request.sampling
        if self._closed:
            raise EngineError("The engine is closed.")
        self._settings.check(sampling)
        if sampling.num_beams > 1:
            raise EngineError(f"--num_beams {sampling.num_beams} needs --infer_backend transformers.")
        if sampling.prompt_logprobs is not None:
            raise EngineError(
                "The log-probabilities of a prompt are told by --infer_backend transformers and vllm, not by sglang and "
                "lmdeploy."
            )
        if request.adapter is not None and request.adapter not in self._names:
            known = ", ".join(self._names) or "none"
            raise EngineError(f"There is no adapter {request.adapter!r}; there is {known}.")
        if sampling.structure is not None:
            check_structure(sampling.structure)
        ids = list(request.prompt.input_ids)
        asked = Asked(
            ids, self._settings.choice(sampling), self._settings.limit(len(ids), sampling), self._settings.end_ids,
            sampling.seed, sampling.structure, request.adapter or self._always,
        )  # fmt: skip
        self.host.check(asked)
        stop = self._settings.stop_words(sampling)
        return [
            Growing(replace(asked, seed=None if asked.seed is None else asked.seed + j), j, stop, self.tokenizer)
            for j in range(sampling.n)
        ]

    # ---------------------------------------------------------------------------------------- in the loop of the engine

    async def _deltas(self, growing: Growing) -> AsyncGenerator[Delta, None]:
        async with aclosing(self.host.grow(growing.asked)) as several:
            async for news in several:
                yield growing.take(news)
                if growing.completion is not None:
                    return
        raise EngineError("The engine has stopped in the middle of a reply.")

    async def _all(
        self, requests: Sequence[Sequence[Growing]], heard: Callable[[], object] | None
    ) -> list[list[Completion]]:
        async def one(growing: Growing) -> Completion:
            async for _ in self._deltas(growing):
                pass
            assert growing.completion is not None, "its last piece has come"
            return growing.completion

        async def several(request: Sequence[Growing]) -> list[Completion]:
            completions = await together([one(growing) for growing in request])
            if heard is not None:
                heard()
            return completions

        return await together([several(request) for request in requests])

    # --------------------------------------------------------------------------------------------------------- elsewhere

    def _followed(self, request: Sequence[Growing]) -> Generator[Delta, None, None]:
        """Its first item, which says nothing, comes when the request is on its way."""
        heard: SimpleQueue[Any] = SimpleQueue()
        following = [self._background.follow(self._deltas(growing), heard.put) for growing in request]
        self._listening.add(heard.put)
        left = len(following)
        try:
            yield Delta("")
            while left:
                news = heard.get()
                left -= news is END
                yield from _deltas_of(news)
        finally:
            self._listening.discard(heard.put)
            for each in following:
                each.cancel()

    async def _answered(self, request: Sequence[Growing]) -> AsyncGenerator[Delta, None]:
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Any] = asyncio.Queue()

        def hear(news: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(heard.put_nowait, news)

        if self._closed:
            raise EngineError("The engine is closed.")
        following = [self._background.follow(self._deltas(growing), hear) for growing in request]
        self._listening.add(hear)
        left = len(following)
        try:
            while left:
                news = await heard.get()
                left -= news is END
                for delta in _deltas_of(news):
                    yield delta
        finally:
            self._listening.discard(hear)
            for each in following:
                each.cancel()


def _deltas_of(news: Any) -> list[Delta]:
    """What there is to show of what was heard. Raises what ended the stream."""
    if isinstance(news, BaseException):
        raise news
    return [] if news is END or (not news.text and not news.logprobs and news.completion is None) else [news]
