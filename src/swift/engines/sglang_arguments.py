"""This file knows what SGLang's engine is called with: our options in its words, checked against the version installed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch

from swift.core.errors import EngineError, UsageError
from swift.core.extras import need
from swift.engines.others import Served, check_adapter, check_devices, check_gpu, check_known, first_words
from swift.engines.structures import WHITESPACE
from swift.options.engines import SglangOptions

WHY = "--infer_backend sglang"
NAMES = {
    "sglang_tp_size": "tp_size",
    "sglang_pp_size": "pp_size",
    "sglang_dp_size": "dp_size",
    "sglang_ep_size": "ep_size",
    "sglang_mem_fraction_static": "mem_fraction_static",
    "sglang_context_length": "context_length",
    "sglang_disable_cuda_graph": "disable_cuda_graph",
    "sglang_quantization": "quantization",
    "sglang_kv_cache_dtype": "kv_cache_dtype",
    "sglang_enable_dp_attention": "enable_dp_attention",
    "sglang_disable_custom_all_reduce": "disable_custom_all_reduce",
    "sglang_speculative_algorithm": "speculative_algorithm",
    "sglang_speculative_num_steps": "speculative_num_steps",
    "sglang_speculative_eagle_topk": "speculative_eagle_topk",
    "sglang_speculative_num_draft_tokens": "speculative_num_draft_tokens",
}
"""Option -> argument. Those that are None are left to SGLang."""
LEAST_PLACES = 8
"""Adapters that a batch may have at least, which is SGLang's own default; the model alone counts as one."""


def engine_arguments(
    served: Served, options: SglangOptions, known: Mapping[str, Any] | None = None, devices: int | None = None
) -> dict[str, Any]:
    """The arguments of `ServerArgs`; `--sglang_engine_kwargs` is merged last.

    known: the arguments that the installed version has, with their defaults; None does not check.
    devices: how many GPUs there are; None does not count them.
    Raises UsageError for arguments that SGLang does not have, EngineError for adapters it cannot read, and for too few GPUs.
    """
    values = options.model_dump()
    arguments: dict[str, Any] = {
        "model_path": str(served.folder),
        "dtype": served.dtype,
        "context_length": served.context_length,
        "random_seed": served.seed,
        "json_model_override_args": json.dumps(dict(served.overrides)) if served.overrides else None,
        "trust_remote_code": served.trusts_code,
        "base_gpu_id": served.devices[0] if served.devices else None,
        "incremental_streaming_output": True,  # pieces, not the whole reply again with each token
        "grammar_backend": "llguidance",  # as the engine of transformers
        "constrained_json_whitespace_pattern": WHITESPACE,
    }
    arguments |= {name: values[option] for option, name in NAMES.items() if values[option] is not None}
    arguments |= _experts(options, known) | _lora(served)
    check_devices(_sizes(options), devices)
    more = options.sglang_engine_kwargs or {}
    if known is not None:
        check_known("sglang_engine_kwargs", more, known, "SGLang")
    arguments |= more
    return {name: value for name, value in arguments.items() if value is not None}


def _sizes(options: SglangOptions) -> dict[str, int]:
    """The options whose product is the number of GPUs. Attention that is data parallel shares those of tensor parallelism."""
    sizes = {"sglang_tp_size": options.sglang_tp_size, "sglang_pp_size": options.sglang_pp_size}
    return sizes if options.sglang_enable_dp_attention else {**sizes, "sglang_dp_size": options.sglang_dp_size}


def _experts(options: SglangOptions, known: Mapping[str, Any] | None) -> dict[str, Any]:
    if not options.sglang_enable_ep_moe:
        return {}
    if known is not None and "enable_ep_moe" not in known:
        raise UsageError(
            "--sglang_enable_ep_moe true: the installed SGLang has no such switch any more; --sglang_ep_size spreads the "
            "experts by itself. Drop it."
        )
    return {"enable_ep_moe": True}


def _lora(served: Served) -> dict[str, Any]:
    adapters = served.all_adapters
    if not adapters:
        return {}
    for folder in adapters.values():
        check_adapter(folder, "sglang")
    paths = {name: str(folder) for name, folder in adapters.items()}
    return {
        "enable_lora": True, "lora_paths": paths, "max_loras_per_batch": max(LEAST_PLACES, len(paths) + 1),
    }  # fmt: skip


def known_arguments(server_args: type) -> dict[str, Any]:
    """The arguments of SGLang's `ServerArgs` class, and their defaults; those that must be given have none."""
    parameters = inspect.signature(server_args).parameters.values()
    return {each.name: None if each.default is inspect.Parameter.empty else each.default for each in parameters}


def made_engine(served: Served, options: SglangOptions) -> Any:
    """SGLang's Engine, with all its processes.

    Raises MissingPackage without SGLang, EngineError without a GPU and when it cannot be started.
    """
    need("sglang", WHY)
    check_gpu("sglang")
    known = known_arguments(need("sglang.srt.server_args", WHY).ServerArgs)
    devices = torch.cuda.device_count() if torch.cuda.is_available() else None
    arguments = engine_arguments(served, options, known, devices)
    engine: Any = need("sglang.srt.entrypoints.engine", WHY).Engine
    try:
        return engine(**arguments)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AssertionError, OSError) as error:
        raise EngineError(f"SGLang cannot serve {served.folder}: {first_words(error)}") from error
