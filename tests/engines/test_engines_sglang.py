"""SGLang's arguments, requests and replies: ours as they become its own, held against the classes of the real package."""

from __future__ import annotations

import json

import pytest

import tiny
from swift.core.errors import EngineError, UsageError
from swift.engines.base import Structure
from swift.engines.hosted import Asked, Token
from swift.engines.others import Served
from swift.engines.rows import Choice
from swift.engines.sglang import Sglang, news_of, sampling_params, sglang_engine
from swift.engines.sglang_arguments import engine_arguments, known_arguments
from swift.options.engines import SglangOptions

GIVEN = {
    "sglang_tp_size": ("tp_size", 2),
    "sglang_pp_size": ("pp_size", 2),
    "sglang_dp_size": ("dp_size", 2),
    "sglang_ep_size": ("ep_size", 2),
    "sglang_mem_fraction_static": ("mem_fraction_static", 0.5),
    "sglang_context_length": ("context_length", 96),
    "sglang_disable_cuda_graph": ("disable_cuda_graph", True),
    "sglang_quantization": ("quantization", "fp8"),
    "sglang_kv_cache_dtype": ("kv_cache_dtype", "fp8_e4m3"),
    "sglang_enable_dp_attention": ("enable_dp_attention", True),
    "sglang_disable_custom_all_reduce": ("disable_custom_all_reduce", False),
    "sglang_speculative_algorithm": ("speculative_algorithm", "EAGLE"),
    "sglang_speculative_num_steps": ("speculative_num_steps", 3),
    "sglang_speculative_eagle_topk": ("speculative_eagle_topk", 4),
    "sglang_speculative_num_draft_tokens": ("speculative_num_draft_tokens", 5),
    "sglang_engine_kwargs": ("stream_interval", 7),
}
"""Option -> the argument of ServerArgs, and a value."""


def value_of(option):
    name, value = GIVEN[option]
    return {name: value} if option == "sglang_engine_kwargs" else value


def adapter(folder, **changes):
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 8, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("option", GIVEN)
def test_each_option_is_an_argument_of_the_engine(option, tmp_path):
    name, value = GIVEN[option]
    plain = engine_arguments(Served(tmp_path), SglangOptions())
    changed = engine_arguments(Served(tmp_path), SglangOptions(**{option: value_of(option)}))
    assert plain.get(name) != value
    assert {key: each for key, each in changed.items() if plain.get(key) != each} == {name: value}


def test_a_switch_that_is_gone_is_refused_with_what_has_its_place(tmp_path):
    options = SglangOptions(sglang_enable_ep_moe=True)
    assert engine_arguments(Served(tmp_path), options, {"enable_ep_moe": False})["enable_ep_moe"] is True
    with pytest.raises(UsageError, match="no such switch any more; --sglang_ep_size"):
        engine_arguments(Served(tmp_path), options, {"ep_size": 1})
    misspelt = SglangOptions(sglang_engine_kwargs={"stream_intervall": 1})
    with pytest.raises(UsageError, match=r"no argument stream_intervall\. Did you mean stream_interval"):
        engine_arguments(Served(tmp_path), misspelt, {"stream_interval": 1})


def test_too_few_devices_are_counted_and_attention_in_parallel_needs_none_of_its_own(tmp_path):
    sizes = {"sglang_tp_size": 2, "sglang_dp_size": 2}
    with pytest.raises(EngineError, match="--sglang_tp_size 2 and --sglang_dp_size 2 need 4 GPUs, and there are 2"):
        engine_arguments(Served(tmp_path), SglangOptions(**sizes), devices=2)
    engine_arguments(Served(tmp_path), SglangOptions(**sizes, sglang_enable_dp_attention=True), devices=2)


def test_adapters_are_loaded_by_name_and_what_is_more_than_lora_is_refused(tmp_path):
    served = Served(tmp_path, adapters={"first": adapter(tmp_path / "1")}, always=adapter(tmp_path / "2"))
    made = engine_arguments(served, SglangOptions())
    assert made["lora_paths"] == {"first": str(tmp_path / "1"), "always": str(tmp_path / "2")}
    assert (made["enable_lora"], served.adapter_of("first"), served.adapter_of(None)) == (True, "first", "always")
    assert "enable_lora" not in engine_arguments(Served(tmp_path), SglangOptions())
    many = {f"{i}": tmp_path / "1" for i in range(12)}
    assert engine_arguments(Served(tmp_path, adapters=many), SglangOptions())["max_loras_per_batch"] == 13
    with pytest.raises(EngineError, match=r"it has use_dora. Merge it"):
        engine_arguments(Served(tmp_path, always=adapter(tmp_path / "3", use_dora=True)), SglangOptions())


def test_more_tokens_than_rows_are_refused_before_anything_is_loaded(tmp_path):
    folder = tiny.checkpoint(tmp_path / "m", vocab_size=30)
    with pytest.raises(EngineError, match="has rows for 30: SGLang cannot read"):
        sglang_engine(Served(folder), tiny.tokenizer(), SglangOptions())


# --------------------------------------------------------------------------------------------------- requests and replies

DRAWN = Choice(True, 0.7, 20, 0.9, 0.05, 1.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("choice", "structure", "message"),
    [
        (Choice(repetition_penalty=2.5), None, "at most 2"),
        (Choice(repetition_penalty=1.2, top_logprobs=0), None, "after penalties are taken off"),
        (Choice(top_logprobs=2), Structure(regex="a"), "after a structure has cut them"),
        (Choice(True, 0.5, top_logprobs=2), None, "after the temperature"),
    ],
)
def test_what_sglang_does_not_do_is_refused(choice, structure, message):
    host = Sglang(None, repeats=True, tells_raw=False)
    with pytest.raises(EngineError, match=message):
        host.check(Asked([1], choice, 4, frozenset({2}), structure=structure))
    host.check(Asked([1], Choice(True, 1.0, top_logprobs=2), 4, frozenset({2})))
    Sglang(None, repeats=True, tells_raw=True).check(Asked([1], Choice(True, 0.5, top_logprobs=2), 4, frozenset({2})))


def test_a_seed_that_does_not_repeat_draws_is_warned_of_once(told):
    asked = Asked([1], DRAWN, 4, frozenset({2}), seed=3)
    host = Sglang(None, repeats=False, tells_raw=True)
    host.check(asked)
    host.check(asked)
    Sglang(None, repeats=True, tells_raw=True).check(asked)
    assert len([line for line in told if "enable_deterministic_inference" in line]) == 1


def test_pieces_of_output_become_news():
    told = {"finish_reason": None, "output_token_logprobs": [(-0.5, 7, None), (-1.5, 8, None)]}
    top = [[(-0.5, 7, None), (-0.9, 9, None)], [(-1.5, 8, None), (-1.6, 9, None)]]
    news = news_of({"output_ids": [7, 8], "meta_info": {**told, "output_top_logprobs": top}})
    assert news.tokens == [Token(7, -0.5, ((7, -0.5), (9, -0.9))), Token(8, -1.5, ((8, -1.5), (9, -1.6)))]
    assert news.reason is None
    for kind in ("stop", "length"):
        last = news_of({"output_ids": [3], "meta_info": {"finish_reason": {"type": kind, "matched": 3}}})
        assert (last.tokens, last.reason) == ([Token(3)], kind)
    with pytest.raises(EngineError, match="has ended the request: too long"):
        news_of({"output_ids": [], "meta_info": {"finish_reason": {"type": "abort", "message": "too long"}}})


# ---------------------------------------------------------------------------------------------------- the real package


def server_args(tmp_path, **options):
    from sglang.srt.server_args import ServerArgs

    made = engine_arguments(Served(tmp_path, "bfloat16"), SglangOptions(**options), known_arguments(ServerArgs))
    return ServerArgs(**made)


@pytest.mark.sglang
@pytest.mark.parameter("sglang_tp_size")
@pytest.mark.parameter("sglang_pp_size")
@pytest.mark.parameter("sglang_dp_size")
@pytest.mark.parameter("sglang_ep_size")
@pytest.mark.parameter("sglang_mem_fraction_static")
@pytest.mark.parameter("sglang_context_length")
@pytest.mark.parameter("sglang_disable_cuda_graph")
@pytest.mark.parameter("sglang_quantization")
@pytest.mark.parameter("sglang_kv_cache_dtype")
@pytest.mark.parameter("sglang_enable_dp_attention")
@pytest.mark.parameter("sglang_disable_custom_all_reduce")
@pytest.mark.parameter("sglang_speculative_algorithm")
@pytest.mark.parameter("sglang_speculative_num_steps")
@pytest.mark.parameter("sglang_speculative_eagle_topk")
@pytest.mark.parameter("sglang_speculative_num_draft_tokens")
@pytest.mark.parameter("sglang_engine_kwargs")
@pytest.mark.parametrize("option", GIVEN)
def test_sglang_understands_each_option_as_it_is_meant(option, tmp_path):
    name, value = GIVEN[option]
    assert getattr(server_args(tmp_path), name) != value
    assert getattr(server_args(tmp_path, **{option: value_of(option)}), name) == value


@pytest.mark.sglang
@pytest.mark.parameter("sglang_enable_ep_moe")
def test_the_installed_sglang_has_no_switch_for_experts_any_more(tmp_path):
    with pytest.raises(UsageError, match="--sglang_ep_size spreads the experts"):
        server_args(tmp_path, sglang_enable_ep_moe=True)


@pytest.mark.sglang
def test_what_is_set_beside_the_options_are_arguments_of_sglang(tmp_path):
    from sglang.srt.server_args import ServerArgs

    served = Served(
        tmp_path, "float16", 64, {"a": adapter(tmp_path / "a")}, overrides={"rope_theta": 1.0}, devices=(2, 3)
    )
    made = engine_arguments(served, SglangOptions(), known_arguments(ServerArgs))
    args = ServerArgs(**made)
    assert (args.dtype, args.context_length, args.base_gpu_id) == ("float16", 64, 2)
    assert json.loads(args.json_model_override_args) == {"rope_theta": 1.0}
    assert args.incremental_streaming_output
    assert args.grammar_backend == "llguidance"


@pytest.mark.sglang
@pytest.mark.parametrize(
    "structure", [None, Structure(regex="[ab]+"), Structure(json_schema={"type": "object", "required": ["a"]})]
)
def test_sampling_parameters_are_those_of_sglang(structure):
    from sglang.srt.sampling.sampling_params import TOP_K_ALL, SamplingParams

    drawn = SamplingParams(**sampling_params(Asked([1], DRAWN, 9, frozenset({2, 5}), 11, structure)))
    drawn.verify(400)
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p) == (0.7, 20, 0.9, 0.05)
    assert (drawn.repetition_penalty, drawn.presence_penalty, drawn.frequency_penalty) == (1.1, 0.2, 0.3)
    assert (drawn.max_new_tokens, drawn.stop_token_ids, drawn.sampling_seed) == (9, {2, 5}, 11)
    assert drawn.regex == (structure and structure.regex)
    schema = structure.json_schema if structure else None
    assert drawn.json_schema == (json.dumps(schema) if schema else None)
    greedy = SamplingParams(**sampling_params(Asked([1], Choice(), 9, frozenset({2}))))
    greedy.verify(400)
    assert greedy.top_k == 1
    everything = SamplingParams(**sampling_params(Asked([1], Choice(True), 9, frozenset({2}))))
    assert everything.top_k == TOP_K_ALL
