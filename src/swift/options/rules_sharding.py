"""This file knows what cannot be done while DeepSpeed or FSDP2 divides weights and optimizer over processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swift.core.paths import is_file
from swift.options.case import Case, Rules, exclusive
from swift.options.conditions import TRAINING, Words

rule = Rules()
WAYS = ("deepspeed", "fsdp")
DIVIDED_TUNERS = ("full", "lora")
"""The tuner types that can be trained while no process has a whole weight."""
PLAIN_INITS = (None, "true", "false", "gaussian")
"""The beginnings of LoRA that look at no weight of the model."""
WHOLE_OPTIMS = ("galore_", "apollo_", "lomo", "adalomo", "adafactor")
"""How the names of `--optim` begin that look at whole matrices, or step in the backward pass."""
BITSANDBYTES = (
    "adamw_8bit", "adamw_bnb_8bit", "paged_", "lion_", "ademamix", "rmsprop_bnb", "adagrad_bnb", "sgd_bnb",
)  # fmt: skip
"""How the names of `--optim` begin that bitsandbytes brings, whose kernels know no tensors of FSDP."""


@rule(*TRAINING)
def weights_are_sharded_one_way(case: Case) -> Words | None:
    """DeepSpeed and FSDP do the same thing."""
    return exclusive(case, "deepspeed", "fsdp", "both shard the weights", "两者都会切分权重")


@rule(*TRAINING)
def sharding_places_the_weights(case: Case) -> Words | None:
    """A device map would place them a second time."""
    for name in WAYS:
        if case[name] and case["device_map"]:
            return exclusive(case, name, "device_map", "both place the weights", "两者都会决定权重的放置")
    return None


@rule(*TRAINING)
def a_divided_optimizer_is_of_one_kind(case: Case) -> Words | None:
    """What looks at whole gradients, or at the optimizer of one process, does not find them."""
    way = _way(case)
    refused = {
        "--tuner_type adalora": case["tuner_type"] == "adalora",
        "--tuner_backend unsloth": case["tuner_backend"] == "unsloth",
        f"--optim {case['optim']}": str(case["optim"]).startswith(
            (*WHOLE_OPTIMS, *(BITSANDBYTES if case["fsdp"] else ()))
        ),
        "--save_on_each_node true": bool(case["save_on_each_node"]),
    }
    shown = ", ".join(name for name, is_set in refused.items() if is_set)
    if way is None or not shown:
        return None
    return Words(
        f"{shown} cannot be used together with {way}, which divides the optimizer and its checkpoints over all processes. "
        f"Remove one of them.",
        f"{shown} 不能与 {way} 同时使用：后者将优化器及其 checkpoint 切分到所有进程。请去掉其中一个。",
    )


@rule(*TRAINING)
def divided_weights_are_whole_nowhere(case: Case) -> Words | None:
    """What is computed from whole weights before the training, or beside it."""
    way = _way(case)
    if way is None or not _divides_weights(case):
        return None
    refused = {
        f"--tuner_type {case['tuner_type']}": case["tuner_type"] not in DIVIDED_TUNERS,
        f"--init_weights {case['init_weights']}": case["init_weights"] not in PLAIN_INITS,
        "--target_parameters": bool(case["target_parameters"]),
        "--new_special_tokens": bool(case["deepspeed"] and case["new_special_tokens"]) and case["tuner_type"] != "full",
        "--predict_with_generate true": bool(case["predict_with_generate"]),
        "--eval_use_evalscope true": bool(case["eval_use_evalscope"]),
        f"--quant_method {case['quant_method']}": bool(case["quant_method"]),
    }
    shown = ", ".join(name for name, is_set in refused.items() if is_set)
    if not shown:
        return None
    return Words(
        f"{shown} cannot be used together with {way}, which leaves every process a part of each weight. Use --deepspeed "
        "zero2, which divides the optimizer alone.",
        f"{shown} 不能与 {way} 同时使用：后者使每个进程只持有每个权重的一部分。请改用只切分优化器的 --deepspeed zero2。",
    )


@rule(*TRAINING)
def gradients_are_reduced_by_what_divides_them(case: Case) -> Words | None:
    """The settings of DDP are for DDP."""
    way = _way(case)
    flags = ("ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_bucket_cap_mb")
    asked = [f"--{name}" for name in flags if name in case.asked or name in case.extra]
    if way is None or not asked:
        return None
    shown = ", ".join(asked)
    return Words(
        f"{shown} has no effect with {way}, which takes the place of DDP. Remove it.",
        f"{shown} 在 {way} 下不起作用：后者取代了 DDP。请去掉该参数。",
    )


@rule(*TRAINING)
def parts_are_saved_to_be_continued(case: Case) -> Words | None:
    """The preset saves parts, which are of use for nothing else."""
    if case["fsdp"] != "fsdp2" or not case["save_only_model"]:
        return None
    return Words(
        "--fsdp fsdp2 and --save_only_model cannot be used together: the preset saves the state in parts "
        "(SHARDED_STATE_DICT), to be continued from. Remove --save_only_model; checkpoints have the whole weights too.",
        "--fsdp fsdp2 与 --save_only_model 不能同时使用：该预设按分片保存状态（SHARDED_STATE_DICT），用于继续训练。"
        "请去掉 --save_only_model；checkpoint 中也包含完整权重。",
    )


@rule(*TRAINING)
def the_best_parts_are_there(case: Case) -> Words | None:
    """Divided weights are read back from what is saved for going on."""
    best = _is_true(case, "load_best_model_at_end")
    way = _way(case)
    if way is None or not best or not case["save_only_model"]:
        return None
    return Words(
        f"--load_best_model_at_end needs what --save_only_model leaves out, with {way}. Remove one of them.",
        f"使用 {way} 时，--load_best_model_at_end 需要 --save_only_model 所省略的内容。请去掉其中一个。",
    )


@rule(*TRAINING)
def deepspeed_names_no_other_optimizer(case: Case) -> Words | None:
    """A configuration of DeepSpeed may bring an optimizer and a schedule, in place of ours."""
    config = _config(case["deepspeed"])
    brought = {
        "optimizer": [
            name for name in ("optim", "optimizer", "lorap_lr_ratio", "use_galore")
            if name in case.asked and case[name]
        ],
        "scheduler": [name for name in ("lr_scheduler_type", "lr_scheduler_kwargs") if name in case.asked],
    }  # fmt: skip
    found = [(part, name) for part, names in brought.items() if part in config for name in names]
    if not found:
        return None
    part, name = found[0]
    return Words(
        f"--{name} has no effect: the configuration of --deepspeed brings its own {part}. Remove the option, or "
        f'"{part}" from the configuration.',
        f'--{name} 不起作用：--deepspeed 的配置自带 {part}。请去掉该参数，或从配置中删除 "{part}"。',
    )


@rule(*TRAINING)
def tensor_parallelism_is_for_full_training(case: Case) -> Words | None:
    """DeepSpeed's automatic tensor parallelism knows whole weights, not ZeRO-3's shards."""
    if (case["deepspeed_autotp_size"] or 1) == 1:
        return None
    if case["tuner_type"] == "full" and case["deepspeed"] in {"zero0", "zero1", "zero2"}:
        return None
    return Words(
        "--deepspeed_autotp_size needs --tuner_type full and --deepspeed zero0, zero1 or zero2 "
        f"(got {case['tuner_type']} and {case['deepspeed']}).",
        "--deepspeed_autotp_size 需要 --tuner_type full 且 --deepspeed 为 zero0、zero1 或 zero2"
        f"（得到 {case['tuner_type']} 和 {case['deepspeed']}）。",
    )


@rule(*TRAINING)
def parts_of_matrices_are_of_one_kind(case: Case) -> Words | None:
    """What calls the model in another way on each process, or looks at its matrices, does not find them whole."""
    size = case["deepspeed_autotp_size"] or 1
    if size == 1:
        return None
    refused = {
        f"--sequence_parallel_size {case['sequence_parallel_size']}": (case["sequence_parallel_size"] or 1) > 1,
        f"--task_type {case['task_type']}": case["task_type"] not in {None, "causal_lm"},
        f"--loss_type {case['loss_type']}": bool(case["loss_type"]),
        f"--optimizer {case['optimizer']}": bool(case["optimizer"]),
        f"--router_aux_loss_coef {case['router_aux_loss_coef']}": bool(case["router_aux_loss_coef"]),
        "--predict_with_generate true": bool(case["predict_with_generate"]),
        "--eval_use_evalscope true": bool(case["eval_use_evalscope"]),
        f"--eval_metric {case['eval_metric']}": case.asks("eval_metric"),
        "--use_liger_kernel true": bool(case["use_liger_kernel"]),
        f"--quant_method {case['quant_method']}": bool(case["quant_method"]),
        "--load_best_model_at_end true": _is_true(case, "load_best_model_at_end"),
        "swift rlhf": case.command == "rlhf",
    }
    names = ", ".join(name for name, is_refused in refused.items() if is_refused)
    if not names:
        return None
    return Words(
        f"--deepspeed_autotp_size {size} does not work with {names}: each process has a part of every matrix. Remove one of "
        "them.",
        f"--deepspeed_autotp_size {size} 不支持 {names}：每个进程只持有每个矩阵的一部分。请去掉其中一个。",
    )


def _way(case: Case) -> str | None:
    """What divides, as the user may have written it."""
    for name in WAYS:
        if case[name]:
            return f"--{name} {case[name]}" if isinstance(case[name], str) else f"--{name}"
    return None


def _is_true(case: Case, name: str) -> bool:
    """Whether an argument that only transformers knows is true."""
    return str(case.extra.get(name, False)).lower() == "true"


def _divides_weights(case: Case) -> bool:
    """Whether weights are divided too, and not the optimizer alone: FSDP, and ZeRO from stage 3."""
    value = case["deepspeed"]
    if case["fsdp"] or (isinstance(value, str) and value.startswith("zero3")):
        return True
    zero = _config(value).get("zero_optimization")
    return isinstance(zero, Mapping) and zero.get("stage") == 3


def _config(value: Any) -> Mapping[str, Any]:
    """A configuration of the user's own; {} for a preset, and for a file that cannot be read, which is told later."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str) or not is_file(value):
        return {}
    try:
        read = json.loads(Path(value).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, Mapping) else {}
