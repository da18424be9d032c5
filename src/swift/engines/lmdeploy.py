"""This file knows how LMDeploy continues prompts: requests in its words, and what it puts out in ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift.core.errors import EngineError
from swift.core.extras import need
from swift.engines.background import Background
from swift.engines.base import Structure
from swift.engines.hosted import Asked, Hosted, News, Token
from swift.engines.lmdeploy_arguments import PYTORCH, WHY, made_engine
from swift.engines.others import Served, check_rows, first_words, generation_config
from swift.engines.settings import Settings
from swift.options.engines import LmdeployOptions

HOTTEST = 2.0
"""The most that LMDeploy takes as temperature."""


class Lmdeploy:
    """The host of LMDeploy.

    engine: its `AsyncEngine`, running in the event loop in which it is asked. config: its class `GenerationConfig`.
    """

    def __init__(self, engine: Any, config: Any) -> None:
        self._engine = engine
        self._config = config

    def check(self, asked: Asked) -> None:
        """Raises EngineError for penalties, temperatures and log-probabilities that LMDeploy does not have."""
        choice = asked.choice
        if choice.presence_penalty or choice.frequency_penalty:
            raise EngineError(
                "LMDeploy knows neither presence_penalty nor frequency_penalty. Use --repetition_penalty, or another "
                "--infer_backend."
            )
        if choice.samples and choice.temperature > HOTTEST:
            raise EngineError(f"LMDeploy takes a --temperature of at most 2 (got {choice.temperature:g}).")
        if choice.top_logprobs is not None and self._engine.backend != PYTORCH:
            raise EngineError(
                "LMDeploy's TurboMind engine does not tell the log-probabilities of the model itself. Start with --logprobs "
                "true, which chooses its PyTorch engine."
            )

    async def grow(self, asked: Asked) -> AsyncGenerator[News, None]:
        """A completion while it grows."""
        session = self._engine.session_mgr.get()
        try:
            request = await self._engine.preprocess(
                None, session, gen_config=self._config(**generation_arguments(asked)), input_ids=asked.prompt_ids,
                adapter_name=asked.adapter,
            )  # fmt: skip
            async with aclosing(self._engine.generate(request, stream_response=True)) as outputs:
                async for output in outputs:
                    yield news_of(output, asked.choice.top_logprobs)
        except EngineError:
            raise
        except (ValueError, TypeError, AssertionError, RuntimeError) as error:  # RequestError is a RuntimeError
            raise EngineError(f"LMDeploy refuses the request: {first_words(error)}") from error
        finally:
            self._engine.session_mgr.remove(session)

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Raises EngineError: LMDeploy reads its adapters when it starts."""
        raise EngineError(
            f"LMDeploy reads its adapters when it starts, and takes no others later: the engine has to be made with {name!r} "
            f"({folder})."
        )

    async def forget(self) -> None:
        """Nothing is kept of earlier prompts. Raises EngineError where it is, for LMDeploy cannot be told to forget."""
        if self._engine.backend_config.enable_prefix_caching:
            raise EngineError("LMDeploy cannot forget earlier prompts: drop enable_prefix_caching.")

    async def load_weights(self, folder: Path) -> None:
        """Raises EngineError: LMDeploy takes weights from the memory of another process alone."""
        raise EngineError(
            f"LMDeploy cannot be given other weights from {folder} while it runs. Start it anew with them."
        )

    def close(self) -> None:
        """End the engine and its processes."""
        self._engine.close()


def lmdeploy_engine(
    served: Served, tokenizer: PreTrainedTokenizerBase, options: LmdeployOptions, stop_token_ids: Sequence[int] = (),
    *, tells: bool = False,
) -> Hosted:  # fmt: skip
    """A model served by LMDeploy. tells: whether log-probabilities will be asked for.

    Raises MissingPackage without LMDeploy, EngineError when it cannot be started.
    """
    check_rows(served, tokenizer, "LMDeploy")
    engine = made_engine(served, options, tells=tells)
    background = Background("swift-lmdeploy")
    background.do(_started(engine, background))
    settings = Settings(generation_config(served.folder), tokenizer, stop_token_ids, engine.session_len)
    host = Lmdeploy(engine, need("lmdeploy.messages", WHY).GenerationConfig)
    always = served.adapter_of(None)
    return Hosted(host, settings, tokenizer, background, adapters=tuple(served.named), always=always)


async def _started(engine: Any, background: Background) -> None:
    """Its tasks belong to the loop that they are started in."""
    engine.start_loop(background.loop, use_async_api=True)


# ------------------------------------------------------------------------------------------------------------ translation


def generation_arguments(asked: Asked) -> dict[str, Any]:
    """The arguments of LMDeploy's `GenerationConfig` of a completion. Stop words are looked for here, not there.

    Without sampling it would leave out the repetition penalty, so the likeliest token is drawn out of one instead.
    """
    choice = asked.choice
    made: dict[str, Any] = {
        "max_new_tokens": asked.limit,
        "do_sample": choice.samples or choice.repetition_penalty != 1.0,
        "repetition_penalty": choice.repetition_penalty,
        "stop_token_ids": sorted(asked.end_ids),
        "skip_special_tokens": False,
        "random_seed": asked.seed,
        "response_format": None if asked.structure is None else response_format(asked.structure),
        "top_k": 1,
        "temperature": 1.0,
    }
    if choice.samples:
        # At a temperature of 0 nothing would be drawn; settings never are at it when they sample.
        made |= {
            "top_k": choice.top_k, "top_p": choice.top_p, "min_p": choice.min_p, "temperature": choice.temperature,
        }  # fmt: skip
    if choice.top_logprobs is not None:
        made["logprobs"] = max(choice.top_logprobs, 1)  # 0 tells nothing at all
    return made


def response_format(structure: Structure) -> dict[str, Any]:
    """What a reply is held to, in LMDeploy's words."""
    if structure.regex is not None:
        return {"type": "regex_schema", "regex_schema": structure.regex}
    schema = structure.json_schema or {"type": "object"}
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}


def news_of(output: Any, top_logprobs: int | None) -> News:
    """What one of LMDeploy's outputs (`GenOut`) says. Raises EngineError for a request that it has ended by itself."""
    reason = output.finish_reason
    if reason in ("error", "abort"):
        raise EngineError(f"LMDeploy has ended the request: {reason}.")
    ids = output.token_ids or []
    if top_logprobs is None:
        return News([Token(each) for each in ids], reason)
    told: Sequence[Mapping[int, float]] = output.logprobs or []
    return News([_token(each, known, top_logprobs) for each, known in zip(ids, told, strict=True)], reason)


def _token(token_id: int, known: Mapping[int, float], count: int) -> Token:
    """A token beside the likeliest. What is told holds the token itself, which may not be one of them."""
    likeliest = sorted(known.items(), key=lambda each: -each[1])
    return Token(token_id, known[token_id], tuple(likeliest[:count]))
