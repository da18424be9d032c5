"""This file knows a server that speaks the protocol of OpenAI, asked as if it were an engine, or for a chat."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
from tqdm import tqdm

from swift.chat.render import Prompt
from swift.core.errors import EngineError
from swift.engines.base import Completion, Delta, FinishReason, Sampling, TokenLogprob
from swift.engines.requests import AdapterRequest, InferRequest, RequestConfig
from swift.engines.responses import ChatCompletionStreamResponse, InferStats
from swift.engines.served import fields_of, pieces_of, response_of

BUSY = (429, 503)
"""Statuses of a server that may have time later."""
PATIENCE = 600.0
"""Seconds for which a busy server is asked again."""
UNKNOWN = -1
"""The id of a token of which a server tells the text only."""
REASONS: dict[str, FinishReason] = {"length": "length"}
"""`finish_reason` -> what it means; all others are an end of the model's own."""


class InferClient:
    """A server and one of its models.

    host, port: where it is, unless `base_url` says so, such as `http://localhost:8000/v1`. model: its name; None takes
    the first that the server lists. timeout: seconds without any news. at_once: requests of `generate` at a time.

    As an engine it sends token ids and gets texts: `Completion.token_ids` are those that a server of Swiftlet tells,
    and empty for others. Raises EngineError when the server cannot be reached or refuses.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 8000, api_key: str = "EMPTY", *, base_url: str | None = None,
        model: str | None = None, timeout: float = 86400.0, at_once: int = 64,
    ) -> None:  # fmt: skip
        self.base_url = (base_url or f"http://{host}:{port}/v1").rstrip("/").removesuffix("/chat/completions")
        self._model = model
        self._at_once = at_once
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"}, timeout=httpx.Timeout(timeout, connect=30.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=at_once), trust_env=False,
        )  # fmt: skip

    @property
    def models(self) -> list[str]:
        """The names of the models that the server has."""
        with self._answer("GET", "/models", None) as answer:
            return [card["id"] for card in _json(answer)["data"]]

    @property
    def model(self) -> str:
        """The model that is asked."""
        if self._model is None:
            self._model = self.models[0]
        return self._model

    # ------------------------------------------------------------------------------------------------------- an engine

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts, which are sent all at once."""
        seeds = [None if sampling.seed is None else sampling.seed + i * sampling.n for i in range(len(prompts))]
        with ThreadPoolExecutor(self._at_once) as threads:
            return list(threads.map(lambda i: self._completed(prompts[i], replace(sampling, seed=seeds[i])),
                                    range(len(prompts))))  # fmt: skip

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The pieces of one completion; joined, their texts equal that of `generate`."""
        if sampling.n > 1:
            raise EngineError(f"A stream carries one completion, not n = {sampling.n}.")
        text, logprobs, reason = "", [], "stop"
        for chunk in self._events("/completions", {**self._asked(prompt, sampling), "stream": True}):
            for choice in chunk["choices"]:
                told = _logprobs(choice.get("logprobs"))
                text, reason = text + choice["text"], choice.get("finish_reason") or reason
                logprobs += told
                if choice["text"] or told:
                    yield Delta(choice["text"], logprobs=told)
        yield Delta("", Completion([], text, _reason(reason), logprobs if sampling.wants_logprobs else None))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --------------------------------------------------------------------------------------------------------- a chat

    def chat(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
        """The answer to a chat, as the protocol writes it; `fields` are those of the request."""
        body = {**self._who(fields), "messages": list(messages), **fields}
        with self._answer("POST", "/chat/completions", body) as answer:
            return _json(answer)

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> Iterator[dict[str, Any]]:
        """The chunks of an answer to a chat, as they come."""
        body = {**self._who(fields), "messages": list(messages), **fields, "stream": True}
        return self._events("/chat/completions", body)

    def infer(
        self, infer_requests: Sequence[InferRequest | Mapping[str, Any]], request_config: RequestConfig | None = None,
        metrics: Sequence[InferStats] = (), *, use_tqdm: bool = False, adapter_request: AdapterRequest | None = None,
    ) -> list[Any]:  # fmt: skip
        """A response for each request, in order, all asked at once; with `stream` an iterator of its pieces.

        The i-th request draws with `seed + i`. An adapter is asked for by its name, under which the server has it.
        """
        config = request_config or RequestConfig()
        asked = [fields_of(InferRequest.of(each), config) for each in infer_requests]
        for number, each in enumerate(asked):
            if config.seed is not None:
                each["seed"] = config.seed + number
            if adapter_request is not None:
                each["model"] = adapter_request.name
        for metric in metrics:
            metric.begin()
        if config.stream:
            return [self._pieces(each, metrics) for each in asked]
        with (
            ThreadPoolExecutor(self._at_once) as threads,
            tqdm(total=len(asked), disable=not use_tqdm, dynamic_ncols=True) as bar,
        ):
            responses = []
            for answer in threads.map(lambda each: self.chat(**each), asked):
                responses.append(response_of(answer))
                bar.update()
        for metric in metrics:
            for response in responses:
                metric.update(response)
        return responses

    async def infer_async(
        self, infer_request: InferRequest | Mapping[str, Any], request_config: RequestConfig | None = None, *,
        adapter_request: AdapterRequest | None = None,
    ) -> Any:  # fmt: skip
        """The response to one request beside others; with `stream` an asynchronous iterator of its pieces."""
        asked = partial(self.infer, [infer_request], request_config, adapter_request=adapter_request)
        found = (await asyncio.to_thread(asked))[0]
        return _one_by_one(found) if request_config is not None and request_config.stream else found

    def _pieces(self, asked: dict[str, Any], metrics: Sequence[InferStats]) -> Iterator[ChatCompletionStreamResponse]:
        for piece in pieces_of(self.stream_chat(**asked, stream_options={"include_usage": True})):
            for metric in metrics:
                metric.update(piece)
            yield piece

    # ----------------------------------------------------------------------------------------------------- the protocol

    def _who(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """The model that is asked, where the fields do not say another."""
        return {} if "model" in fields else {"model": self.model}

    def _completed(self, prompt: Prompt, sampling: Sampling) -> list[Completion]:
        with self._answer("POST", "/completions", self._asked(prompt, sampling)) as answer:
            choices = sorted(_json(answer)["choices"], key=lambda choice: choice["index"])
        return [
            Completion(
                list(choice.get("token_ids") or ()), choice["text"], _reason(choice["finish_reason"]),
                _logprobs(choice.get("logprobs")) if sampling.wants_logprobs else None,
            )
            for choice in choices
        ]  # fmt: skip

    def _asked(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """A request for completions; what is not said is left to the server."""
        if sampling.structure is not None and sampling.structure.regex is None:
            raise EngineError("A JSON schema can be asked for in a chat only, not in a completion.")
        fields = {
            "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_k": sampling.top_k,
            "top_p": sampling.top_p, "min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty or None, "seed": sampling.seed,
            "frequency_penalty": sampling.frequency_penalty or None, "stop": list(sampling.stop) or None,
            "num_beams": sampling.num_beams if sampling.num_beams > 1 else None,
            "length_penalty": sampling.length_penalty if sampling.length_penalty != 1.0 else None,
            "n": sampling.n if sampling.n > 1 else None,
            "logprobs": (sampling.top_logprobs or 0) if sampling.wants_logprobs else None,
            "include_stop_str_in_output": True if sampling.stop else None,
            "structured_outputs_regex": sampling.structure.regex if sampling.structure is not None else None,
        }  # fmt: skip
        given = {name: value for name, value in fields.items() if value is not None}
        return {"model": self.model, "prompt": list(prompt.input_ids) or prompt.text, **given}

    def _events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        with self._answer("POST", path, body) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise EngineError(f"{self.base_url} broke off: {event['error'].get('message')}")
                yield event

    @contextmanager
    def _answer(self, method: str, path: str, body: Mapping[str, Any] | None) -> Iterator[httpx.Response]:
        """The answer of the server; one that is busy is asked again."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                with self._http.stream(method, self.base_url + path, json=body) as answer:
                    if answer.status_code < 400:
                        yield answer
                        return
                    answer.read()
            except httpx.HTTPError as error:
                raise EngineError(f"{self.base_url} cannot be asked: {error or type(error).__name__}.") from None
            if answer.status_code not in BUSY or time.monotonic() > give_up:
                raise EngineError(f"{self.base_url} refuses ({answer.status_code}): {_message(answer)}")
            time.sleep(_pause(answer))


async def _one_by_one(pieces: Iterator[Any]) -> AsyncIterator[Any]:
    """What an iterator gives, awaited in a thread each time."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


def _json(answer: httpx.Response) -> dict[str, Any]:
    answer.read()
    try:
        return answer.json()
    except ValueError:
        raise EngineError(f"{answer.url} does not speak the protocol of OpenAI: {answer.text[:200]!r}.") from None


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:500]


def _pause(answer: httpx.Response) -> float:
    told = answer.headers.get("retry-after", "")
    return min(float(told), 30.0) if told.isdigit() else 1.0


def _reason(told: str) -> FinishReason:
    return REASONS.get(told, "stop")


def _logprobs(told: Mapping[str, Any] | None) -> list[TokenLogprob]:
    """The log-probabilities of tokens, of which the protocol tells the texts."""
    if told is None:
        return []
    tops = told.get("top_logprobs") or [{}] * len(told["tokens"])
    return [
        TokenLogprob(UNKNOWN, token, -math.inf if value is None else value,
                     tuple((UNKNOWN, text, each) for text, each in (top or {}).items()))
        for token, value, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
    ]  # fmt: skip
