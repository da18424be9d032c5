"""This file knows how a reply is to be sampled: as the request says, else as the server was told, else as the model says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from swift.engines.base import Sampling, Structure
from swift.options.generation import GenerationOptions
from swift.serve.protocol import ChatRequest, CompletionRequest, GenerationRequest, ResponseFormat
from swift.serve.refusals import Refusal

COLDEST = 1e-4
"""Below this temperature the likeliest token is taken: logits divided by less would overflow."""
COMPLETION_TOKENS = 16
"""What the protocol of OpenAI continues a text by when nobody says how far."""
T = TypeVar("T")


@dataclass(frozen=True)
class Wishes:
    """What a request wants of its replies.

    cut: words of its own that end a reply and do not stay in it.
    """

    sampling: Sampling
    streams: bool
    cut: tuple[str, ...] = ()


def wishes_of_chat(request: ChatRequest, told: GenerationOptions, max_logprobs: int) -> Wishes:
    """What a chat wants. Raises Refusal for more log-probabilities than `--max_logprobs`."""
    wants = _first(request.logprobs, True if request.top_logprobs is not None else None, told.logprobs)
    top = _first(request.top_logprobs, told.top_logprobs)
    sampling = _sampling(
        request, told,
        max_new_tokens=_first(request.max_completion_tokens, request.max_tokens, told.max_new_tokens),
        top_logprobs=_allowed(top, max_logprobs, "top_logprobs") if wants else None,
        logprobs=bool(wants),
        structure=structure_of(request.response_format) or _regex(request, told),
    )  # fmt: skip
    return _wishes(request, told, sampling)


def wishes_of_completion(request: CompletionRequest, told: GenerationOptions, max_logprobs: int) -> Wishes:
    """What a completion wants: 16 tokens when nobody says how many. Raises Refusal as `wishes_of_chat`."""
    top = request.logprobs
    if top is None and told.logprobs:
        top = _first(told.top_logprobs, 0)
    sampling = _sampling(
        request, told,
        # Of a prompt alone (0) an engine says something with the first token after it.
        max_new_tokens=max(1, _first(request.max_tokens, told.max_new_tokens, COMPLETION_TOKENS) or 0),
        top_logprobs=_allowed(top, max_logprobs, "logprobs"),
        logprobs=top is not None,
        structure=_regex(request, told),
    )  # fmt: skip
    return _wishes(request, told, replace(sampling, prompt_logprobs=top if request.echo else None))


def structure_of(wanted: ResponseFormat | None) -> Structure | None:
    """What a reply of this format has to match; None when it may be anything."""
    if wanted is None or wanted.type == "text":
        return None
    schema = wanted.json_schema.schema_ if wanted.json_schema is not None else None
    return Structure(json_schema={"type": "object"} if schema is None else schema)


def _first(*values: T | None) -> T | None:
    """The first that somebody has said."""
    return next((value for value in values if value is not None), None)


def _sampling(
    request: GenerationRequest, told: GenerationOptions, *, max_new_tokens: int | None, top_logprobs: int | None,
    logprobs: bool, structure: Structure | None,
) -> Sampling:  # fmt: skip
    temperature = _first(request.temperature, told.temperature)
    stop = request.stop_words
    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=0.0 if temperature is not None and temperature < COLDEST else temperature,
        top_k=_first(request.top_k, told.top_k),
        top_p=_first(request.top_p, told.top_p),
        min_p=request.min_p,
        repetition_penalty=_first(request.repetition_penalty, told.repetition_penalty),
        presence_penalty=0.0 if request.presence_penalty is None else request.presence_penalty,
        frequency_penalty=0.0 if request.frequency_penalty is None else request.frequency_penalty,
        num_beams=told.num_beams if request.num_beams is None else request.num_beams,
        length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
        structure=structure,
        stop=tuple(told.stop_words) if stop is None else stop,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        n=1 if request.n is None else request.n,
        seed=request.seed,
    )


def _wishes(request: GenerationRequest, told: GenerationOptions, sampling: Sampling) -> Wishes:
    streams = bool(_first(request.stream, told.stream))
    if streams and sampling.num_beams > 1:
        raise Refusal(400, "`stream` needs `num_beams`: 1, because beams end all at once.", param="stream")
    cut = () if request.include_stop_str_in_output else request.stop_words or ()
    return Wishes(sampling, streams, cut)


def _regex(request: GenerationRequest, told: GenerationOptions) -> Structure | None:
    pattern = _first(request.structured_outputs_regex, told.structured_outputs_regex)
    return None if pattern is None else Structure(regex=pattern)


def _allowed(wanted: int | None, limit: int, name: str) -> int | None:
    """A number of log-probabilities that may be asked for."""
    if wanted is not None and wanted > limit:
        raise Refusal(400, f"`{name}` must be at most {limit} (--max_logprobs), not {wanted}.", param=name)
    return wanted
