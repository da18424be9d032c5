"""This file knows how texts are continued: several at once, in one piece or piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from swift.engines.base import Completion, Delta, TokenLogprob
from swift.serve.answers import CompletionChoice, TextCompletion, Usage
from swift.serve.clients import LAST_EVENT, event_of
from swift.serve.cutting import StopCutter
from swift.serve.logprobs import for_completion, for_echo
from swift.serve.protocol import CompletionRequest
from swift.serve.visits import Visit
from swift.serve.writer import Question, Writer

EMPTY: Mapping[str, Any] = {}


@dataclass
class Text:
    """One continuation while it grows.

    index: its number among all. shown: what is told of it so far, with what it continues if that is echoed.
    prompt, logprobs: those of what it continues, and its own, that are not told yet.
    """

    index: int
    cutter: StopCutter
    echoed: str
    shown: str = ""
    tokens: int = 0
    prompt: list[TokenLogprob] | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    completion: Completion | None = None

    def feed(self, delta: Delta) -> str:
        """What is certain with this delta."""
        said, self.echoed = self.echoed + self.cutter.feed(delta.text), ""
        self.logprobs += delta.logprobs
        if delta.prompt_logprobs is not None:
            self.prompt = delta.prompt_logprobs
        self.tokens += 1
        if delta.completion is not None:
            said += self.cutter.finish()
            self.completion, self.tokens = delta.completion, len(delta.completion.token_ids)
        self.shown += said
        return said


class Texts:
    """The answer to one request for completions."""

    def __init__(self, writer: Writer, questions: Sequence[Question], request: CompletionRequest, visit: Visit) -> None:
        self._writer = writer
        self._questions = questions
        self._request = request
        self._visit = visit
        first = questions[0].request.sampling
        self._wants_logprobs = first.wants_logprobs
        self._texts = [
            [
                Text(place * first.n + each, StopCutter(question.reading.cut), question.reading.prefix)
                for each in range(first.n)
            ]
            for place, question in enumerate(questions)
        ]

    async def whole(self) -> TextCompletion:
        """The answer in one piece."""
        async with aclosing(self._pieces()) as pieces:
            async for _ in pieces:
                pass
        choices = [
            self._choice(place, text, text.shown, self._details(place, text))
            for place, texts in enumerate(self._texts)
            for text in texts
        ]
        return self._answer(choices, {"usage": self._usage()})

    async def events(self) -> AsyncGenerator[str, None]:
        """The answer as events; at last, if asked for, the usage."""
        options = self._request.stream_options
        wants_usage = options is not None and options.include_usage
        async with aclosing(self._pieces()) as pieces:
            async for place, text, said in pieces:
                if said or text.completion is not None:
                    choice = self._choice(place, text, said)
                    text.prompt, text.logprobs = None, []
                    yield event_of(self._answer([choice], {"usage": None} if wants_usage else {}).as_json())
        if wants_usage:
            yield event_of(self._answer([], {"usage": self._usage()}).as_json())
        yield LAST_EVENT

    async def _pieces(self) -> AsyncGenerator[tuple[int, Text, str], None]:
        """The questions' places, their texts, and what these grew by; in the end, however it comes, the visit is over."""
        is_whole = False
        try:
            async with aclosing(self._deltas()) as deltas:
                async for place, delta in deltas:
                    self._visit.first()
                    text = self._texts[place][delta.index]
                    yield place, text, text.feed(delta)
            is_whole = True
        finally:
            usage = self._usage()
            shown = [text.shown for texts in self._texts for text in texts]
            self._visit.end(shown, usage.prompt_tokens, usage.completion_tokens, is_whole=is_whole)

    async def _deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """The deltas of all questions as they come, with the places of the questions."""
        ask = self._unasked if self._request.max_tokens == 0 else self._asked
        async with aclosing(merged([ask(place) for place in range(len(self._questions))])) as deltas:
            async for each in deltas:
                yield each

    async def _asked(self, place: int) -> AsyncGenerator[tuple[int, Delta], None]:
        async with aclosing(self._writer.deltas(self._questions[place])) as deltas:
            async for delta in deltas:
                yield place, delta

    async def _unasked(self, place: int) -> AsyncGenerator[tuple[int, Delta], None]:
        """Texts that are not continued. Where their log-probabilities are wanted, the engine says them with its first token."""
        told = None
        if self._questions[place].request.sampling.prompt_logprobs is not None:
            async with aclosing(self._writer.deltas(self._questions[place])) as deltas:
                told = (await anext(deltas)).prompt_logprobs
        for index in range(len(self._texts[place])):
            yield place, Delta("", Completion([], "", "length"), index=index, prompt_logprobs=told)

    def _details(self, place: int, text: Text) -> dict[str, Any]:
        """The ids of prompt and continuation, where they are asked for."""
        if not self._request.return_details or text.completion is None:
            return {}
        asked = self._questions[place].request.prompt.input_ids
        return {"token_ids": text.completion.token_ids, "prompt_token_ids": asked}

    def _choice(self, place: int, text: Text, said: str, details: Mapping[str, Any] = EMPTY) -> CompletionChoice:
        logprobs = None
        if self._wants_logprobs:
            question = self._questions[place]
            echoed = 0 if text.prompt is None else len(question.reading.prefix)
            logprobs = for_completion(text.logprobs, len(text.shown) - len(said) + echoed)
            if text.prompt is not None:
                logprobs = for_echo(self._writer.word(question.request.prompt.input_ids[0]), text.prompt, logprobs)
        reason = None if text.completion is None else text.completion.finish_reason
        return CompletionChoice(index=text.index, text=said, logprobs=logprobs, finish_reason=reason, **details)

    def _answer(self, choices: list[CompletionChoice], tail: dict[str, Any]) -> TextCompletion:
        return TextCompletion(
            id=self._visit.id, object="text_completion", created=self._visit.created, model=self._request.model,
            choices=choices, **tail,
        )  # fmt: skip

    def _usage(self) -> Usage:
        read = sum(len(question.request.prompt.input_ids) for question in self._questions)
        written = sum(text.tokens for texts in self._texts for text in texts)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


async def merged(sources: Sequence[AsyncGenerator[Any, None]]) -> AsyncGenerator[Any, None]:
    """What several generators give, as it comes. When one fails, or when this one is left, all are closed."""
    queue: asyncio.Queue[tuple[Any, bool]] = asyncio.Queue()

    async def drain(source: AsyncGenerator[Any, None]) -> None:
        async with aclosing(source):
            async for each in source:
                queue.put_nowait((each, True))

    tasks = [asyncio.create_task(drain(source)) for source in sources]
    for task in tasks:
        task.add_done_callback(lambda done: queue.put_nowait((done, False)))
    try:
        running = len(tasks)
        while running:
            each, is_given = await queue.get()
            if is_given:
                yield each
            else:
                running -= 1
                each.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
