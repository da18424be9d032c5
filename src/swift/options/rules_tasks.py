"""This file knows the rules between options of tasks other than writing: classes, embeddings, rankings."""

from __future__ import annotations

from swift.catalog.tasks import EVAL_METRICS, TASK_LOSSES, TASK_METRICS
from swift.options.case import Case, Rules
from swift.options.conditions import Words

rule = Rules()
SUPERVISED = ("pt", "sft")
KNOWING = ("pt", "sft", "infer", "deploy", "export", "merge-lora")
"""The commands that know tasks other than writing."""
OF_LEARNT_TOKENS = (
    "loss_scale", "acc_strategy", "use_logits_to_keep", "enable_dft_loss", "enable_channel_loss", "predict_with_generate",
)  # fmt: skip
OF_GENERATION = (
    "max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "stop_words", "stream",
    "top_logprobs",
)  # fmt: skip


@rule(*SUPERVISED)
def a_task_has_its_losses(case: Case) -> Words | None:
    """Losses of one task mean nothing to another."""
    task, name = case["task_type"], case["loss_type"]
    if task == "causal_lm":
        owner = next((task for task, names in TASK_LOSSES.items() if name in names), None)
        if owner is None:
            return None
        return Words(
            f"--loss_type {name} is a loss of --task_type {owner}, and the task here is causal_lm. Change one of them.",
            f"--loss_type {name} 是 --task_type {owner} 的损失，而当前任务为 causal_lm。请修改其中一个。",
        )
    if name is None or name in TASK_LOSSES[task]:
        return None
    if not TASK_LOSSES[task]:
        return Words(
            f"--loss_type {name} has no effect with --task_type {task}, whose loss follows from --problem_type. Drop it.",
            f"--loss_type {name} 对 --task_type {task} 不起作用，其损失由 --problem_type 决定。请去掉它。",
        )
    known = ", ".join(TASK_LOSSES[task])
    return Words(
        f"--loss_type {name} is no loss of --task_type {task}. There are: {known}.",
        f"--loss_type {name} 不是 --task_type {task} 的损失。可选：{known}。",
    )


@rule(*SUPERVISED)
def a_metric_measures_its_task(case: Case) -> Words | None:
    """What is measured of one task is not there in another."""
    task, name = case["task_type"], case["eval_metric"]
    if name is None or "eval_metric" not in case.asked or (name == "nlg" and task == "causal_lm"):
        return None
    if name in EVAL_METRICS and name not in TASK_METRICS:
        return None
    if name not in TASK_METRICS and case["external_plugins"]:
        return None
    if task in TASK_METRICS.get(name, ()):
        return None
    known = ", ".join(metric for metric, tasks in TASK_METRICS.items() if task in tasks)
    if not known:
        return Words(
            f"--eval_metric {name} measures no --task_type {task}, whose evaluation reports loss and accuracy. A metric "
            "of your own is registered with --external_plugins.",
            f"--eval_metric {name} 不适用于 --task_type {task}，其评估已报告 loss 与准确率。自定义指标请用 --external_plugins 注册。",
        )
    return Words(
        f"--eval_metric {name} is no metric of --task_type {task}. There are: {known}, and those that --external_plugins "
        "adds.",
        f"--eval_metric {name} 不是 --task_type {task} 的指标。可选：{known}，以及 --external_plugins 注册的指标。",
    )


@rule(*SUPERVISED)
def replies_are_measured_where_there_are_any(case: Case) -> Words | None:
    """What a model writes is measured of what it has written."""
    name = case["eval_metric"]
    if case["task_type"] != "causal_lm" or name != "nlg" or case["predict_with_generate"]:
        return None
    return Words(
        f"--eval_metric {name} needs --predict_with_generate true: without it evaluation has no replies, and reports loss "
        "and accuracy.",
        f"--eval_metric {name} 需要 --predict_with_generate true：否则评估不生成回复，只报告 loss 与准确率。",
    )


@rule(*SUPERVISED)
def texts_that_are_read_have_no_learnt_tokens(case: Case) -> Words | None:
    """Other tasks learn what is said of a text, not its tokens."""
    if case["task_type"] == "causal_lm":
        return None
    name = next((name for name in OF_LEARNT_TOKENS if case.asks(name)), None)
    if name is None:
        return None
    return Words(
        f"--{name} has no effect with --task_type {case['task_type']}, which learns no tokens. Remove it.",
        f"--{name} 对 --task_type {case['task_type']} 不起作用，该任务不学习 token。请去掉它。",
    )


@rule("infer", "deploy")
def scores_are_not_generated(case: Case) -> Words | None:
    """Classes, embeddings and relevances come from one forward pass."""
    if case["task_type"] == "causal_lm":
        return None
    name = next((name for name in OF_GENERATION if case.asks(name)), None)
    if name is None:
        return None
    return Words(
        f"--{name} has no effect with --task_type {case['task_type']}, which generates nothing. Remove it.",
        f"--{name} 对 --task_type {case['task_type']} 不起作用，该任务不生成文本。请去掉它。",
    )


@rule("infer")
def results_can_be_compared(case: Case) -> Words | None:
    """Texts have overlaps; vectors are never equal."""
    task, metric = case["task_type"], case["metric"]
    if task == "causal_lm" or metric is None or (metric == "acc" and task != "embedding"):
        return None
    return Words(
        f"--metric {metric} measures no results of --task_type {task}. Remove it"
        + (", or use acc." if task != "embedding" else "."),
        f"--metric {metric} 不适用于 --task_type {task} 的结果。请去掉它"
        + ("，或使用 acc。" if task != "embedding" else "。"),
    )


@rule("pt", "sft", "export")
def other_tasks_prepare_their_own_rows(case: Case) -> Words | None:
    """A cached data set holds tokens that are learnt."""
    if case["task_type"] == "causal_lm":
        return None
    name = next((name for name in ("cached_dataset", "cached_val_dataset", "to_cached_dataset") if case[name]), None)
    if name is None:
        return None
    return Words(
        f"--{name} is not available yet with --task_type {case['task_type']}; --load_from_cache_file true keeps prepared "
        "rows for later runs.",
        f"--{name} 暂不支持 --task_type {case['task_type']}；--load_from_cache_file true 可保留预处理结果。",
    )


@rule()
def the_command_knows_the_task(case: Case) -> Words | None:
    """Samplers, pages and benchmarks generate."""
    if case["task_type"] in (None, "causal_lm") or case.command in KNOWING:
        return None
    return Words(
        f"--task_type {case['task_type']} is not available yet with swift {case.command}; it is with sft, infer, deploy "
        "and export.",
        f"swift {case.command} 暂不支持 --task_type {case['task_type']}；sft、infer、deploy 与 export 支持。",
    )
