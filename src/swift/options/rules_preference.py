"""This file knows the rules between options of learning from preferences, rewards and teachers."""

from __future__ import annotations

from swift.options.case import Case, Rules, exclusive
from swift.options.conditions import Words
from swift.options.defaults import is_validated
from swift.options.derivations import processes

rule = Rules()

LOSSES = {
    "dpo": (
        "sigmoid", "robust", "exo_pair", "hinge", "ipo", "bco_pair", "sppo_hard", "nca_pair", "aot", "aot_pair",
        "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
    ),
    "cpo": ("sigmoid", "hinge", "ipo", "simpo"),
    "simpo": ("simpo",),
    "kto": ("kto", "apo_zero_unpaired"),
    "grpo": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"),
}  # fmt: skip
"""Method -> the forms of its loss."""


@rule("rlhf")
def the_loss_belongs_to_the_method(case: Case) -> Words | None:
    """Each method has its own forms of loss."""
    known = LOSSES.get(case["rlhf_type"], ())
    wrong = [name for name in case["loss_type"] or () if name not in known]
    if not known or not wrong:
        return None
    return Words(
        f"--loss_type {' '.join(wrong)} is no loss of --rlhf_type {case['rlhf_type']}; there are: {', '.join(known)}.",
        f"--loss_type {' '.join(wrong)} 不是 --rlhf_type {case['rlhf_type']} 的损失；可选：{', '.join(known)}。",
    )


@rule("rlhf")
def only_dpo_mixes_losses(case: Case) -> Words | None:
    """Several losses are weighted by --loss_weights, in DPO."""
    losses, weights = case["loss_type"] or [], case["loss_weights"]
    if len(losses) > 1 and case["rlhf_type"] != "dpo":
        return Words(
            f"--loss_type takes several losses with --rlhf_type dpo only (got {len(losses)} for {case['rlhf_type']}).",
            f"--loss_type 仅在 --rlhf_type dpo 时可取多个值（{case['rlhf_type']} 得到 {len(losses)} 个）。",
        )
    if weights is not None and len(weights) != len(losses):
        return Words(
            f"--loss_weights needs one weight per loss (got {len(weights)} for {len(losses)} in --loss_type).",
            f"--loss_weights 的个数应与 --loss_type 一致（得到 {len(weights)} 个，损失有 {len(losses)} 个）。",
        )
    return None


@rule("rlhf")
def one_reference_adapter(case: Case) -> Words | None:
    """The reference is one policy."""
    count = len(case["ref_adapters"] or ())
    if count < 2:
        return None
    return Words(
        f"--ref_adapters takes one adapter (got {count}).", f"--ref_adapters 只接受一个 adapter（得到 {count} 个）。"
    )


@rule("rlhf")
def teachers_and_judges_are_named(case: Case) -> Words | None:
    """GKD needs a teacher, PPO a reward model, GRPO some reward."""
    method = case["rlhf_type"]
    if method == "gkd" and not case["teacher_model"]:
        return Words("--rlhf_type gkd needs --teacher_model.", "--rlhf_type gkd 需要 --teacher_model。")
    if method == "ppo" and not case["reward_model"]:
        return Words("--rlhf_type ppo needs --reward_model.", "--rlhf_type ppo 需要 --reward_model。")
    rewarded = case["reward_funcs"] or case["reward_model"] or case["multi_turn_scheduler"]
    if method == "grpo" and not rewarded:
        return Words(
            "--rlhf_type grpo needs --reward_funcs or --reward_model.",
            "--rlhf_type grpo 需要 --reward_funcs 或 --reward_model。",
        )
    return None


@rule("rlhf")
def one_weight_per_reward(case: Case) -> Words | None:
    """The reward model, if there is one, comes last."""
    weights = case["reward_weights"]
    count = len(case["reward_funcs"] or ()) + bool(case["reward_model"])
    if weights is None or len(weights) == count:
        return None
    return Words(
        f"--reward_weights needs one weight per reward function and reward model (got {len(weights)} for {count}).",
        f"--reward_weights 的个数应等于奖励函数与奖励模型的总数（得到 {len(weights)} 个，应为 {count} 个）。",
    )


@rule("rlhf")
def the_soft_limit_lies_below_the_hard_one(case: Case) -> Words | None:
    """The penalty of soft_overlong grows over the last soft_cache_length tokens."""
    if "soft_overlong" not in (case["reward_funcs"] or ()):
        return None
    cache, limit = case["soft_cache_length"], case["soft_max_length"]
    if cache and cache < limit:
        return None
    return Words(
        f"--reward_funcs soft_overlong needs --soft_cache_length below --soft_max_length {limit} (got {cache}).",
        f"--reward_funcs soft_overlong 需要小于 --soft_max_length {limit} 的 --soft_cache_length（得到 {cache}）。",
    )


@rule("rlhf")
def generations_are_counted_once(case: Case) -> Words | None:
    """The batch of a generation follows from its steps, and the other way round."""
    return exclusive(
        case, "steps_per_generation", "generation_batch_size", "one follows from the other", "两者可以互相推出"
    )


@rule("rlhf")
def groups_fill_the_batch(case: Case) -> Words | None:
    """A generation holds whole groups and whole passes of every process; a group has at least two members."""
    if case["rlhf_type"] != "grpo":
        return None
    size, group = case["generation_batch_size"], case["num_generations"]
    passes = case["per_device_train_batch_size"] * processes()
    if group < 2:
        return Words(
            f"--num_generations must be at least 2 (got {group}): an advantage is relative to others of its group.",
            f"--num_generations 至少为 2（得到 {group}）：优势是相对于同组其他回答的。",
        )
    if size % passes == 0 and size % group == 0:
        return None
    return Words(
        f"--generation_batch_size {size} must be a multiple of {passes} (per_device_train_batch_size times processes) "
        f"and of --num_generations {group}. Raise --per_device_train_batch_size or --steps_per_generation.",
        f"--generation_batch_size {size} 必须是 {passes}（per_device_train_batch_size × 进程数）和 --num_generations "
        f"{group} 的倍数。请增大 --per_device_train_batch_size 或 --steps_per_generation。",
    )


@rule("rlhf")
def groups_fill_the_evaluation_batch(case: Case) -> Words | None:
    """Evaluation holds whole groups too."""
    if case["rlhf_type"] != "grpo" or not is_validated(case.values) or case["eval_strategy"] == "no":
        return None
    size, group = case["per_device_eval_batch_size"] * processes(), case["num_generations_eval"]
    if size % group == 0:
        return None
    return Words(
        f"--per_device_eval_batch_size times processes ({size}) must be a multiple of --num_generations_eval {group}.",
        f"--per_device_eval_batch_size × 进程数（{size}）必须是 --num_generations_eval {group} 的倍数。",
    )


@rule("rlhf")
def methods_that_generate_need_whole_rows(case: Case) -> Words | None:
    """Cached rows hold no prompt apart from its reply."""
    if not case["cached_dataset"] or case["rlhf_type"] not in {"ppo", "grpo", "gkd"}:
        return None
    return Words(
        f"--cached_dataset cannot be used with --rlhf_type {case['rlhf_type']}. Use --dataset.",
        f"--cached_dataset 不能用于 --rlhf_type {case['rlhf_type']}。请使用 --dataset。",
    )


@rule("rlhf")
def rows_end_to_end_fit_the_method(case: Case) -> Words | None:
    """Which methods know rows laid end to end, packed, or shared between processes."""
    able = {
        "padding_free": ("dpo", "kto", "grpo", "gkd"),
        "packing": ("dpo", "kto", "gkd"),
        "sequence_parallel_size": ("dpo", "grpo"),
    }
    for flag, methods in able.items():
        used = case[flag] > 1 if flag == "sequence_parallel_size" else case[flag]
        if used and case["rlhf_type"] not in methods:
            return Words(
                f"--{flag} works with --rlhf_type {', '.join(methods)} (got {case['rlhf_type']}).",
                f"--{flag} 仅支持 --rlhf_type {'、'.join(methods)}（得到 {case['rlhf_type']}）。",
            )
    return None


@rule("rlhf")
def prompts_end_where_they_end(case: Case) -> Words | None:
    """A prompt that is cut at the right has lost its question."""
    if case["rlhf_type"] not in {"grpo", "gkd"} or case["truncation_strategy"] in {"delete", "left"}:
        return None
    return Words(
        f"--truncation_strategy must be delete or left with --rlhf_type {case['rlhf_type']} (got "
        f"{case['truncation_strategy']}): a prompt that is cut at the right has lost its question.",
        f"--rlhf_type {case['rlhf_type']} 的 --truncation_strategy 须为 delete 或 left（得到 "
        f"{case['truncation_strategy']}）：从右侧裁剪会丢失问题。",
    )


@rule("rlhf")
def turns_wait_for_each_other(case: Case) -> Words | None:
    """Asynchronous generation knows single turns."""
    return exclusive(
        case, "async_generate", "multi_turn_scheduler", "asynchronous generation knows single turns",
        "异步生成不支持多轮",
    )  # fmt: skip


@rule("rlhf")
def gdpo_keeps_the_reward_pure(case: Case) -> Words | None:
    """Rewards that are scaled one by one leave no place for the divergence."""
    if case["scale_rewards"] != "gdpo" or not case["kl_in_reward"]:
        return None
    return Words(
        "--scale_rewards gdpo cannot be used together with --kl_in_reward true: each reward is scaled by itself. "
        "Remove one of them.",
        "--scale_rewards gdpo 不能与 --kl_in_reward true 同时使用：每个奖励单独缩放。请去掉其中一个。",
    )


@rule("rlhf")
def kto_compares_rows(case: Case) -> Words | None:
    """The baseline of KTO is the reply of another row of the batch."""
    if case["rlhf_type"] != "kto":
        return None
    rows = case["per_device_train_batch_size"] * case["gradient_accumulation_steps"] * processes()
    if rows > 1:
        return None
    return Words(
        "--rlhf_type kto needs a total batch of at least 2 rows: its baseline pairs a prompt with another row's reply.",
        "--rlhf_type kto 的总 batch 至少为 2：其基线把提示与另一行的回答配对。",
    )


@rule("rlhf")
def vllm_gets_whole_weights(case: Case) -> Words | None:
    """Sharded weights that are not gathered cannot be sent."""
    if not case["use_vllm"] or not case["deepspeed"] or case["ds3_gather_for_generation"]:
        return None
    return Words(
        "--use_vllm needs --ds3_gather_for_generation true: weights are gathered before they are sent.",
        "--use_vllm 需要 --ds3_gather_for_generation true：权重需先汇聚再发送。",
    )
