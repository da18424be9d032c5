"""This file knows how weights, gradients and optimizer states are divided: the presets of DeepSpeed and FSDP2.

A preset is data; a configuration of the user's own, as JSON text or a file, goes through the same checks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swift.core.errors import UsageError
from swift.core.paths import is_file

Config = dict[str, Any]

AUTO = "auto"
_BUCKET = 2 * 10**8
_ON_CPU = {"device": "cpu", "pin_memory": True}

_COMMON: Config = {
    "fp16": {
        "enabled": AUTO,
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": AUTO},
    "gradient_accumulation_steps": AUTO,
    "gradient_clipping": AUTO,
    "train_batch_size": AUTO,
    "train_micro_batch_size_per_gpu": AUTO,
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
}
_BUCKETS: Config = {
    "allgather_partitions": True,
    "allgather_bucket_size": _BUCKET,
    "reduce_scatter": True,
    "reduce_bucket_size": _BUCKET,
    "overlap_comm": False,
    "contiguous_gradients": True,
}
_ZERO_3: Config = {
    "stage": 3,
    "overlap_comm": False,
    "contiguous_gradients": True,
    "sub_group_size": 10**9,
    "reduce_bucket_size": AUTO,
    "stage3_prefetch_bucket_size": AUTO,
    "stage3_param_persistence_threshold": AUTO,
    "stage3_max_live_parameters": 10**9,
    "stage3_max_reuse_distance": 10**9,
    "stage3_gather_16bit_weights_on_model_save": True,
}
_ZERO: dict[str, Config] = {
    "zero0": {"stage": 0, **_BUCKETS},
    "zero1": {"stage": 1, **_BUCKETS},
    "zero2": {"stage": 2, **_BUCKETS},
    "zero2_offload": {"stage": 2, "offload_optimizer": _ON_CPU, **_BUCKETS},
    "zero3": _ZERO_3,
    "zero3_offload": {"offload_optimizer": _ON_CPU, "offload_param": _ON_CPU, **_ZERO_3},
}
DEEPSPEED: dict[str, Config] = {name: {**_COMMON, "zero_optimization": zero} for name, zero in _ZERO.items()}
"""Preset of `--deepspeed` -> its configuration; "auto" is filled in from the training arguments.

overlap_comm is off: with it, buckets of gradients may be reduced while they are written.
"""
FSDP: dict[str, Config] = {
    "fsdp2": {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_ram_efficient_loading": True,
        "state_dict_type": "SHARDED_STATE_DICT",
        "activation_checkpointing": True,
    },
}
"""Preset of `--fsdp` -> its configuration, in the words of transformers' `fsdp_config`."""


def deepspeed_config(value: Config | str, *, hpz_partition_size: int | None = None, autotp_size: int = 1) -> Config:
    """The configuration of `--deepspeed`: a preset, JSON text or a file; never the preset itself.

    hpz_partition_size: over how many processes ZeRO++ divides its second copy of the weights
    (arXiv 2306.10209, section 3.2). autotp_size: over how many processes each matrix is divided.

    Raises UsageError for what is neither, and for settings that contradict the other options.
    """
    config = _read(value, DEEPSPEED, "--deepspeed")
    zero = config.setdefault("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UsageError(f"--deepspeed {_shown(value)}: zero_optimization must be an object (got {zero!r}).")
    stage = zero.get("stage", 0)
    if hpz_partition_size is not None:
        if stage != 3:
            raise UsageError(
                f"--zero_hpz_partition_size {hpz_partition_size} divides the weights of ZeRO stage 3, and --deepspeed "
                f"{_shown(value)} is stage {stage}. Use --deepspeed zero3, or drop the option."
            )
        zero["zero_hpz_partition_size"] = hpz_partition_size
    if stage == 3 and zero.setdefault("stage3_gather_16bit_weights_on_model_save", True) is not True:
        raise UsageError(
            f"--deepspeed {_shown(value)}: stage3_gather_16bit_weights_on_model_save must be true, because every checkpoint "
            "holds whole weights. Set it, or drop it from the configuration."
        )
    if autotp_size > 1:
        if stage not in (0, 1, 2):
            raise UsageError(
                f"--deepspeed_autotp_size {autotp_size} works with ZeRO stages 0, 1 and 2, and --deepspeed "
                f"{_shown(value)} is stage {stage}. Use --deepspeed zero2."
            )
        # the output layer stays whole: the loss is our own
        config["tensor_parallel"] = {"autotp_size": autotp_size, "vocab_parallel_lm_head": False}
        if config.get("train_batch_size") == AUTO:
            del config["train_batch_size"]  # transformers would count every process as a reader of rows
    return config


def fsdp_config(value: Config | str) -> Config:
    """The configuration of `--fsdp`: a preset, JSON text or a file, in the words of transformers' `fsdp_config`.

    A file may also be that of transformers' training arguments, `{"fsdp": ..., "fsdp_config": {...}}`, and names may
    begin with `fsdp_`. Raises UsageError for what is neither, and for FSDP1, which transformers gives up.
    """
    config = _read(value, FSDP, "--fsdp")
    inner = config.get("fsdp_config")
    if isinstance(inner, dict):
        words = str(config.get("fsdp") or "").split()
        config = {**({"cpu_offload": True} if "offload" in words else {}), **inner}
    config = {name.removeprefix("fsdp_"): setting for name, setting in config.items()}
    if int(config.setdefault("version", 2)) != 2:
        raise UsageError(f"--fsdp {_shown(value)}: version {config['version']} is not supported; set version 2.")
    if config.get("auto_wrap_policy") == "SIZE_BASED_WRAP":
        raise UsageError(
            f"--fsdp {_shown(value)}: FSDP2 divides layers, whatever their size. Drop auto_wrap_policy SIZE_BASED_WRAP."
        )
    return config


def zero_stage(config: Config | None) -> int:
    """The ZeRO stage of a DeepSpeed configuration; 0 without one."""
    return int((config or {}).get("zero_optimization", {}).get("stage", 0))


def offloads(config: Config) -> bool:
    """Whether a DeepSpeed configuration keeps the optimizer elsewhere than on the device."""
    device = (config.get("zero_optimization", {}).get("offload_optimizer") or {}).get("device", "none")
    return device != "none"


def _read(value: Config | str, presets: Mapping[str, Config], option: str) -> Config:
    if isinstance(value, dict):
        return copy.deepcopy(value)
    if value in presets:
        return copy.deepcopy(presets[value])
    if not is_file(value):
        raise UsageError(
            f"{option} {value} is neither a preset ({', '.join(presets)}) nor JSON text nor a file. Choose one of them."
        )
    try:
        config = json.loads(Path(value).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{option} {value} cannot be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise UsageError(f"{option} {value} must hold a JSON object (found {type(config).__name__}).")
    return config


def _shown(value: Config | str) -> str:
    return value if isinstance(value, str) else json.dumps(value)
