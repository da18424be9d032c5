"""This file knows how vLLM continues prompts: requests in its words, and completions in ours.

Prompts go in as token ids, so what is answered is what was rendered here. Text is made of token ids here, too: it is that of
the other engines, to the last white space.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift.chat.render import Prompt
from swift.core.errors import EngineError
from swift.core.extras import need
from swift.engines.background import END, Background, begun, together
from swift.engines.base import Completion, Delta, Request, Sampling, requests_of
from swift.engines.compiling import Compiling
from swift.engines.others import ALWAYS, Served, first_words, generation_config
from swift.engines.settings import Settings
from swift.engines.structures import check_structure
from swift.engines.vllm_arguments import SECONDS_TO_END, WHY, check_rank, end_async, made_engine, refusals, spare_places
from swift.engines.vllm_replies import Reply
from swift.options.engines import VllmOptions

BLANKS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""Where JSON has white space: where a model that may write blanks for ever sometimes does, there is one at most. The
versions of llguidance that vLLM brings repeat a pattern of white space."""
CLOSED = "The engine was closed before the reply was complete."


class Vllm:
    """A model served by vLLM.

    stop_token_ids: tokens that end a turn, beside those of the generation config and of the tokenizer.
    uses_async: whether its asynchronous engine is used, in which requests come and go (`--vllm_use_async_engine`). The
        other one works for one caller in one thread.

    Raises MissingPackage without vLLM, EngineError when its engine cannot be started.
    """

    def __init__(self, served: Served, tokenizer: PreTrainedTokenizerBase, options: VllmOptions, *,
                 stop_token_ids: Sequence[int] = (), uses_async: bool = False) -> None:  # fmt: skip
        self._vllm: Any = need("vllm", WHY)
        self._kinds: Any = need("vllm.sampling_params", WHY)
        self._refusals = refusals()
        self.tokenizer = tokenizer
        self._engine: Any = made_engine(served, options, uses_async=uses_async)
        vocabulary = self._engine.model_config.get_vocab_size()
        if len(tokenizer) > vocabulary:
            self._shut(uses_async=uses_async)
            raise EngineError(
                f"The tokenizer has {len(tokenizer)} tokens and {served.folder} has rows for {vocabulary}: vLLM cannot "
                f"read the tokens that were added. Merge the adapter they were trained with (--merge_lora true)."
            )
        self._background = Background("swift-vllm") if uses_async else None
        self._compiling = Compiling()
        config = generation_config(served.folder)
        self._settings = Settings(config, tokenizer, stop_token_ids, self._engine.model_config.max_model_len)
        self._lora_request: Any = need("vllm.lora.request", WHY).LoRARequest
        self._loras: dict[str, Any] = {
            name: self._lora_request(name, number, str(folder))
            for number, (name, folder) in enumerate(served.all_adapters.items(), 1)
        }
        self._names = tuple(served.named)
        self._numbers = itertools.count()
        self._running: dict[str, Reply] = {}
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
        return self._background is not None

    @property
    def has_work(self) -> bool:
        """Whether replies are growing."""
        return bool(self._running or self._listening)

    @property
    def config(self) -> Any:
        """All settings of the engine, as vLLM has understood them (its `VllmConfig`)."""
        return self._engine.vllm_config

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts.

        Raises EngineError when a prompt leaves no room for a reply, and for beams, which vLLM's engine does not search.
        """
        return self.complete(requests_of(prompts, sampling))

    def complete(
        self, requests: Sequence[Request], heard: Callable[[], object] = lambda: None
    ) -> list[list[Completion]]:
        """The completions of each request, in order; completion j of a request draws with its seed + j.

        heard: is called, in any thread, whenever a request is complete.
        """
        replies = [self._reply(request) for request in requests]
        if self._background is not None:
            self._background.do(self._all(replies, heard))
        else:
            self._complete(replies, heard)
        return [reply.completions for reply in replies]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The pieces of one completion. Raises EngineError for more than one: they have no order in time."""
        if sampling.n > 1:
            raise EngineError(f"A stream carries one completion, not n = {sampling.n}.")
        return self.pieces(Request(prompt, sampling))

    def pieces(self, request: Request) -> Iterator[Delta]:
        """The pieces of all completions of a request, which is on its way from now on. The plain engine goes on whenever
        one of those that have asked it waits for a piece."""
        reply = self._reply(request)
        return begun(self._stepped(reply) if self._background is None else self._followed(reply, self._background))

    async def answer(self, request: Request) -> AsyncGenerator[Delta, None]:
        """The pieces of all completions as they grow; leaving the iterator early aborts the request.

        Raises EngineError, before the first piece, for a request that cannot be answered.
        """
        if self._background is None:
            raise EngineError("Many callers at once need --vllm_use_async_engine true.")
        make = partial(self._reply, request)
        reply = make() if request.sampling.structure is None else await self._compiling.do(make)
        async with aclosing(self._answered(reply, self._background)) as deltas:
            async for delta in deltas:
                yield delta

    def check(self, request: Request) -> None:
        """Raises EngineError for a request that cannot be answered."""
        self._reply(request)

    def add_adapter(self, name: str, folder: Path) -> None:
        """One more adapter for requests to name. Raises EngineError for one that vLLM cannot read, or has no place for."""
        if name in self._names:
            raise EngineError(f"There is an adapter {name!r} already.")
        known = self.config.lora_config
        if known is None:
            raise EngineError(f"vLLM was started without room for the adapter {name!r}: it needs enable_lora=True.")
        check_rank(folder, known.max_lora_rank)
        places = known.max_loras - spare_places()
        if spare_places() and len(self._loras) >= places:
            raise EngineError(
                f"Without a GPU vLLM takes no more adapters than it has places, and max_loras = {places} of them are taken: "
                f"there is none for {name!r}."
            )
        self._loras[name] = self._lora_request(name, len(self._loras) + 1, str(folder))
        self._names = (*self._names, name)

    def forget(self) -> None:
        """Forget what was computed of earlier prompts: the weights have changed."""
        if self._background is None:
            self._engine.reset_prefix_cache()
        else:
            self._background.do(self._engine.reset_prefix_cache())

    def load_weights(self, folder: Path) -> None:
        """Answer by the weights of another checkpoint from now on, and forget earlier prompts. Raises EngineError."""
        if not (folder / "config.json").is_file():
            raise EngineError(f"{folder} is no checkpoint: it has no config.json.")
        if self._keeps_head():
            raise EngineError(
                "On a CPU, vLLM keeps a copy of an output layer that is the embedding, and would go on with the old one. Start "
                "it anew, or use --infer_backend transformers."
            )
        wanted: dict[str, Any] = {"kwargs": {"weights_path": str(folder)}}
        try:
            if self._background is None:
                self._engine.collective_rpc("reload_weights", **wanted)
            else:
                self._background.do(self._engine.collective_rpc("reload_weights", **wanted))
        except (ValueError, RuntimeError, KeyError, AssertionError, OSError) as error:
            raise EngineError(f"vLLM cannot read the weights of {folder}: {first_words(error)}") from error
        self.forget()

    def _keeps_head(self) -> bool:
        """Whether the output layer is a copy of the embedding that vLLM does not make anew: on a CPU, where it is packed."""
        config = self.config
        is_tied = config.model_config.hf_text_config.to_dict().get("tie_word_embeddings", True)
        return config.device_config.device_type == "cpu" and is_tied

    def close(self) -> None:
        """End what is running, then the engine and its processes."""
        if self._closed:
            return
        self._closed = True
        self._running.clear()
        self._compiling.close()
        for hear in tuple(self._listening):
            hear(EngineError(CLOSED))
        if self._background is not None:
            self._background.close()
        self._shut(uses_async=self._background is not None)

    def _shut(self, *, uses_async: bool) -> None:
        engine, self._engine = self._engine, None
        if uses_async:
            end_async(engine)
        else:
            engine.engine_core.shutdown(timeout=SECONDS_TO_END)

    # ------------------------------------------------------------------------------------- one thread, step by step

    def _enter(self, reply: Reply) -> str:
        number = self._number()
        try:
            self._engine.add_request(number, reply.prompt, reply.parameters, lora_request=reply.lora)
        except self._refusals as error:
            raise EngineError(f"vLLM refuses the request: {first_words(error)}") from error
        self._running[number] = reply
        return number

    def _step(self) -> None:
        """A token for every request that runs, whoever waits for it."""
        if self._closed:
            raise EngineError(CLOSED)
        for output in self._engine.step():
            reply = self._running.get(output.request_id)
            if reply is None:
                continue  # it was left
            reply.news += reply.take(output)
            if output.finished:
                del self._running[output.request_id]

    def _complete(self, replies: Sequence[Reply], heard: Callable[[], object]) -> None:
        numbers: list[str] = []
        waiting = list(replies)
        try:
            for reply in replies:
                numbers.append(self._enter(reply))
            while waiting:
                self._step()
                before, waiting = len(waiting), [reply for reply in waiting if not reply.is_complete]
                for _ in range(before - len(waiting)):
                    heard()
        finally:
            self._leave(numbers)

    def _leave(self, numbers: Sequence[str]) -> None:
        """End those of some requests that still run: whoever asked waits for them no more."""
        running = [number for number in numbers if self._running.pop(number, None) is not None]
        if running:
            self._engine.abort_request(running)

    def _stepped(self, reply: Reply) -> Generator[Delta, None, None]:
        """Its first item, which says nothing, comes when the request is on its way."""
        number = self._enter(reply)
        try:
            yield Delta("")
            while reply.news or not reply.is_complete:
                if not reply.news:
                    self._step()
                news, reply.news = reply.news, []
                yield from news
        finally:
            self._leave([number])

    # ------------------------------------------------------------------------------------------ the loop of the engine

    async def _all(self, replies: Sequence[Reply], heard: Callable[[], object]) -> None:
        async def one(reply: Reply) -> None:
            async for _ in self._deltas(reply):
                pass
            heard()

        await together([one(reply) for reply in replies])

    async def _deltas(self, reply: Reply) -> AsyncIterator[list[Delta]]:
        """In the loop of the engine: the pieces of a reply, as many at a time as have come."""
        outputs = self._engine.generate(reply.prompt, reply.parameters, self._number(), lora_request=reply.lora)
        try:
            async for output in outputs:
                yield reply.take(output)
        except self._refusals as error:
            raise EngineError(f"vLLM refuses the request: {first_words(error)}") from error

    def _followed(self, reply: Reply, background: Background) -> Generator[Delta, None, None]:
        """Its first item, which says nothing, comes when the request is on its way."""
        heard: SimpleQueue[Any] = SimpleQueue()
        following = background.follow(self._deltas(reply), heard.put)
        self._listening.add(heard.put)
        try:
            yield Delta("")
            while (news := heard.get()) is not END:
                if isinstance(news, BaseException):
                    raise news
                yield from news
        finally:
            self._listening.discard(heard.put)
            following.cancel()

    async def _answered(self, reply: Reply, background: Background) -> AsyncGenerator[Delta, None]:
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Any] = asyncio.Queue()

        def hear(news: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(heard.put_nowait, news)

        following = background.follow(self._deltas(reply), hear)
        self._listening.add(hear)
        try:
            while (news := await heard.get()) is not END:
                if isinstance(news, BaseException):
                    raise news
                for delta in news:
                    yield delta
        finally:
            self._listening.discard(hear)
            following.cancel()

    def _number(self) -> str:
        return f"swift-{next(self._numbers)}"

    # ---------------------------------------------------------------------------------------------------- translation

    def _reply(self, request: Request) -> Reply:
        sampling = request.sampling
        if self._closed:
            raise EngineError("The engine is closed.")
        self._settings.check(sampling)
        if sampling.num_beams > 1:
            raise EngineError(
                f"--num_beams {sampling.num_beams} needs --infer_backend transformers: vLLM's engine searches no beams."
            )
        if request.adapter is not None and request.adapter not in self._names:
            known = ", ".join(self._names) or "none"
            raise EngineError(f"There is no adapter {request.adapter!r}; there is {known}.")
        ids = request.prompt.input_ids
        return Reply(
            request, self.tokenizer, self._settings.end_ids,
            prompt=self._vllm.TokensPrompt(prompt_token_ids=ids), parameters=self._parameters(sampling, len(ids)),
            lora=self._loras.get(request.adapter or ALWAYS),
        )  # fmt: skip

    def _parameters(self, sampling: Sampling, length: int) -> Any:
        """vLLM's SamplingParams of a request."""
        choice, stop = self._settings.choice(sampling), self._settings.stop_words(sampling)
        return self._vllm.SamplingParams(
            n=sampling.n if choice.samples else 1,  # greedy ones are all the same, and vLLM refuses to repeat them
            temperature=choice.temperature if choice.samples else 0.0,
            top_k=choice.top_k if choice.samples else 0,
            top_p=choice.top_p if choice.samples else 1.0,
            min_p=choice.min_p if choice.samples else 0.0,
            repetition_penalty=choice.repetition_penalty,
            presence_penalty=choice.presence_penalty,
            frequency_penalty=choice.frequency_penalty,
            seed=sampling.seed,
            max_tokens=self._settings.limit(length, sampling),
            stop=list(stop) or None,
            stop_token_ids=sorted(self._settings.end_ids),
            include_stop_str_in_output=True,
            detokenize=bool(stop),  # for the words it looks for; the text of a reply is made here
            skip_special_tokens=False,
            logprobs=choice.top_logprobs,
            prompt_logprobs=sampling.prompt_logprobs,
            structured_outputs=self._held(sampling),
            output_kind=self._kinds.RequestOutputKind.DELTA,
        )

    def _held(self, sampling: Sampling) -> Any:
        """What a reply is held to, by the same library as elsewhere here."""
        structure = sampling.structure
        if structure is None:
            return None
        check_structure(structure)
        if structure.regex is not None:
            return self._kinds.StructuredOutputsParams(regex=structure.regex)
        schema = {"x-guidance": BLANKS, **(structure.json_schema or {"type": "object"})}
        return self._kinds.StructuredOutputsParams(json=schema)
