"""This file knows how SGLang continues prompts: requests in its words, and what it puts out in ours."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from swift.core import environment
from swift.core.errors import EngineError
from swift.core.extras import need
from swift.core.logs import get_logger
from swift.engines.background import Background
from swift.engines.base import FinishReason
from swift.engines.hosted import Asked, Hosted, News, Token
from swift.engines.others import Served, check_adapter, check_rows, first_words, generation_config
from swift.engines.rows import Choice
from swift.engines.settings import Settings
from swift.engines.sglang_arguments import WHY, made_engine
from swift.options.engines import SglangOptions

MOST_REPETITION = 2.0
"""The most that SGLang takes as repetition penalty."""


class Sglang:
    """The host of SGLang.

    engine: its `Engine`. repeats: whether each request draws with its own seed, which needs its deterministic inference.
    tells_raw: whether its log-probabilities are those before the temperature.
    """

    def __init__(self, engine: Any, *, repeats: bool, tells_raw: bool) -> None:
        self._engine = engine
        self._repeats = repeats
        self._tells_raw = tells_raw
        self._numbers = itertools.count()
        self._has_warned = False

    def check(self, asked: Asked) -> None:
        """Raises EngineError for log-probabilities that SGLang does not tell."""
        choice = asked.choice
        if choice.repetition_penalty > MOST_REPETITION:
            raise EngineError(f"SGLang takes a --repetition_penalty of at most 2 (got {choice.repetition_penalty:g}).")
        if choice.top_logprobs is not None:
            changed = _changed(asked, tells_raw=self._tells_raw)
            if changed:
                raise EngineError(
                    f"--logprobs true: SGLang tells them after {changed}, and not those of the model itself. Ask for one "
                    "of the two, or use --infer_backend transformers or vllm."
                )
        if choice.samples and asked.seed is not None and not self._repeats and not self._has_warned:
            self._has_warned = True
            get_logger().warning(
                "SGLang draws with the random numbers of its engine: what is drawn depends on what else is in the batch. "
                "--sglang_engine_kwargs '{\"enable_deterministic_inference\": true}' gives each request its own seed, and "
                "is slower."
            )

    async def grow(self, asked: Asked) -> AsyncGenerator[News, None]:
        """A completion while it grows."""
        tells = asked.choice.top_logprobs is not None
        try:
            outputs = await self._engine.async_generate(
                input_ids=asked.prompt_ids,
                sampling_params=sampling_params(asked),
                return_logprob=tells,
                top_logprobs_num=asked.choice.top_logprobs or 0,
                lora_path=asked.adapter,
                rid=f"swift-{next(self._numbers)}",
                stream=True,
            )
            async with aclosing(outputs):
                async for output in outputs:
                    yield news_of(output)
        except (ValueError, TypeError) as error:
            raise EngineError(f"SGLang refuses the request: {first_words(error)}") from error

    async def add_adapter(self, name: str, folder: Path) -> None:
        """One more adapter. Raises EngineError for one that SGLang does not read, and where it was not told of adapters."""
        check_adapter(folder, "sglang")
        answer = await self._engine.async_load_lora_adapter(name, str(folder))
        if not answer.success:
            raise EngineError(
                f"SGLang does not take the adapter {folder}: {first_words(ValueError(answer.error_message))}. Adapters that "
                "come later need enable_lora, max_lora_rank and lora_target_modules among --sglang_engine_kwargs."
            )

    async def forget(self) -> None:
        """Forget what was computed of earlier prompts."""
        await self._engine.tokenizer_manager.flush_cache()

    async def load_weights(self, folder: Path) -> None:
        """Answer by the weights of another checkpoint from now on. Raises EngineError."""
        wanted: Any = need("sglang.srt.managers.io_struct", WHY).UpdateWeightFromDiskReqInput
        succeeded, message, *_ = await self._engine.tokenizer_manager.update_weights_from_disk(
            wanted(model_path=str(folder))
        )
        if not succeeded:
            raise EngineError(f"SGLang cannot read the weights of {folder}: {message}")

    def close(self) -> None:
        """End the engine and its processes."""
        self._engine.shutdown()


def sglang_engine(
    served: Served, tokenizer: PreTrainedTokenizerBase, options: SglangOptions, stop_token_ids: Sequence[int] = ()
) -> Hosted:
    """A model served by SGLang. Raises MissingPackage without SGLang, EngineError when it cannot be started."""
    check_rows(served, tokenizer, "SGLang")
    engine = made_engine(served, options)
    context_length = engine.tokenizer_manager.context_len
    settings = Settings(generation_config(served.folder), tokenizer, stop_token_ids, context_length)
    host = Sglang(
        engine,
        repeats=bool((options.sglang_engine_kwargs or {}).get("enable_deterministic_inference")),
        tells_raw=environment.SGLANG_RETURN_ORIGINAL_LOGPROB.flag(),
    )
    always = served.adapter_of(None)
    return Hosted(host, settings, tokenizer, Background("swift-sglang"), adapters=tuple(served.named), always=always)


# ------------------------------------------------------------------------------------------------------------ translation


def sampling_params(asked: Asked) -> dict[str, Any]:
    """The arguments of SGLang's `SamplingParams` of a completion. Stop words are looked for here, not there."""
    choice = asked.choice
    made: dict[str, Any] = {
        "max_new_tokens": asked.limit,
        "temperature": choice.temperature if choice.samples else 0.0,
        "repetition_penalty": choice.repetition_penalty,
        "presence_penalty": choice.presence_penalty,
        "frequency_penalty": choice.frequency_penalty,
        "stop_token_ids": sorted(asked.end_ids),
        "skip_special_tokens": False,
        "sampling_seed": asked.seed,
    }
    if choice.samples:
        made |= {"top_k": choice.top_k or -1, "top_p": choice.top_p, "min_p": choice.min_p}
    if asked.structure is not None and asked.structure.regex is not None:
        made["regex"] = asked.structure.regex
    elif asked.structure is not None:
        made["json_schema"] = json.dumps(asked.structure.json_schema or {"type": "object"})
    return made


def news_of(output: Mapping[str, Any]) -> News:
    """What a piece of SGLang's output says. Raises EngineError for a request that it has ended by itself."""
    ids, told = output["output_ids"], output["meta_info"]
    finish = told.get("finish_reason")
    if finish is not None and finish["type"] == "abort":
        raise EngineError(f"SGLang has ended the request: {finish.get('message') or 'it does not say why'}")
    chosen = told.get("output_token_logprobs") or [(None, each, None) for each in ids]
    likeliest = told.get("output_top_logprobs") or [[] for _ in ids]
    tokens = [
        Token(token_id, value, tuple((other, logprob) for logprob, other, _ in top or []))
        for token_id, (value, _, _), top in zip(ids, chosen, likeliest, strict=False)
    ]
    return News(tokens, None if finish is None else _reason(finish))


def _reason(finish: Mapping[str, Any]) -> FinishReason:
    return "length" if finish["type"] == "length" else "stop"


def _changed(asked: Asked, *, tells_raw: bool) -> str:
    """What is done to the logits before SGLang looks at their log-probabilities; "" for nothing."""
    choice: Choice = asked.choice
    done = {
        "penalties are taken off": choice.counts,
        "a structure has cut them": asked.structure is not None,
        "the temperature (the environment variable SGLANG_RETURN_ORIGINAL_LOGPROB=1 changes that)": (
            choice.samples and choice.temperature != 1.0 and not tells_raw
        ),
    }
    return " and ".join(name for name, is_so in done.items() if is_so)
