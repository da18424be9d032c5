"""Small models behind the words of other engines: what they are asked and what they put out is in the shapes of the real
packages, what they say is said by our own engine. So it is shown on any machine that requests and replies are translated right."""

from __future__ import annotations

import inspect
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
from swift.chat.render import Prompt
from swift.engines.background import Background
from swift.engines.base import Request, Sampling, Structure
from swift.engines.hosted import Asked, Hosted, News, Token
from swift.engines.lmdeploy import Lmdeploy
from swift.engines.settings import Settings
from swift.engines.sglang import Sglang
from swift.engines.transformers import Transformers


class Plain:
    """A host in our own words."""

    def __init__(self, inner: Transformers) -> None:
        self.inner = inner

    def check(self, asked: Asked) -> None:
        """It can do everything."""

    async def grow(self, asked: Asked):
        choice = asked.choice
        sampling = Sampling(
            asked.limit, choice.temperature if choice.samples else 0.0, choice.top_k, choice.top_p, choice.min_p,
            choice.repetition_penalty, choice.presence_penalty, choice.frequency_penalty, structure=asked.structure,
            seed=asked.seed,
        )  # fmt: skip
        async for tokens, reason in said(self.inner, asked.prompt_ids, sampling, choice.top_logprobs):
            yield News(tokens if choice.top_logprobs is not None else [Token(each.token_id) for each in tokens], reason)

    async def add_adapter(self, name: str, folder: Path) -> None:
        raise AssertionError(f"it was not made for adapters ({name}: {folder})")

    async def forget(self) -> None:
        self.inner.forget()

    async def load_weights(self, folder) -> None:
        self.inner.load_weights(folder)

    def close(self) -> None:
        self.inner.close()


async def said(inner: Transformers, prompt_ids, sampling: Sampling, top: int | None, end_id: int | None = None):
    """The tokens that our engine says, piece by piece, and why it stopped; the end of a turn is shown where it is known."""
    from dataclasses import replace

    asked = replace(sampling, logprobs=True, top_logprobs=top)
    async with aclosing(inner.answer(Request(Prompt("", list(prompt_ids)), asked))) as deltas:
        async for delta in deltas:
            tokens = [
                Token(each.token_id, each.logprob, tuple((other, value) for other, _, value in each.top))
                for each in delta.logprobs
            ]
            reason = None if delta.completion is None else delta.completion.finish_reason
            if reason == "stop" and end_id is not None:
                tokens.append(Token(end_id, -0.5, ((end_id, -0.5),) * (top or 0)))
            yield tokens, reason


class SglangEngine:
    """What is used of SGLang's `Engine`."""

    def __init__(self, inner: Transformers, end_ids: frozenset[int]) -> None:
        self.inner = inner
        self.end_ids = end_ids
        self.tokenizer_manager = SimpleNamespace(flush_cache=self._flush, update_weights_from_disk=self._update)

    async def async_generate(self, **given: Any):
        from sglang.srt.entrypoints.engine import Engine
        from sglang.srt.managers.io_struct import GenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        inspect.signature(Engine.async_generate).bind(None, **given)
        request = GenerateReqInput(**given)
        request.normalize_batch_and_arguments()
        params = SamplingParams(**request.sampling_params)
        params.verify(len(tiny.tokenizer()))
        params.normalize(tiny.tokenizer())
        assert params.stop_token_ids == set(self.end_ids)
        structure = Structure(regex=params.regex) if params.regex else None
        if params.json_schema:
            import json

            structure = Structure(json_schema=json.loads(params.json_schema))
        greedy = params.top_k == 1
        sampling = Sampling(
            params.max_new_tokens, 0.0 if greedy else params.temperature,
            0 if greedy or params.top_k == 1 << 30 else params.top_k, params.top_p, params.min_p,
            params.repetition_penalty, params.presence_penalty, params.frequency_penalty, structure=structure,
            seed=params.sampling_seed,
        )  # fmt: skip
        return self._outputs(request, sampling)

    async def _outputs(self, request: Any, sampling: Sampling):
        top = request.top_logprobs_num
        async with aclosing(said(self.inner, request.input_ids, sampling, top, min(self.end_ids))) as pieces:
            async for tokens, reason in pieces:
                told: dict[str, Any] = {"id": request.rid, "finish_reason": None}
                if reason is not None:
                    told["finish_reason"] = {"type": reason, **({"matched": 0} if reason == "stop" else {})}
                if request.return_logprob:
                    told["output_token_logprobs"] = [(each.logprob, each.token_id, None) for each in tokens]
                    if top:
                        told["output_top_logprobs"] = [
                            [(value, other, None) for other, value in each.top] for each in tokens
                        ]
                yield {"text": "", "output_ids": [each.token_id for each in tokens], "meta_info": told}

    async def _flush(self) -> None:
        self.inner.forget()

    async def _update(self, wanted: Any) -> tuple[bool, str, int]:
        self.inner.load_weights(Path(wanted.model_path))
        return True, "", 0

    def shutdown(self) -> None:
        self.inner.close()


class LmdeployEngine:
    """What is used of LMDeploy's `AsyncEngine`."""

    backend = "pytorch"

    def __init__(self, inner: Transformers, end_ids: frozenset[int]) -> None:
        from lmdeploy.messages import PytorchEngineConfig
        from lmdeploy.serve.managers import SessionManager

        self.inner = inner
        self.end_ids = end_ids
        self.backend_config = PytorchEngineConfig()
        self.session_mgr = SessionManager()

    async def preprocess(self, messages: Any, session_id: Any, **given: Any) -> Any:
        from lmdeploy.serve.core.async_engine import AsyncEngine, PreprocessedRequest

        inspect.signature(AsyncEngine.preprocess).bind(None, messages, session_id, **given)
        assert messages is None
        ids = given["input_ids"]
        return PreprocessedRequest(
            session=session_id, inputs={"input_ids": ids}, input_token_len=len(ids), gen_config=given["gen_config"],
            adapter_name=given["adapter_name"],
        )  # fmt: skip

    async def generate(self, request: Any, stream_response: bool = True):
        from lmdeploy.serve.core.async_engine import GenOut

        config, ids = request.gen_config, request.inputs["input_ids"]
        assert set(config.stop_token_ids) == set(self.end_ids)
        asked = config.response_format or {}
        structure = Structure(regex=asked["regex_schema"]) if "regex_schema" in asked else None
        if "json_schema" in asked:
            structure = Structure(json_schema=asked["json_schema"]["schema"])
        drawn = config.do_sample and config.top_k != 1
        sampling = Sampling(
            config.max_new_tokens, config.temperature if drawn else 0.0, config.top_k if drawn else 0, config.top_p,
            config.min_p, config.repetition_penalty if config.do_sample else 1.0, structure=structure,
            seed=config.random_seed,
        )  # fmt: skip
        count = 0
        async with aclosing(said(self.inner, ids, sampling, config.logprobs)) as pieces:
            async for tokens, reason in pieces:
                count += len(tokens)
                told = None if config.logprobs is None else [known(each, config.logprobs) for each in tokens]
                yield GenOut("", len(ids), count, None, token_ids=[each.token_id for each in tokens], logprobs=told)
                if reason is not None:
                    yield GenOut("", len(ids), count, reason, token_ids=[])

    def close(self) -> None:
        self.inner.close()


def known(token: Token, count: int) -> dict[int, float]:
    """The log-probabilities of one place as LMDeploy tells them: the token, then the likeliest."""
    return {token.token_id: token.logprob or 0.0, **dict(token.top[:count])}


def hosted(kind: str, inner: Transformers, stop_token_ids=()) -> Hosted:
    """A model behind the words of `sglang` or `lmdeploy`, or behind ours."""
    settings = Settings(inner.model.generation_config, tiny.tokenizer(), stop_token_ids, inner.context_length)
    if kind == "sglang":
        host: Any = Sglang(SglangEngine(inner, settings.end_ids), repeats=True, tells_raw=True)
    elif kind == "lmdeploy":
        from lmdeploy.messages import GenerationConfig as Theirs

        host = Lmdeploy(LmdeployEngine(inner, settings.end_ids), Theirs)
    else:
        host = Plain(inner)
    return Hosted(host, settings, tiny.tokenizer(), Background("test"))
