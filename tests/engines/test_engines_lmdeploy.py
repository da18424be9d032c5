"""LMDeploy's arguments, requests and replies: ours as they become its own, held against the classes of the real package."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import tiny
from swift.core.errors import EngineError, UsageError
from swift.engines.base import Structure
from swift.engines.hosted import Asked, Token
from swift.engines.lmdeploy import Lmdeploy, generation_arguments, lmdeploy_engine, news_of
from swift.engines.lmdeploy_arguments import (
    PYTORCH,
    TURBOMIND,
    Configs,
    chosen_engine,
    config_of,
    engine_arguments,
    known_configs,
)
from swift.engines.others import Served
from swift.engines.rows import Choice
from swift.options.engines import LmdeployOptions

GIVEN = {
    "lmdeploy_tp": ("tp", 2),
    "lmdeploy_session_len": ("session_len", 96),
    "lmdeploy_cache_max_entry_count": ("cache_max_entry_count", 0.3),
    "lmdeploy_quant_policy": ("quant_policy", 8),
    "lmdeploy_engine_kwargs": ("max_batch_size", 7),
}
"""Option -> the argument of both configs, and a value."""
BOTH = Configs(frozenset({"tp", "communicator"}), frozenset({"tp", "eager_mode"}), is_supported=True)
PLAIN = LmdeployOptions()
DRAWN = Choice(True, 0.7, 20, 0.9, 0.05, 1.1)


def value_of(option):
    name, value = GIVEN[option]
    return {name: value} if option == "lmdeploy_engine_kwargs" else value


def adapter(folder):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("engine", [TURBOMIND, PYTORCH])
@pytest.mark.parametrize("option", GIVEN)
def test_each_option_is_an_argument_of_the_config(option, engine, tmp_path):
    name, value = GIVEN[option]
    plain = engine_arguments(Served(tmp_path), LmdeployOptions(), engine)
    changed = engine_arguments(Served(tmp_path), LmdeployOptions(**{option: value_of(option)}), engine)
    assert plain.get(name) != value
    assert {key: each for key, each in changed.items() if plain.get(key) != each} == {name: value}


def test_the_engine_is_chosen_by_what_it_has_to_do(tmp_path):
    plain, adapted = Served(tmp_path), Served(tmp_path, adapters={"a": tmp_path})
    only_turbomind = LmdeployOptions(lmdeploy_engine_kwargs={"communicator": "nccl"})
    only_pytorch = LmdeployOptions(lmdeploy_engine_kwargs={"eager_mode": True})
    unknown = Configs(BOTH.turbomind, BOTH.pytorch, is_supported=False)

    def engine(served, options=PLAIN, configs=BOTH, tells=False):
        return chosen_engine(served, options, configs, tells=tells)[0]

    assert engine(plain) == engine(plain, only_turbomind) == TURBOMIND
    assert engine(adapted) == engine(plain, tells=True) == engine(plain, only_pytorch) == PYTORCH
    assert engine(plain, configs=unknown) == PYTORCH
    with pytest.raises(UsageError, match=r"only the TurboMind engine has communicator.*only it reads adapters"):
        engine(adapted, only_turbomind)
    with pytest.raises(UsageError, match=r"no argument eager_mod\. Did you mean eager_mode"):
        engine(plain, LmdeployOptions(lmdeploy_engine_kwargs={"eager_mod": True}))


def test_what_lmdeploy_cannot_serve_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(EngineError, match=r"float16 or bfloat16.*float32. Give --torch_dtype bfloat16"):
        engine_arguments(Served(tmp_path, "float32"), LmdeployOptions(), PYTORCH)
    with pytest.raises(EngineError, match="--lmdeploy_tp 2 need 2 GPUs, and there are 1"):
        engine_arguments(Served(tmp_path), LmdeployOptions(lmdeploy_tp=2), TURBOMIND, devices=1)
    shared = Served(tmp_path, devices=(1,))
    assert engine_arguments(shared, LmdeployOptions(), TURBOMIND)["devices"] == [1]
    with pytest.raises(EngineError, match="processes cannot share the rows"):
        engine_arguments(shared, LmdeployOptions(), PYTORCH)
    folder = tiny.checkpoint(tmp_path / "m", vocab_size=30)
    with pytest.raises(EngineError, match="has rows for 30: LMDeploy cannot read"):
        lmdeploy_engine(Served(folder), tiny.tokenizer(), LmdeployOptions())


@pytest.mark.parametrize(
    ("choice", "engine", "message"),
    [
        (Choice(presence_penalty=0.5), PYTORCH, "knows neither presence_penalty"),
        (Choice(frequency_penalty=0.5), TURBOMIND, "nor frequency_penalty"),
        (Choice(True, 2.5), PYTORCH, "at most 2"),
        (Choice(top_logprobs=0), TURBOMIND, "Start with --logprobs true"),
    ],
)
def test_what_lmdeploy_does_not_do_is_refused(choice, engine, message):
    with pytest.raises(EngineError, match=message):
        Lmdeploy(SimpleNamespace(backend=engine), None).check(Asked([1], choice, 4, frozenset({2})))
    Lmdeploy(SimpleNamespace(backend=PYTORCH), None).check(Asked([1], Choice(top_logprobs=0), 4, frozenset({2})))


# ---------------------------------------------------------------------------------------------------- the real package


def config(tmp_path, engine, **options):
    from lmdeploy import messages

    arguments = engine_arguments(Served(tmp_path, "bfloat16"), LmdeployOptions(**options), engine)
    return config_of(messages, arguments, engine)


@pytest.mark.lmdeploy
@pytest.mark.parameter("lmdeploy_tp")
@pytest.mark.parameter("lmdeploy_session_len")
@pytest.mark.parameter("lmdeploy_cache_max_entry_count")
@pytest.mark.parameter("lmdeploy_quant_policy")
@pytest.mark.parameter("lmdeploy_engine_kwargs")
@pytest.mark.parametrize("engine", [TURBOMIND, PYTORCH])
@pytest.mark.parametrize("option", GIVEN)
def test_lmdeploy_understands_each_option_as_it_is_meant(option, engine, tmp_path):
    name, value = GIVEN[option]
    assert getattr(config(tmp_path, engine), name) != value
    assert getattr(config(tmp_path, engine, **{option: value_of(option)}), name) == value


@pytest.mark.lmdeploy
def test_what_is_set_beside_the_options_and_what_is_refused(tmp_path):
    from lmdeploy import messages

    configs = known_configs(messages, is_supported=True)
    assert "adapters" in configs.pytorch - configs.turbomind
    assert "communicator" in configs.turbomind - configs.pytorch
    served = Served(tmp_path, "float16", 64, {"a": adapter(tmp_path / "a")})
    made = config_of(messages, engine_arguments(served, LmdeployOptions(), PYTORCH), PYTORCH)
    assert (made.adapters, made.session_len, made.dtype) == ({"a": str(tmp_path / "a")}, 64, "float16")
    assert made.logprobs_mode == "raw_logprobs"
    with pytest.raises(EngineError, match="PytorchEngineConfig refuses its arguments: invalid cache_max_entry_count"):
        config(tmp_path, PYTORCH, lmdeploy_cache_max_entry_count=2.0)


@pytest.mark.lmdeploy
@pytest.mark.parametrize("structure", [None, Structure(regex="[ab]+"), Structure(json_schema={"type": "object"})])
def test_generation_configs_are_those_of_lmdeploy(structure):
    from lmdeploy.messages import GenerationConfig

    drawn = GenerationConfig(**generation_arguments(Asked([1], DRAWN, 9, frozenset({2, 5}), 11, structure)))
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p) == (0.7, 20, 0.9, 0.05)
    assert (drawn.do_sample, drawn.repetition_penalty, drawn.random_seed) == (True, 1.1, 11)
    assert (drawn.max_new_tokens, drawn.stop_token_ids, drawn.logprobs) == (9, [2, 5], None)
    if structure is not None:
        from lmdeploy._guided_decoding import ensure_response_format_compilable

        ensure_response_format_compilable(drawn.response_format)
    greedy = GenerationConfig(**generation_arguments(Asked([1], Choice(top_logprobs=0), 9, frozenset({2}))))
    assert (greedy.do_sample, greedy.top_k, greedy.logprobs) == (False, 1, 1)
    penalized = GenerationConfig(**generation_arguments(Asked([1], Choice(repetition_penalty=1.3), 9, frozenset({2}))))
    assert (penalized.do_sample, penalized.top_k, penalized.temperature) == (True, 1, 1.0)


@pytest.mark.lmdeploy
def test_outputs_become_news():
    from lmdeploy.serve.core.async_engine import GenOut

    told = [{7: -0.5, 9: -0.9}, {8: -3.0, 9: -0.1, 7: -0.4}]
    news = news_of(GenOut("", 1, 2, token_ids=[7, 8], logprobs=told), 2)
    assert news.tokens == [Token(7, -0.5, ((7, -0.5), (9, -0.9))), Token(8, -3.0, ((9, -0.1), (7, -0.4)))]
    assert news.reason is None
    assert news_of(GenOut("", 1, 2, "length", token_ids=[3]), None).tokens == [Token(3)]
    assert news_of(GenOut("", 1, 2, "stop", token_ids=[]), 2).reason == "stop"
    with pytest.raises(EngineError, match="has ended the request: abort"):
        news_of(GenOut("", 1, 0, "abort", token_ids=[]), None)
