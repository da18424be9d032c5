"""This file knows how a model is asked from Python, whichever engine computes: `infer([...], RequestConfig(...))`.

The engines themselves are in `asking_engines.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm

from swift.chat.messages import Conversation
from swift.chat.render import Prompt, Renderer
from swift.chat.reply import ReplyReader
from swift.commands import infer_tasks
from swift.core.errors import DataError, EngineError, SwiftError, UsageError
from swift.data.formats import ConversationReader
from swift.data.rows import Row
from swift.engines.base import Completion, Delta, Request, Serving
from swift.engines.chat import Chat, fitted, response_prefix, whole
from swift.engines.replies import Answering
from swift.engines.requests import AdapterRequest, InferRequest, RequestConfig
from swift.engines.responses import InferStats
from swift.engines.transformers import Transformers
from swift.engines.vllm_reasoning import Parts, ReasoningParser
from swift.hub.models import Access, model_folder
from swift.models.packed import pack, unpack
from swift.options.template import TemplateOptions
from swift.tuners.attach import load_named_adapters

Given = InferRequest | Mapping[str, Any]


class InferEngine(Protocol):
    """Whatever answers requests from Python."""

    def infer(
        self, infer_requests: Sequence[Given], request_config: RequestConfig | None = None,
        metrics: Sequence[InferStats] = (),
    ) -> list[Any]:  # fmt: skip
        """A response for each request, or with `stream` an iterator of pieces for each."""
        ...

    async def infer_async(self, infer_request: Given, request_config: RequestConfig | None = None) -> Any:
        """The response to a request, or with `stream` an asynchronous iterator of pieces."""
        ...


class Inner(Serving, Protocol):
    """What a model that writes is asked through. Each is asked for the i-th of its completions with `seed + i`."""

    def check(self, request: Request) -> None:
        """Raises EngineError for a request that cannot be answered."""
        ...

    def load_weights(self, folder: Path) -> None:
        """Answer by the weights of another checkpoint from now on. Raises EngineError."""
        ...

    def complete(self, requests: Sequence[Request], heard: Callable[[], object], /) -> list[list[Completion]]:
        """The completions of each request, in order. heard: is called, in any thread, when a request has all of them."""
        ...

    def pieces(self, request: Request) -> Iterator[Delta]:
        """The pieces of all completions as they grow, which they do from now on."""
        ...

    def answer(self, request: Request) -> AsyncGenerator[Delta, None]:
        """As in Serving; it can be closed."""
        ...


@dataclass(frozen=True)
class Asked:
    """A request for the engine, and how what it says becomes an answer."""

    request: Request
    answering: Answering

    @property
    def begun(self) -> list[Delta]:
        """What the prompt holds of the replies already; nothing where the answer knows it."""
        prefix = "" if self.answering.splits is not None else response_prefix(self.request.prompt)
        return [Delta(prefix, index=index) for index in range(self.request.sampling.n)] if prefix else []

    def whole(self, completion: Completion) -> Completion:
        """The reply with what the prompt holds of it; without, where the answer knows it."""
        return completion if self.answering.splits is not None else whole(self.request.prompt, completion)

    def told(self, delta: Delta, metrics: Sequence[InferStats]) -> Any:
        """A piece of the answer, which metrics hear of."""
        if delta.completion is not None:
            delta = replace(delta, completion=self.whole(delta.completion))
        piece = self.answering.piece(delta)
        for metric in metrics:
            metric.update(piece)
        return piece


@dataclass(frozen=True)
class Opened:
    """A model that is ready to be asked: a chat of one that writes, or the reader of one that reads.

    length: the most tokens of a prompt and its reply together; None where it is not known.
    adapters: name -> where it was read from, of those that requests may name by now.
    parser: what tells thinking from words; None leaves thinking in the text of replies.
    fixed: the adapters of requests that name none. hub: where adapters are found that are named later.
    """

    name: str
    template: TemplateOptions
    length: int | None
    chat: Chat | None = None
    reader: infer_tasks.Reader | None = None
    parser: ReasoningParser | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    fixed: Sequence[str] = ()
    hub: Access | None = None

    def close(self) -> None:
        """End what is running, and free the model."""
        for each in (self.chat, self.reader):
            if each is not None:
                each.engine.close()


class ModelEngine:
    """A model that is asked from Python, whatever computes what it says.

    strict: whether a request that cannot be asked is an error; else the error takes the place of its response.
    """

    def __init__(self, opened: Opened, *, strict: bool) -> None:
        self.strict = strict
        self._opened = opened
        self.template = opened.template
        self.model_name, self.context_length = opened.name, opened.length
        self._chat = opened.chat
        self._reader = opened.reader
        self._parser = opened.parser
        self._paths = dict(opened.adapters)
        self._fixed = list(opened.fixed)
        self._hub = opened.hub

    @property
    def engine(self) -> Inner:
        """What continues the prompts of a model that writes."""
        assert self._chat is not None, "it reads"
        engine: Any = self._chat.engine
        return engine

    def infer(
        self, infer_requests: Sequence[Given], request_config: RequestConfig | None = None,
        metrics: Sequence[InferStats] = (), *, use_tqdm: bool = False, adapter_request: AdapterRequest | None = None,
    ) -> list[Any]:  # fmt: skip
        """A response for each request, in order; with `stream` an iterator of its pieces, all of which grow at once.

        The i-th request draws with `seed + i`. Raises DataError, or EngineError, for a request that cannot be asked,
        or with `strict` false puts the error in its place.
        """
        config = request_config or RequestConfig()
        for metric in metrics:
            metric.begin()
        if self._reader is not None:
            self._check_reading(config, adapter_request)
            samples = [self._sample(each) for each in infer_requests]
            able = [each for each in samples if not isinstance(each, SwiftError)]
            return self._read(samples, self._reader.engine.outputs(able) if able else (), config, metrics)
        adapter = self._adapter(adapter_request)
        asked = [self._attempt(each, config, adapter, number) for number, each in enumerate(infer_requests)]
        if config.stream:
            return [each if isinstance(each, SwiftError) else self._stream(each, metrics) for each in asked]
        able = [each for each in asked if isinstance(each, Asked)]
        with tqdm(total=len(able), disable=not use_tqdm, dynamic_ncols=True) as bar:
            found = self.engine.complete([each.request for each in able], bar.update)
        answers = iter([
            each.answering.whole([each.whole(completion) for completion in completions])
            for each, completions in zip(able, found, strict=True)
        ])  # fmt: skip
        responses = [next(answers) if isinstance(each, Asked) else each for each in asked]
        for metric in metrics:
            for response in responses:
                if not isinstance(response, SwiftError):
                    metric.update(response)
        return responses

    async def infer_async(
        self, infer_request: Given, request_config: RequestConfig | None = None, *,
        adapter_request: AdapterRequest | None = None, pre_infer_hook: Callable[[Request], Request] | None = None,
    ) -> Any:  # fmt: skip
        """The response to one request beside others; with `stream` an asynchronous iterator of its pieces.

        pre_infer_hook: sees the request that the engine gets, and gives the one it is to get.
        """
        config = request_config or RequestConfig()
        if self._reader is not None:
            self._check_reading(config, adapter_request)
            sample = self._sample(infer_request)
            if isinstance(sample, SwiftError):
                return sample
            outputs = await asyncio.to_thread(self._reader.engine.outputs, [sample])
            return self._read([sample], outputs, config, ())[0]
        asked = self._asked(infer_request, config, self._adapter(adapter_request), 0)
        if pre_infer_hook is not None:
            asked = replace(asked, request=pre_infer_hook(asked.request))
        if config.stream:
            return self._stream_async(asked)
        completions = {}
        async with aclosing(self.engine.answer(asked.request)) as deltas:
            async for delta in deltas:
                if delta.completion is not None:
                    completions[delta.index] = asked.whole(delta.completion)
        return asked.answering.whole([completions[index] for index in sorted(completions)])

    def close(self) -> None:
        """End what is running, and free the model."""
        self._opened.close()

    # ---------------------------------------------------------------------------------------------------------- asking

    def _attempt(self, given: Given, config: RequestConfig, adapter: str | None, number: int) -> Asked | SwiftError:
        try:
            asked = self._asked(given, config, adapter, number)
            self.engine.check(asked.request)
        except SwiftError as error:
            if self.strict:
                raise
            return error
        return asked

    def _asked(self, given: Given, config: RequestConfig, adapter: str | None, number: int) -> Asked:
        """What the engine is asked. Raises DataError for a conversation that has no prompt, or one that is too long."""
        assert self._chat is not None, "a model that writes has a chat"
        conversation = _conversation(given)
        prompt = fitted(self._chat.prompt(conversation), self.template, self.context_length)
        if prompt is None:
            raise DataError(f"the prompt is longer than --max_length {self.template.max_length or self.context_length}")
        sampling = config.sampling()
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + number)
        request = self._chat.request(prompt, sampling, adapter)
        renderer = self._chat.renderer
        form = renderer.tool_format if conversation.tools and isinstance(renderer, Renderer) else None
        answering = Answering(self.model_name, prompt.input_ids, form, conversation.tools, config.return_details)
        if self._parser is not None and sampling.structure is None:
            answering = _split(answering, self._parser, prompt, self.template.enable_thinking)
        return Asked(request, answering)

    def _stream(self, asked: Asked, metrics: Sequence[InferStats]) -> Iterator[Any]:
        deltas = self.engine.pieces(asked.request)  # asked now, and not when the first piece is
        return (asked.told(delta, metrics) for several in (asked.begun, deltas) for delta in several)

    async def _stream_async(self, asked: Asked) -> AsyncIterator[Any]:
        for delta in asked.begun:
            yield asked.told(delta, ())
        async with aclosing(self.engine.answer(asked.request)) as deltas:
            async for delta in deltas:
                yield asked.told(delta, ())

    def _adapter(self, wanted: AdapterRequest | None) -> str | None:
        """The name of the adapter that answers, which is read when it is new.

        Raises EngineError where none can be added, and for a name that another one has.
        """
        if wanted is None:
            return None
        path = self._paths.get(wanted.name)
        if path is None:
            self._add(wanted.name, model_folder(wanted.path, "AdapterRequest", self._hub, None))
            self._paths[wanted.name] = wanted.path
        elif path != wanted.path:
            raise EngineError(f"The adapter {wanted.name!r} is {path}. Ask for {wanted.path} by another name.")
        return wanted.name

    def _add(self, name: str, folder: Path) -> None:
        engine: Any = self.engine
        if not isinstance(engine, Transformers):
            engine.add_adapter(name, folder)
            return
        if self._fixed:
            raise EngineError(
                f"Adapter {name!r} cannot answer alone: {', '.join(self._fixed)} is always in effect. Make the engine "
                "without adapters=..., and ask for each by an AdapterRequest."
            )

        def load(model: Any) -> Any:
            unpack(model)
            adapted = load_named_adapters(model, {name: folder})
            pack(adapted)
            return adapted

        engine.add_adapter(name, load)

    # --------------------------------------------------------------------------------------------------------- reading

    def _check_reading(self, config: RequestConfig, adapter: AdapterRequest | None) -> None:
        if config.stream or adapter is not None:
            what = "in pieces (stream)" if config.stream else "with an adapter of its own (AdapterRequest)"
            raise UsageError(f"A model that embeds, classifies or ranks answers no request {what}.")

    def _read(
        self, samples: Sequence[Any], outputs: Iterable[Tensor], config: RequestConfig, metrics: Sequence[InferStats]
    ) -> list[Any]:  # fmt: skip
        """The answers of a model that embeds, classifies or ranks: what it puts out for each sample that is no error."""
        assert self._reader is not None, "a model that reads has a reader"
        responses, said = [], iter(outputs)
        for sample in samples:
            if isinstance(sample, SwiftError):
                responses.append(sample)
                continue
            responses.append(infer_tasks.response(self._reader, self.model_name, sample, next(said), config.logprobs))
            for metric in metrics:
                metric.update(responses[-1])
        return responses

    def _sample(self, given: Given) -> Any:
        assert self._reader is not None, "a model that reads has a reader"
        try:
            return self._reader.samples(_conversation(given))[0][1]
        except DataError as error:
            if self.strict:
                raise
            return error


def _split(answering: Answering, parser: ReasoningParser, prompt: Prompt, thinks: bool | None) -> Answering:
    """The answer with thinking told from words, in the reply and in what the prompt has begun of it."""
    prefix = response_prefix(prompt)
    reader = ReplyReader(tags=parser.tags)
    begun = reader.feed(prefix) + reader.finish()
    switches = {} if thinks is None else {"enable_thinking": thinks}
    return replace(
        answering, splits=partial(parser.stream, prefix, switches), begun=Parts(begun.reasoning, begun.content)
    )  # fmt: skip


def _conversation(given: Given) -> Conversation:
    reader = ConversationReader({}, keep_others=True)
    return reader.read(Row(InferRequest.of(given).row(), "a request", 1))
