"""This file knows the rules between options of every command and of training."""

from __future__ import annotations

from swift.catalog.agents import AGENT_TEMPLATES, CHECKPOINTS_ONLY
from swift.catalog.components import LOSSES
from swift.catalog.layouts import LAYOUTS
from swift.core import environment
from swift.options.case import Case, Rules, exclusive
from swift.options.conditions import TRAINING, Words
from swift.options.derivations import training_processes
from swift.options.device_groups import TRAINS, DeviceGroups, read_groups
from swift.options.wording import guessed

rule = Rules()


# ------------------------------------------------------------------------------------------------------ every command


@rule()
def a_model_is_named(case: Case) -> Words | None:
    """Nothing runs without a model, but what talks to a served one or starts from Megatron's form."""
    elsewhere = ("eval_url", "base_url", "mcore_model", "mcore_adapters")
    named = ("model", "adapters", "resume_from_checkpoint", *elsewhere)
    engineless = case["sampler_engine"] in {"no", "client"}
    if case.command == "web-ui" or engineless or any(case[name] for name in named):
        return None
    return Words(
        "--model is missing: give the folder of a model, or --adapters with an adapter that knows its model.",
        "缺少 --model：请给出模型目录，或用 --adapters 给出记录了底座模型的 adapter。",
    )


@rule()
def a_template_is_known(case: Case) -> Words | None:
    """A layout of ours, unless plugins may bring others."""
    name = case["template"]
    if name is None or name in LAYOUTS or case["external_plugins"]:
        return None
    guess = guessed(name, LAYOUTS)
    known = ", ".join(sorted(LAYOUTS))
    return Words(
        f"--template {name}: there is no such template.{guess.en} There are: {known}.",
        f"--template {name}：没有这个模板。{guess.zh}可选：{known}。",
    )


@rule()
def an_agent_template_is_known(case: Case) -> Words | None:
    """A format of tools of ours, unless plugins may bring others."""
    name = case["agent_template"]
    if name is None or name in AGENT_TEMPLATES or case["external_plugins"]:
        return None
    known = ", ".join(sorted(AGENT_TEMPLATES))
    if name in CHECKPOINTS_ONLY:
        return Words(
            f"--agent_template {name}: only the chat template of its checkpoints has the wording of this format. Use "
            f"such a checkpoint without --template and --agent_template, or one of: {known}.",
            f"--agent_template {name}：该格式的措辞只存在于其 checkpoint 自带的对话模板中。请使用这样的 checkpoint "
            f"且不设置 --template 与 --agent_template，或选择：{known}。",
        )
    guess = guessed(name, AGENT_TEMPLATES)
    return Words(
        f"--agent_template {name}: there is no such agent template.{guess.en} There are: {known}.",
        f"--agent_template {name}：没有这个 Agent 模板。{guess.zh}可选：{known}。",
    )


@rule()
def split_is_for_pre_training(case: Case) -> Words | None:
    """Only plain text may be cut into several rows."""
    if case["truncation_strategy"] != "split" or case.command in {"pt", "web-ui"}:
        return exclusive(
            case, "truncation_strategy", "cached_dataset", "cached rows cannot be split", "缓存数据集无法再切分"
        ) if case["truncation_strategy"] == "split" else None  # fmt: skip
    return Words(
        f"--truncation_strategy split works with swift pt only (this is swift {case.command}): a conversation that is "
        "cut loses its prompt. Use delete, left or right.",
        f"--truncation_strategy split 仅支持 swift pt（当前为 swift {case.command}）：对话被切开后会丢失提示。"
        "请使用 delete、left 或 right。",
    )


@rule()
def a_named_rope_needs_a_length(case: Case) -> Words | None:
    """The factor to stretch by is computed from the wanted length."""
    if not isinstance(case["rope_scaling"], str) or case["max_model_len"]:
        return None
    return Words(
        f"--rope_scaling {case['rope_scaling']} needs --max_model_len, from which its factor follows. Give it, or write "
        '--rope_scaling as JSON with "factor".',
        f"--rope_scaling {case['rope_scaling']} 需要同时设置 --max_model_len 以计算 factor。请补上，"
        '或把 --rope_scaling 写成含 "factor" 的 JSON。',
    )


@rule()
def ray_needs_its_groups(case: Case) -> Words | None:
    """Nothing is placed by itself on a cluster."""
    if not case["use_ray"] or "use_ray" not in case.asked:
        return None
    if case["device_groups"]:
        return _groups_that_do_nothing(read_groups(case["device_groups"]))
    return Words(
        "--use_ray needs --device_groups, which says what runs where.", "--use_ray 需要 --device_groups 指定设备分组。"
    )


def _groups_that_do_nothing(groups: DeviceGroups | Words) -> Words | None:
    if isinstance(groups, Words):
        return groups
    idle = [group.name for group in groups.groups if group.workers != (TRAINS,)]
    if groups.groups and not idle:
        return None
    shown = ", ".join(idle)
    return Words(
        f"--device_groups: training is done by one group, with workers: [{TRAINS}]"
        + (f"; {shown} would do nothing, or something else." if idle else "; there is no group."),
        f"--device_groups：训练由一个 workers 为 [{TRAINS}] 的组完成"
        + (f"；{shown} 不会被使用。" if idle else "；未定义任何组。"),
    )


@rule()
def one_launcher_starts_the_processes(case: Case) -> Words | None:
    """torchrun and Ray would each start all of them."""
    if not case["use_ray"] or environment.TORCHELASTIC_RUN_ID.is_set():
        return None
    given = [variable.name for variable in (environment.NPROC_PER_NODE, environment.NNODES) if variable.is_set()]
    if not given:
        return None
    names = ", ".join(given)
    return Words(
        f"--use_ray starts as many processes as --device_groups has ranks, and {names} asks torchrun for others. Unset "
        f"{names}.",
        f"--use_ray 按 --device_groups 的 ranks 启动进程，而 {names} 会让 torchrun 另外启动。请取消设置 {names}。",
    )


# ----------------------------------------------------------------------------------------------------------- training


@rule(*TRAINING)
def one_way_to_warm_up(case: Case) -> Words | None:
    """A share and a number of steps would contradict each other."""
    if not case.asks("warmup_ratio") or not case.extra.get("warmup_steps"):
        return None
    return Words(
        "--warmup_ratio and --warmup_steps cannot be used together: both say how long the learning rate rises. Remove "
        "one of them.",
        "--warmup_ratio 与 --warmup_steps 不能同时使用：两者都决定 warmup 长度。请去掉其中一个。",
    )


@rule(*TRAINING)
def shards_are_written_while_training_waits(case: Case) -> Words | None:
    """DeepSpeed and FSDP write their shards together, all processes at the same time."""
    for name in ("deepspeed", "fsdp"):
        if case[name] and case["use_flash_ckpt"]:
            return exclusive(
                case, name, "use_flash_ckpt", "shards are written by all processes together", "分片由所有进程共同写出"
            )
    return None


@rule(*TRAINING)
def liger_is_for_text_on_one_device(case: Case) -> Words | None:
    """Its kernels know one device and one head."""
    if not case["use_liger_kernel"] or (not case["device_map"] and case["task_type"] == "causal_lm"):
        return None
    why = "--device_map" if case["device_map"] else f"--task_type {case['task_type']}"
    return Words(
        f"--use_liger_kernel cannot be used together with {why}. Remove one of them.",
        f"--use_liger_kernel 不能与 {why} 同时使用。请去掉其中一个。",
    )


@rule("pt", "sft")
def a_loss_is_known(case: Case) -> Words | None:
    """A loss of ours, unless plugins may bring others."""
    name = case["loss_type"]
    if name is None or name in LOSSES or case["external_plugins"] or case["task_type"] != "causal_lm":
        return None
    known = ", ".join(sorted(LOSSES))
    return Words(
        f"--loss_type {name}: there is no such loss of language models. There are: {known}, and those that "
        "--external_plugins adds.",
        f"--loss_type {name}：没有这个语言模型损失。可选：{known}，以及 --external_plugins 注册的损失。",
    )


@rule("pt", "sft")
def a_loss_of_ones_own_sees_all_logits(case: Case) -> Words | None:
    """What it does with them is not known here, so nothing can be left out or changed for it."""
    if case["loss_type"] is None or case["task_type"] != "causal_lm":
        return None
    smooths = float(case.extra.get("label_smoothing_factor", 0) or 0) > 0
    other = "label_smoothing_factor" if smooths else "use_logits_to_keep" if case["use_logits_to_keep"] else None
    if other is None:
        return None
    return Words(
        f"--{other} cannot be used together with --loss_type, which is given the logits of all tokens and does with "
        "them what it wants. Remove one of them.",
        f"--{other} 不能与 --loss_type 同时使用：自定义损失会得到全部 token 的 logits 并自行处理。请去掉其中一个。",
    )


@rule(*TRAINING)
def processes_divide_into_rows(case: Case) -> Words | None:
    """Every row is shared by as many processes as any other."""
    name = "deepspeed_autotp_size" if (case["deepspeed_autotp_size"] or 1) > 1 else "sequence_parallel_size"
    size, count = case[name] or 1, training_processes(case.values)
    if count % size == 0:
        return None
    return Words(
        f"--{name} {size} needs a multiple of {size} processes (there would be {count}). Set "
        f"NPROC_PER_NODE, e.g. NPROC_PER_NODE={size} swift {case.command} ...",
        f"--{name} {size} 需要进程数为 {size} 的倍数（当前为 {count}）。请设置 NPROC_PER_NODE，"
        f"例如 NPROC_PER_NODE={size} swift {case.command} ...",
    )


@rule(*TRAINING)
def a_shared_row_is_flat(case: Case) -> Words | None:
    """What looks at a whole row, or at one side of it, does not work on its parts."""
    if (case["sequence_parallel_size"] or 1) < 2:
        return None
    writes = case["task_type"] in {None, "causal_lm"}
    refused = {
        "--padding_side left": case["padding_side"] == "left",
        "--predict_with_generate true": bool(case["predict_with_generate"]),
        f"--eval_metric {case['eval_metric']}": writes and case.asks("eval_metric"),
        "--eval_use_evalscope true": bool(case["eval_use_evalscope"]),
        f"--tuner_type {case['tuner_type']}": case["tuner_type"] in {"longlora", "reft"},
        "--init_weights lora-ga": case["init_weights"] == "lora-ga",
        "--optimizer muonclip": case["optimizer"] == "muonclip",
        "--tuner_backend unsloth": case["tuner_backend"] == "unsloth",
        "swift rlhf": case.command == "rlhf",
    }
    names = ", ".join(name for name, is_refused in refused.items() if is_refused)
    if not names:
        return None
    return Words(
        f"--sequence_parallel_size {case['sequence_parallel_size']} does not work with {names}: rows are laid end to end "
        "and cut into parts. Remove one of them.",
        f"--sequence_parallel_size {case['sequence_parallel_size']} 不支持 {names}：样本首尾相接后会被切分。请去掉其中一个。",
    )
