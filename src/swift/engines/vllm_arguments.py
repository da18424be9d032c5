"""This file knows what vLLM's engine is called with: our options in its words, checked against the version installed."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from swift.core.errors import EngineError
from swift.core.extras import need
from swift.core.logs import get_logger
from swift.engines.others import Served, check_adapter, check_devices, check_known, first_words
from swift.options.engines import VllmOptions

WHY = "--infer_backend vllm"
NAMES = {
    "vllm_gpu_memory_utilization": "gpu_memory_utilization",
    "vllm_tensor_parallel_size": "tensor_parallel_size",
    "vllm_pipeline_parallel_size": "pipeline_parallel_size",
    "vllm_data_parallel_size": "data_parallel_size",
    "vllm_enable_expert_parallel": "enable_expert_parallel",
    "vllm_max_num_seqs": "max_num_seqs",
    "vllm_max_model_len": "max_model_len",
    "vllm_disable_custom_all_reduce": "disable_custom_all_reduce",
    "vllm_enforce_eager": "enforce_eager",
    "vllm_mm_processor_cache_gb": "mm_processor_cache_gb",
    "vllm_speculative_config": "speculative_config",
    "vllm_limit_mm_per_prompt": "limit_mm_per_prompt",
    "vllm_quantization": "quantization",
    "vllm_enable_prefix_caching": "enable_prefix_caching",
}
"""Option -> argument. Those that are None are left to vLLM."""
SECONDS_TO_END = 30.0
"""How long processes of the engine may take to end by themselves, on a machine that has much to do."""
SIZES = ("vllm_tensor_parallel_size", "vllm_pipeline_parallel_size", "vllm_data_parallel_size")
"""The options whose product is the number of GPUs."""


def engine_arguments(
    served: Served, options: VllmOptions, known: Mapping[str, Any] | None = None, devices: int | None = None
) -> dict[str, Any]:
    """The arguments of `EngineArgs`; `--vllm_engine_kwargs` is merged last.

    known: the arguments that the installed version has, with their defaults; None does not check.
    devices: how many GPUs there are; None does not count them.
    Raises UsageError for arguments that vLLM does not have, EngineError for adapters it cannot read, and for too few GPUs.
    """
    values = options.model_dump()
    arguments: dict[str, Any] = {
        "model": str(served.folder),
        "dtype": served.dtype,
        "max_model_len": served.context_length,
        "max_logprobs": served.max_logprobs,
        "seed": served.seed,
        "hf_overrides": dict(served.overrides) or None,
        "trust_remote_code": served.trusts_code,
        "device_ids": list(served.devices) or None,
        "generation_config": "vllm",  # what a request leaves open is settled by us
        "disable_log_stats": True,
        "structured_outputs_config": {"backend": "guidance"},  # as the engine of transformers
    }
    arguments |= {name: values[option] for option, name in NAMES.items() if values[option] is not None}
    arguments |= _cascade(options, known) | _lora(served, options)
    check_devices({name: values[name] for name in SIZES}, devices)
    more = options.vllm_engine_kwargs or {}
    if known is not None:
        check_known("vllm_engine_kwargs", more, known, "vLLM")
    arguments |= more
    return {name: value for name, value in arguments.items() if value is not None}


def _cascade(options: VllmOptions, known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Older versions have a switch; newer ones have neither cascade attention nor, sooner or later, the switch."""
    if not options.vllm_disable_cascade_attn:
        return {}
    if known is None or known.get("disable_cascade_attn") is False:
        return {"disable_cascade_attn": True}
    get_logger().info(
        "vllm_disable_cascade_attn = true: the installed vLLM has no cascade attention, so it is never used"
    )
    return {}


def _lora(served: Served, options: VllmOptions) -> dict[str, Any]:
    folders = [*served.named.values(), *([] if served.always is None else [served.always])]
    places = max(len(folders), served.places)
    if not places:
        return {}
    for folder in folders:
        check_rank(folder, options.vllm_max_lora_rank)
    return {
        "enable_lora": True, "max_lora_rank": options.vllm_max_lora_rank, "max_loras": places + spare_places(),
    }  # fmt: skip


def spare_places() -> int:
    """How many places of adapters stay empty. Without GPUs, vLLM multiplies requests that have no adapter by that of the
    last place, number -1: it has to hold zeros."""
    return 0 if torch.cuda.is_available() else 1


def check_rank(folder: Path, max_rank: int) -> None:
    """Raises EngineError for an adapter that vLLM does not read, or one of a higher rank."""
    config = check_adapter(folder, "vllm")
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > max_rank:
        raise EngineError(
            f"--vllm_max_lora_rank {max_rank} is less than the rank of {folder}, which is {rank}. Give "
            f"--vllm_max_lora_rank {rank}."
        )


def known_arguments(engine_args: type) -> dict[str, Any]:
    """The arguments of vLLM's `EngineArgs` class, and their defaults; those that are made anew each time have none."""
    return {each.name: None if each.default is MISSING else each.default for each in fields(engine_args)}


def made_engine(
    served: Served, options: VllmOptions, *, uses_async: bool, more: Mapping[str, Any] | None = None
) -> Any:
    """vLLM's LLMEngine, or its AsyncLLM. more: further arguments; those of `--vllm_engine_kwargs` go before them.

    Raises MissingPackage without vLLM, EngineError when it cannot be started.
    """
    need("vllm", WHY)
    arguments: Any = need("vllm.engine.arg_utils", WHY)
    kind = arguments.AsyncEngineArgs if uses_async else arguments.EngineArgs
    devices = torch.cuda.device_count() if torch.cuda.is_available() else None
    made = {**(more or {}), **engine_arguments(served, options, known_arguments(kind), devices)}
    module, name = ("async_llm", "AsyncLLM") if uses_async else ("llm_engine", "LLMEngine")
    engine: Any = getattr(need(f"vllm.v1.engine.{module}", WHY), name)
    try:
        return engine.from_engine_args(kind(**made))
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AssertionError) as error:
        raise EngineError(f"vLLM cannot serve {served.folder}: {first_words(error)}") from error


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that it does not take."""
    return (ValueError, TypeError, need("vllm.exceptions", WHY).VLLMClientError)


def end_async(engine: Any) -> None:
    """End vLLM's AsyncLLM and its processes, for good: it shuts down once more when it is forgotten, and at the end of
    Python half of what that needs is gone."""
    engine.shutdown(timeout=SECONDS_TO_END)
    engine.engine_core = engine.renderer = engine.output_handler = None
    gc.collect()
