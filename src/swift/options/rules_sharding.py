"""This file knows what cannot be done while DeepSpeed or FSDP2 divides weights and optimizer over processes."""

from __future__ import annotations

from swift.options.case import Case, Rules, exclusive
from swift.options.conditions import Words

rule = Rules()
TRAINING = ("pt", "sft", "rlhf")
WAYS = ("deepspeed", "fsdp")
ALONE: dict[str, tuple[str, str]] = {
    "resume_only_model": (
        "the parts of a checkpoint are read with the state of their optimizer. To start from its weights, pass it with "
        "--model or --adapters",
        "切分的 checkpoint 连同优化器状态一起读取；若只需权重，请用 --model 或 --adapters 传入",
    ),
    "lisa_activated_layers": (
        "the optimizer is divided once, and LISA changes what it optimizes",
        "优化器只切分一次，而 LISA 会不断更换被优化的层",
    ),
}
"""Option -> why it does not go together with divided weights."""


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
def divided_states_are_of_use_together_only(case: Case) -> Words | None:
    """What needs the whole state in one process."""
    for way in WAYS:
        for flag, (en, zh) in ALONE.items():
            if case[way] and case[flag]:
                return exclusive(case, way, flag, en, zh)
    return None


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
