"""Our options as arguments of vLLM's engine: what each becomes, and what is refused before the engine starts."""

from __future__ import annotations

import json

import pytest

import tiny
from swift.core.errors import EngineError, UsageError
from swift.engines.vllm_arguments import Served, engine_arguments, known_arguments, made_engine
from swift.options.engines import VllmOptions

GIVEN = {
    "vllm_gpu_memory_utilization": ("gpu_memory_utilization", 0.5, "cache_config.gpu_memory_utilization"),
    "vllm_tensor_parallel_size": ("tensor_parallel_size", 2, "parallel_config.tensor_parallel_size"),
    "vllm_pipeline_parallel_size": ("pipeline_parallel_size", 2, "parallel_config.pipeline_parallel_size"),
    "vllm_data_parallel_size": ("data_parallel_size", 2, "parallel_config.data_parallel_size"),
    "vllm_enable_expert_parallel": ("enable_expert_parallel", True, "parallel_config.enable_expert_parallel"),
    "vllm_max_num_seqs": ("max_num_seqs", 7, "scheduler_config.max_num_seqs"),
    "vllm_max_model_len": ("max_model_len", 96, "model_config.max_model_len"),
    "vllm_disable_custom_all_reduce": (
        "disable_custom_all_reduce", False, "parallel_config.disable_custom_all_reduce",
    ),
    "vllm_enforce_eager": ("enforce_eager", True, "model_config.enforce_eager"),
    "vllm_mm_processor_cache_gb": ("mm_processor_cache_gb", 1.5, "model_config.multimodal_config.mm_processor_cache_gb"),
    "vllm_speculative_config": (
        "speculative_config", {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2},
        "speculative_config.num_speculative_tokens",
    ),
    "vllm_limit_mm_per_prompt": (
        "limit_mm_per_prompt", {"image": 5, "video": 2}, "model_config.multimodal_config.limit_per_prompt",
    ),
    "vllm_quantization": ("quantization", "fp8", "model_config.quantization"),
    "vllm_enable_prefix_caching": ("enable_prefix_caching", False, "cache_config.enable_prefix_caching"),
}  # fmt: skip
"""Option -> the argument of EngineArgs, a value, and where vLLM's own configuration shows it."""


def adapter(folder, **changes):
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 8, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parameter("vllm_gpu_memory_utilization")
@pytest.mark.parameter("vllm_data_parallel_size")
@pytest.mark.parameter("vllm_enable_expert_parallel")
@pytest.mark.parameter("vllm_max_num_seqs")
@pytest.mark.parameter("vllm_disable_custom_all_reduce")
@pytest.mark.parameter("vllm_enforce_eager")
@pytest.mark.parameter("vllm_quantization")
@pytest.mark.parameter("vllm_enable_prefix_caching")
@pytest.mark.parametrize("option", GIVEN)
def test_each_option_is_an_argument_of_the_engine(option, tmp_path):
    name, value, _ = GIVEN[option]
    plain = engine_arguments(Served(tmp_path), VllmOptions())
    changed = engine_arguments(Served(tmp_path), VllmOptions(**{option: value}))
    assert plain.get(name) != value
    assert {key: each for key, each in changed.items() if plain.get(key) != each} == {name: value}


@pytest.mark.parameter("vllm_engine_kwargs")
def test_further_arguments_go_before_all_others_and_unknown_ones_are_named(tmp_path):
    options = VllmOptions(vllm_max_num_seqs=3, vllm_engine_kwargs={"max_num_seqs": 5, "block_size": 32})
    made = engine_arguments(Served(tmp_path), options, {"max_num_seqs": None, "block_size": None})
    assert (made["max_num_seqs"], made["block_size"]) == (5, 32)
    with pytest.raises(UsageError, match=r"no argument blocksize\. Did you mean block_size"):
        engine_arguments(Served(tmp_path), VllmOptions(vllm_engine_kwargs={"blocksize": 1}), {"block_size": None})


@pytest.mark.parameter("vllm_max_lora_rank")
def test_the_rank_of_adapters_has_to_fit_before_anything_is_loaded(tmp_path):
    big, small = adapter(tmp_path / "big", rank_pattern={"q_proj": 32}), adapter(tmp_path / "small")
    served = Served(tmp_path, adapters={"big": big}, always=small)
    with pytest.raises(EngineError, match=r"--vllm_max_lora_rank 16 is less .* 32. Give --vllm_max_lora_rank 32"):
        engine_arguments(served, VllmOptions())
    made = engine_arguments(served, VllmOptions(vllm_max_lora_rank=32))
    assert (made["enable_lora"], made["max_lora_rank"], made["max_loras"] >= 2) == (True, 32, True)
    assert "enable_lora" not in engine_arguments(Served(tmp_path), VllmOptions())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peft_type": "IA3"}, "is IA3"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
)
def test_adapters_that_vllm_cannot_read_are_refused_with_the_way_out(tmp_path, changes, why):
    with pytest.raises(EngineError, match=f"{why}.*--merge_lora true"):
        engine_arguments(Served(tmp_path, always=adapter(tmp_path / "a", **changes)), VllmOptions())


@pytest.mark.parameter("vllm_tensor_parallel_size")
@pytest.mark.parameter("vllm_pipeline_parallel_size")
def test_too_few_devices_are_counted_before_the_engine_starts(tmp_path):
    options = VllmOptions(vllm_tensor_parallel_size=2, vllm_pipeline_parallel_size=2)
    with pytest.raises(EngineError, match="need 4 GPUs, and there are 3"):
        engine_arguments(Served(tmp_path), options, devices=3)
    assert engine_arguments(Served(tmp_path), options, devices=4)["tensor_parallel_size"] == 2


@pytest.mark.parameter("vllm_disable_cascade_attn")
def test_cascade_attention_is_switched_off_where_there_is_a_switch(tmp_path, told, caplog):
    caplog.set_level("INFO", "swift")
    options = VllmOptions(vllm_disable_cascade_attn=True)
    assert engine_arguments(Served(tmp_path), options, {"disable_cascade_attn": False})["disable_cascade_attn"] is True
    assert "disable_cascade_attn" not in engine_arguments(Served(tmp_path), options, {"disable_cascade_attn": None})
    assert any("no cascade attention" in line for line in told)
    assert "disable_cascade_attn" not in engine_arguments(Served(tmp_path), VllmOptions())


def test_the_package_is_named_when_it_is_not_there(tmp_path):
    try:
        import vllm  # noqa: F401 (that it is there is the question)
    except ImportError:
        with pytest.raises(
            Exception, match=r"--infer_backend vllm needs the package vllm.*pip install 'swiftlet\[vllm\]'"
        ):
            made_engine(Served(tmp_path), VllmOptions(), uses_async=False)


# ---------------------------------------------------------------------------------------------------- the real package


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("arguments") / "tiny", head_dim=32)


def configured(served, options):
    """vLLM's whole configuration, without starting its engine."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    made = engine_arguments(served, options, known_arguments(AsyncEngineArgs))
    return AsyncEngineArgs(**made).create_engine_config()


def at(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


ELSEWHERE = {
    "vllm_disable_custom_all_reduce": "is always so without GPUs",
    "vllm_mm_processor_cache_gb": "of multimodal models only", "vllm_limit_mm_per_prompt": "of multimodal models only",
    "vllm_enable_expert_parallel": "of mixtures of experts only", "vllm_quantization": "needs a GPU",
    "vllm_pipeline_parallel_size": "needs GPUs",
}  # fmt: skip
"""Options that vLLM's configuration of a small dense model on a CPU does not show."""


@pytest.mark.vllm
@pytest.mark.parametrize("option", [name for name in GIVEN if name not in ELSEWHERE])
def test_vllm_understands_each_option_as_it_is_meant(option, checkpoint, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    _, value, where = GIVEN[option]
    expected = value["num_speculative_tokens"] if isinstance(value, dict) else value
    assert at(configured(Served(checkpoint, "float32"), VllmOptions()), where.split(".")[0]) is None or (
        at(configured(Served(checkpoint, "float32"), VllmOptions()), where) != expected
    )
    assert at(configured(Served(checkpoint, "float32"), VllmOptions(**{option: value})), where) == expected


@pytest.mark.vllm
@pytest.mark.parametrize("option", GIVEN)
def test_vllm_has_each_argument(option):
    from vllm.engine.arg_utils import EngineArgs

    assert GIVEN[option][0] in known_arguments(EngineArgs)


@pytest.mark.vllm
@pytest.mark.parameter("rope_scaling")
def test_a_stretched_rope_reaches_the_engine(checkpoint):
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512, "rope_theta": 10000.0}
    served = Served(
        checkpoint, "float32", 1024, overrides={"rope_parameters": rope, "max_position_embeddings": 1024}
    )  # fmt: skip
    config = configured(served, VllmOptions())
    assert config.model_config.max_model_len == 1024
    assert config.model_config.hf_text_config.rope_parameters["factor"] == 2.0
