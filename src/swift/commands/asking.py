"""This file knows how a model is asked from Python: `TransformersEngine("my/model").infer([...], RequestConfig(...))`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from swift.chat.messages import Conversation
from swift.chat.render import Renderer
from swift.commands import infer, infer_tasks
from swift.commands.begin import begin
from swift.core.errors import DataError, EngineError, SwiftError, UsageError
from swift.data.formats import ConversationReader
from swift.data.rows import Row
from swift.engines.base import Delta, Request
from swift.engines.chat import Chat, fitted, response_prefix, whole
from swift.engines.replies import Answering
from swift.engines.requests import AdapterRequest, InferRequest, RequestConfig
from swift.engines.responses import InferStats
from swift.engines.transformers import Transformers
from swift.hub.models import Access, access, model_folder
from swift.models.packed import pack, unpack
from swift.options.parse import parse
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


@dataclass(frozen=True)
class Asked:
    """A request for the engine, and how what it says becomes an answer."""

    request: Request
    answering: Answering

    @property
    def begun(self) -> list[Delta]:
        """What the prompt holds of the replies already."""
        prefix = response_prefix(self.request.prompt)
        return [Delta(prefix, index=index) for index in range(self.request.sampling.n)] if prefix else []

    def told(self, delta: Delta, metrics: Sequence[InferStats]) -> Any:
        """A piece of the answer, which metrics hear of."""
        if delta.completion is not None:
            delta = replace(delta, completion=whole(self.request.prompt, delta.completion))
        piece = self.answering.piece(delta)
        for metric in metrics:
            metric.update(piece)
        return piece


class TransformersEngine:
    """A model of transformers that is asked from Python.

    model_id_or_path: what `--model` takes; or a model in memory, which is used as it is and needs its `tokenizer`.
    adapters: what `--adapters` takes: these are always in effect. Others come with an AdapterRequest, by name.
    template: the name of a template; None is the model's own.
    strict: whether a request that cannot be asked is an error; else the error takes the place of its response.
    options: all other options of `swift infer`, by name: torch_dtype="bfloat16", max_length=2048, task_type="embedding".

    What a checkpoint was trained with, its template and system and lengths, is read from its args.json.
    """

    def __init__(
        self, model_id_or_path: str | Path | nn.Module, adapters: Sequence[str] | str = (), *, max_batch_size: int = 1,
        template: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None, strict: bool = True,
        **options: Any,
    ) -> None:  # fmt: skip
        self.strict = strict
        self._fixed = [adapters] if isinstance(adapters, str) else list(adapters)
        self._hub: Access | None = None
        self._chat: Chat | None = None
        self._reader: infer_tasks.Reader | None = None
        if isinstance(model_id_or_path, nn.Module):
            if tokenizer is None or self._fixed:
                raise UsageError("A model in memory comes with its tokenizer=..., and with its adapters on it.")
            self.template = TemplateOptions(template=template, **options)
            renderer = Renderer(tokenizer, self.template)
            model: Any = model_id_or_path
            engine = Transformers(
                model, tokenizer, max_batch_size=max_batch_size, stop_token_ids=renderer.stop_token_ids
            )
            self._chat = Chat(renderer, engine)
            self.model_name, self.context_length = type(model).__name__, engine.context_length
            return
        given = {"model": str(model_id_or_path), "adapters": self._fixed, "template": template, **options}
        command = parse("infer", _words({**given, "max_batch_size": max_batch_size}))
        command = begin(command, command.general)
        self._hub = access(command.general)
        self.template = command.template
        if command.model.task_type == "causal_lm":
            self._chat, info = infer.open_chat(command)
        else:
            command, info = infer_tasks.settled(command)
            self._reader = infer_tasks.open_reader(command, info)
        self.model_name, self.context_length = info.name, info.max_length

    @property
    def engine(self) -> Transformers:
        """What continues the prompts of a model that writes."""
        assert self._chat is not None and isinstance(self._chat.engine, Transformers), "it reads"  # noqa: PT018
        return self._chat.engine

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
            return self._read(infer_requests, config, metrics)
        adapter = self._adapter(adapter_request)
        asked = [self._attempt(each, config, adapter, number) for number, each in enumerate(infer_requests)]
        if config.stream:
            return [each if isinstance(each, SwiftError) else self._stream(each, metrics) for each in asked]
        able = [each for each in asked if isinstance(each, Asked)]
        with tqdm(total=len(able), disable=not use_tqdm, dynamic_ncols=True) as bar:
            found = self.engine.complete([each.request for each in able], bar.update)
        answers = iter([
            each.answering.whole([whole(each.request.prompt, completion) for completion in completions])
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
            return self._read([infer_request], config, ())[0]
        asked = self._asked(infer_request, config, self._adapter(adapter_request), 0)
        if pre_infer_hook is not None:
            asked = replace(asked, request=pre_infer_hook(asked.request))
        if config.stream:
            return self._stream_async(asked)
        completions = {}
        async for delta in self.engine.answer(asked.request):
            if delta.completion is not None:
                completions[delta.index] = whole(asked.request.prompt, delta.completion)
        return asked.answering.whole([completions[index] for index in sorted(completions)])

    def close(self) -> None:
        """End what is running, and free the model."""
        if self._reader is not None:
            self._reader.engine.close()
        else:
            self.engine.close()

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
        """The name of the adapter that answers, which is read when it is new."""
        if wanted is None:
            return None
        if self._fixed:
            raise EngineError(
                f"Adapter {wanted.name!r} cannot answer alone: {', '.join(self._fixed)} is always in effect. Make the "
                "engine without adapters=..., and ask for each by an AdapterRequest."
            )
        if wanted.name not in self.engine.adapters:
            folder = model_folder(wanted.path, "AdapterRequest", self._hub, None)

            def load(model: Any) -> Any:
                unpack(model)
                adapted = load_named_adapters(model, {wanted.name: folder})
                pack(adapted)
                return adapted

            self.engine.add_adapter(wanted.name, load)
        return wanted.name

    # --------------------------------------------------------------------------------------------------------- reading

    def _read(self, given: Sequence[Given], config: RequestConfig, metrics: Sequence[InferStats]) -> list[Any]:
        """The answers of a model that embeds, classifies or ranks."""
        assert self._reader is not None, "a model that reads has a reader"
        responses = []
        samples = [self._sample(each) for each in given]
        able = [each for each in samples if not isinstance(each, SwiftError)]
        outputs = iter(self._reader.engine.outputs(able) if able else ())
        for sample in samples:
            if isinstance(sample, SwiftError):
                responses.append(sample)
                continue
            responses.append(
                infer_tasks.response(self._reader, self.model_name, sample, next(outputs), config.logprobs)
            )
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


def _conversation(given: Given) -> Conversation:
    reader = ConversationReader({}, keep_others=True)
    return reader.read(Row(InferRequest.of(given).row(), "a request", 1))


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as the words of a command line; those that are None or empty are not given."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value == []:
            continue
        words.append(f"--{name}")
        if isinstance(value, bool):
            words.append(str(value).lower())
        elif isinstance(value, (list, tuple)):
            words += [str(each) for each in value]
        else:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return words
