"""This file knows how vLLM continues prompts: requests in its words, and completions in ours.

Prompts go in as token ids, so what is answered is what was rendered here. Text is made of token ids here, too: it is that of
the other engines, to the last white space.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from swift.chat.render import Prompt
from swift.core.errors import EngineError
from swift.core.extras import need
from swift.engines.base import Completion, Delta, FinishReason, Request, Sampling, TokenLogprob
from swift.engines.detokenizer import Detokenizer, decode
from swift.engines.settings import Settings
from swift.engines.vllm_arguments import Served, engine_arguments, known_arguments
from swift.options.engines import VllmOptions

WHY = "--infer_backend vllm"
ALWAYS = "always"
"""The name by which vLLM knows the adapter of requests that name none."""


class Vllm:
    """A model served by vLLM.

    stop_token_ids: tokens that end a turn, beside those of the generation config and of the tokenizer.
    uses_async: whether its asynchronous engine is used, in which requests come and go (`--vllm_use_async_engine`).

    Raises MissingPackage without vLLM, EngineError when its engine cannot be started.
    """

    def __init__(self, served: Served, tokenizer: PreTrainedTokenizerBase, options: VllmOptions, *,
                 stop_token_ids: Sequence[int] = (), uses_async: bool = False) -> None:  # fmt: skip
        self._vllm: Any = need("vllm", WHY)
        arguments: Any = need("vllm.engine.arg_utils", WHY)
        self.tokenizer = tokenizer
        self._uses_async = uses_async
        made = engine_arguments(served, options, known_arguments(arguments.AsyncEngineArgs))
        try:
            if uses_async:
                engine: Any = need("vllm.v1.engine.async_llm", WHY)
                self._engine = engine.AsyncLLM.from_engine_args(arguments.AsyncEngineArgs(**made))
            else:
                made.pop("data_parallel_size", None)
                engine = need("vllm.v1.engine.llm_engine", WHY)
                self._engine = engine.LLMEngine.from_engine_args(arguments.EngineArgs(**made))
        except (ValueError, TypeError, RuntimeError, NotImplementedError, AssertionError) as error:
            raise EngineError(f"vLLM cannot serve {served.folder}: {_first_words(error)}") from error
        config = _generation_config(served.folder)
        self._settings = Settings(config, tokenizer, stop_token_ids, self._engine.model_config.max_model_len)
        self._loras = self._made_loras(served)
        self._names = tuple(served.named)
        self._numbers = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its reply together."""
        return self._settings.context_length

    @property
    def adapters(self) -> Sequence[str]:
        """The names a request may give as its adapter."""
        return self._names

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts.

        Raises EngineError when a prompt leaves no room for a reply, and for beams, which vLLM's engine does not search.
        """
        seed = sampling.seed
        requests = [
            Request(prompt, sampling if seed is None else _seeded(sampling, seed + i * sampling.n))
            for i, prompt in enumerate(prompts)
        ]
        return self.complete(requests)

    def complete(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """The completions of each request, in order."""
        if self._uses_async:
            return self._own_loop().run_until_complete(self._gathered(requests))
        replies = [self._reply(request) for request in requests]
        numbers = {self._enter(reply): reply for reply in replies}
        for output in self._outputs(len(numbers)):
            numbers[output.request_id].take(output)
        return [reply.completions for reply in replies]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The pieces of one completion. Raises EngineError for more than one: they have no order in time."""
        if sampling.n > 1:
            raise EngineError(f"A stream carries one completion, not n = {sampling.n}.")
        reply = self._reply(Request(prompt, sampling))
        return self._pieces(reply)

    async def answer(self, request: Request) -> AsyncIterator[Delta]:
        """The pieces of all completions as they grow; leaving the iterator early aborts the request.

        Raises EngineError for a request that cannot be answered.
        """
        if not self._uses_async:
            raise EngineError("Many callers at once need --vllm_use_async_engine true.")
        reply = self._reply(request)
        outputs = self._engine.generate(reply.prompt, reply.parameters, self._number(), lora_request=reply.lora)
        try:
            async for output in outputs:
                for delta in reply.take(output):
                    yield delta
        except (ValueError, TypeError) as error:
            raise EngineError(f"vLLM refuses the request: {_first_words(error)}") from error
        finally:
            await outputs.aclose()

    def close(self) -> None:
        """End the engine and its processes."""
        if self._uses_async:
            self._engine.shutdown()
        else:
            self._engine.engine_core.shutdown()
        if self._loop is not None:
            self._loop.close()

    # ------------------------------------------------------------------------------------------------------- the ways

    async def _gathered(self, requests: Sequence[Request]) -> list[list[Completion]]:
        async def completions(request: Request) -> list[Completion]:
            found: dict[int, Completion] = {}
            async for delta in self.answer(request):
                if delta.completion is not None:
                    found[delta.index] = delta.completion
            return [found[index] for index in range(request.sampling.n)]

        return list(await asyncio.gather(*(completions(request) for request in requests)))

    def _pieces(self, reply: _Reply) -> Iterator[Delta]:
        if self._uses_async:
            loop, deltas = self._own_loop(), self.answer(reply.request)
            while True:
                try:
                    yield loop.run_until_complete(anext(deltas))
                except StopAsyncIteration:
                    return
        number = self._enter(reply)
        ended = False
        try:
            for output in self._outputs(1):
                yield from reply.take(output)
            ended = True
        finally:
            if not ended:
                self._engine.abort_request([number])

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop

    def _enter(self, reply: _Reply) -> str:
        number = self._number()
        try:
            self._engine.add_request(number, reply.prompt, reply.parameters, lora_request=reply.lora)
        except (ValueError, TypeError) as error:
            raise EngineError(f"vLLM refuses the request: {_first_words(error)}") from error
        return number

    def _outputs(self, count: int) -> Iterator[Any]:
        """Outputs of the requests that run, until so many of them have ended."""
        while count:
            for output in self._engine.step():
                count -= output.finished
                yield output

    def _number(self) -> str:
        return f"swift-{next(self._numbers)}"

    # ---------------------------------------------------------------------------------------------------- translation

    def _reply(self, request: Request) -> _Reply:
        sampling = request.sampling
        if sampling.num_beams > 1:
            raise EngineError(f"--infer_backend vllm needs --num_beams 1 (got {sampling.num_beams}): it searches none.")
        self._settings.check(sampling)
        if request.adapter is not None and request.adapter not in self._names:
            known = ", ".join(self._names) or "none"
            raise EngineError(f"There is no adapter {request.adapter!r}; there is {known}.")
        ids = request.prompt.input_ids
        return _Reply(
            request, self._vllm.TokensPrompt(prompt_token_ids=ids), self._parameters(sampling, len(ids)),
            self._loras.get(request.adapter or ALWAYS), self._settings.end_ids,
            [_Growing(Detokenizer(self.tokenizer)) for _ in range(sampling.n)],
        )  # fmt: skip

    def _parameters(self, sampling: Sampling, length: int) -> Any:
        """vLLM's SamplingParams of a request."""
        choice, stop = self._settings.choice(sampling), self._settings.stop_words(sampling)
        limit = self._settings.limit(length, sampling)
        kinds: Any = need("vllm.sampling_params", WHY)
        structure = sampling.structure
        held = None
        if structure is not None:
            schema = structure.json_schema
            held = kinds.StructuredOutputsParams(
                json=schema if schema or schema is None else {"type": "object"}, regex=structure.regex
            )
        return self._vllm.SamplingParams(
            n=sampling.n,
            temperature=choice.temperature if choice.samples else 0.0,
            top_k=choice.top_k if choice.samples else 0,
            top_p=choice.top_p if choice.samples else 1.0,
            min_p=choice.min_p if choice.samples else 0.0,
            repetition_penalty=choice.repetition_penalty,
            presence_penalty=choice.presence_penalty,
            frequency_penalty=choice.frequency_penalty,
            seed=sampling.seed,
            max_tokens=limit,
            stop=list(stop) or None,
            stop_token_ids=sorted(self._settings.end_ids),
            include_stop_str_in_output=True,
            detokenize=bool(stop),  # for the words it looks for; the text of a reply is made here
            skip_special_tokens=False,
            logprobs=choice.top_logprobs,
            structured_outputs=held,
            output_kind=kinds.RequestOutputKind.DELTA,
        )

    def _made_loras(self, served: Served) -> dict[str, Any]:
        request: Any = need("vllm.lora.request", WHY).LoRARequest
        folders = {**served.named, **({} if served.always is None else {ALWAYS: served.always})}
        return {name: request(name, number, str(folder)) for number, (name, folder) in enumerate(folders.items(), 1)}


@dataclass
class _Growing:
    """One completion that grows."""

    text: Detokenizer
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    completion: Completion | None = None


@dataclass
class _Reply:
    """A request in vLLM's words, and what has come of it so far."""

    request: Request
    prompt: Any
    parameters: Any
    lora: Any
    end_ids: frozenset[int]
    growing: list[_Growing]

    @property
    def completions(self) -> list[Completion]:
        """All of them, once they are complete."""
        return [each.completion for each in self.growing if each.completion is not None]

    def take(self, output: Any) -> list[Delta]:
        """What an output of vLLM adds."""
        return [self._delta(part) for part in output.outputs if self.growing[part.index].completion is None]

    def _delta(self, part: Any) -> Delta:
        growing = self.growing[part.index]
        ids = list(part.token_ids)
        reason: FinishReason | None = None
        if part.finish_reason is not None:
            reason = "length" if part.finish_reason == "length" else "stop"
            if ids and ids[-1] in self.end_ids:
                ids, reason = ids[:-1], "stop"
        told = self._told(growing.text.tokenizer, ids, part.logprobs)
        piece = "".join(growing.text.add(token_id) for token_id in ids)
        growing.token_ids += ids
        growing.logprobs += told
        if reason is None:
            return Delta(piece, logprobs=told, index=part.index)
        piece += growing.text.finish()
        logprobs = growing.logprobs if self.request.sampling.wants_logprobs else None
        growing.completion = Completion(growing.token_ids, growing.text.text, reason, logprobs)
        return Delta(piece, growing.completion, told, part.index)

    def _told(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], logprobs: Any) -> list[TokenLogprob]:
        if not self.request.sampling.wants_logprobs or logprobs is None:
            return []
        count = self.request.sampling.top_logprobs or 0
        told = []
        for token_id, known in zip(ids, logprobs, strict=False):  # the end of a turn is no token of the reply
            likeliest = sorted((each.rank, other, each.logprob) for other, each in known.items() if each.rank <= count)
            top = tuple((other, decode(tokenizer, [other]), value) for _, other, value in likeliest)
            told.append(TokenLogprob(token_id, decode(tokenizer, [token_id]), known[token_id].logprob, top))
        return told


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return replace(sampling, seed=seed)


def _generation_config(folder: Path) -> GenerationConfig:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_pretrained(folder, "config.json")


def _first_words(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:4]) or type(error).__name__
