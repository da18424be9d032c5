"""This file knows how a server that speaks OpenAI's protocol is asked for what can be compared: tokens and their odds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from swift.core.errors import EngineError

SECONDS = 600.0
"""How long one reply may take."""


class NotOffered(EngineError):  # noqa: N818 (says what it is)
    """The server does not have what was asked for; the message says what it answered."""


@dataclass(frozen=True)
class Served:
    """What a server has said, token by token.

    tokens: the texts of the tokens. logprobs: natural logarithms of their probabilities. prompt_tokens: how many tokens the
    prompt had; None when it does not tell.
    """

    tokens: list[str]
    logprobs: list[float]
    prompt_tokens: int | None


class Server:
    """A running server. url: with the version at its end, as in http://localhost:8000/v1.

    Raises EngineError when it does not answer, or refuses.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(SECONDS, connect=10), trust_env=False)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def models(self) -> list[str]:
        """The names of the models it serves."""
        listed = self._answer("GET", f"{self.url}/models")
        return [str(model["id"]) for model in listed["data"]]

    def token_ids(self, model: str, messages: Sequence[Mapping[str, Any]], switches: Mapping[str, Any]) -> list[int]:
        """The token ids of a chat with what asks for a reply. Raises NotOffered by servers other than vLLM and ours."""
        body = {"model": model, "messages": list(messages), **_switched(switches)}
        try:
            url = f"{self.url.removesuffix('/v1')}/tokenize"
            return list(self._answer("POST", url, {**body, "add_generation_prompt": True})["tokens"])
        except NotOffered:
            url = f"{self.url}/chat/completions"
            answer = self._answer("POST", url, {**body, "max_tokens": 1, "return_details": True})
        if not answer.get("prompt_token_ids"):
            raise NotOffered(f"{url} answers without the token ids of the prompt.")
        return list(answer["prompt_token_ids"])

    def reply(
        self, model: str, messages: Sequence[Mapping[str, Any]], count: int, switches: Mapping[str, Any]
    ) -> Served:
        """The likeliest reply to a chat, at most `count` tokens. switches: variables of its chat template."""
        body = {
            "model": model, "messages": list(messages), "max_tokens": count, "temperature": 0, "logprobs": True,
            **_switched(switches),
        }  # fmt: skip
        answer = self._answer("POST", f"{self.url}/chat/completions", body)
        said = (answer["choices"][0].get("logprobs") or {}).get("content")
        if said is None:
            raise NotOffered(f"{self.url}/chat/completions answers without log-probabilities.")
        return Served(
            [each["token"] for each in said], [float(each["logprob"]) for each in said], _prompt_tokens(answer)
        )

    def pieces(
        self, model: str, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], *, stream: bool
    ) -> Iterator[Mapping[str, Any]]:
        """The reply to a chat, piece by piece as the server streams it: `content`, `reasoning_content`, ...

        settings: further fields of the request, as OpenAI names them. stream: else there is one piece, the whole.
        """
        url = f"{self.url}/chat/completions"
        body = {"model": model, "messages": list(messages), **settings, "stream": stream}
        if not stream:
            yield self._answer("POST", url, body)["choices"][0]["message"]
            return
        try:
            with self._client.stream("POST", url, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise EngineError(f"{url} answers {response.status_code}: {_reason(response)}")
                yield from _deltas(url, response.iter_lines())
        except httpx.HTTPError as error:
            raise EngineError(f"{url} does not answer: {_said(error)}.") from None

    def continuation(self, model: str, ids: Sequence[int], count: int) -> Served:
        """The likeliest tokens behind token ids, without any template."""
        body = {"model": model, "prompt": list(ids), "max_tokens": count, "temperature": 0, "logprobs": 1}
        answer = self._answer("POST", f"{self.url}/completions", body)
        said = answer["choices"][0].get("logprobs")
        if not said:
            raise NotOffered(f"{self.url}/completions answers without log-probabilities.")
        return Served(list(said["tokens"]), [float(each) for each in said["token_logprobs"]], _prompt_tokens(answer))

    def _answer(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the server answers, as JSON."""
        try:
            response = self._client.request(method, url, json=body)
        except httpx.HTTPError as error:
            raise EngineError(f"--url {self.url}: {url} does not answer: {_said(error)}.") from None
        if response.status_code in (400, 404, 405, 422, 501):
            raise NotOffered(f"{url} answers {response.status_code}: {_reason(response)}")
        if response.status_code != 200:
            raise EngineError(f"--url {self.url}: {url} answers {response.status_code}: {_reason(response)}")
        try:
            return response.json()
        except ValueError:
            raise EngineError(f"--url {self.url}: {url} answers no JSON. Is it the address of an API?") from None


def _deltas(url: str, lines: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    """What grows in the first choice of a stream of events. Raises EngineError for an event that is an error."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if event.get("error"):
            raise EngineError(f"{url} has stopped: {event['error'].get('message', data)}")
        yield from (choice["delta"] for choice in event.get("choices", [])[:1])


def _switched(switches: Mapping[str, Any]) -> dict[str, Any]:
    return {"chat_template_kwargs": dict(switches)} if switches else {}


def _prompt_tokens(answer: Mapping[str, Any]) -> int | None:
    return (answer.get("usage") or {}).get("prompt_tokens")


def _reason(response: httpx.Response) -> str:
    """What a server says of its refusal, in one line."""
    return " ".join(response.text.split())[:200] or response.reason_phrase


def _said(error: Exception) -> str:
    """What an error of the network says, without a full stop."""
    return str(error).rstrip(".") or type(error).__name__
