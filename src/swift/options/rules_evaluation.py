"""This file knows the rules of what a training is measured by, and of whom it reports to."""

from __future__ import annotations

from swift.catalog.trackers import TRACKERS
from swift.options.case import Case, Rules
from swift.options.conditions import TRAINING, Words
from swift.options.defaults import has_rows_to_validate, is_validated
from swift.options.evaluation import GENERATION

rule = Rules()


# --------------------------------------------------------------------------------------------------------- evaluation


@rule(*TRAINING)
def evaluation_has_rows(case: Case) -> Words | None:
    """Asking for evaluation without rows would evaluate nothing."""
    if "eval_strategy" not in case.asked or case["eval_strategy"] == "no" or is_validated(case.values):
        return None
    return Words(
        f"--eval_strategy {case['eval_strategy']} has nothing to evaluate on: give --val_dataset or "
        "--split_dataset_ratio, or remove it.",
        f"--eval_strategy {case['eval_strategy']} 没有可评估的数据：请给出 --val_dataset 或 --split_dataset_ratio，"
        "或去掉该参数。",
    )


@rule(*TRAINING)
def validation_rows_are_used(case: Case) -> Words | None:
    """Rows set apart for an evaluation that never comes would be lost."""
    flag = next(
        (name for name in ("val_dataset", "cached_val_dataset", "split_dataset_ratio") if case.asks(name)), None
    )
    if flag is None or case["eval_strategy"] != "no":
        return None
    return Words(
        f"--{flag} has no effect: --eval_strategy is no, as --save_strategy is unless it is given. Set "
        f"--eval_strategy epoch or steps, or remove --{flag}.",
        f"--{flag} 不起作用：--eval_strategy 为 no（默认跟随 --save_strategy）。请设置 --eval_strategy epoch 或 steps，"
        f"或去掉 --{flag}。",
    )


@rule(*TRAINING)
def the_best_checkpoint_is_measured(case: Case) -> Words | None:
    """Loading the best model at the end needs an evaluation at every checkpoint."""
    if str(case.extra.get("load_best_model_at_end", False)).lower() != "true":
        return None
    aligned = case["save_strategy"] != "steps" or _divides(case["eval_steps"], case["save_steps"])
    if case["eval_strategy"] == case["save_strategy"] != "no" and aligned:
        return None
    return Words(
        "--load_best_model_at_end needs an evaluation at every checkpoint: --eval_strategy and --save_strategy alike "
        f"and --save_steps a multiple of --eval_steps (got {case['eval_strategy']}/{case['eval_steps']} and "
        f"{case['save_strategy']}/{case['save_steps']}).",
        "--load_best_model_at_end 要求每个 checkpoint 都被评估：--eval_strategy 与 --save_strategy 相同，且 --save_steps 是 "
        f"--eval_steps 的整数倍（得到 {case['eval_strategy']}/{case['eval_steps']} 与 "
        f"{case['save_strategy']}/{case['save_steps']}）。",
    )


@rule(*TRAINING)
def benchmarks_are_named(case: Case) -> Words | None:
    """EvalScope is told what to run."""
    if not case["eval_use_evalscope"] or case["eval_dataset"]:
        return None
    return Words(
        "--eval_use_evalscope needs --eval_dataset, the benchmarks to run.",
        "--eval_use_evalscope 需要 --eval_dataset 指定评测集。",
    )


@rule(*TRAINING)
def benchmarks_come_with_evaluations(case: Case) -> Words | None:
    """They are run when the training evaluates."""
    if not case["eval_use_evalscope"] or not case["eval_dataset"] or case["eval_strategy"] != "no":
        return None
    return Words(
        "--eval_use_evalscope has no effect: --eval_strategy is no, as --save_strategy is unless it is given. Set "
        "--eval_strategy epoch or steps, or remove --eval_use_evalscope.",
        "--eval_use_evalscope 不起作用：--eval_strategy 为 no（默认跟随 --save_strategy）。请设置 --eval_strategy epoch 或 "
        "steps，或去掉 --eval_use_evalscope。",
    )


@rule(*TRAINING)
def settings_belong_to_a_benchmark(case: Case) -> Words | None:
    """Settings of a benchmark that is not run would be lost."""
    strangers = [name for name in case["eval_dataset_args"] or {} if name not in case["eval_dataset"]]
    if not case["eval_use_evalscope"] or not strangers:
        return None
    return Words(
        f"--eval_dataset_args has settings of {', '.join(strangers)}, which --eval_dataset does not name (it names "
        f"{', '.join(case['eval_dataset']) or 'nothing'}).",
        f"--eval_dataset_args 含有 {', '.join(strangers)} 的设置，而 --eval_dataset 未指定该评测集"
        f"（当前为 {', '.join(case['eval_dataset']) or '空'}）。",
    )


@rule(*TRAINING)
def benchmarks_are_answered_as_the_model_can(case: Case) -> Words | None:
    """A setting that the model is never told would be lost."""
    unknown = [name for name in case["eval_generation_config"] or {} if name not in GENERATION]
    if not case["eval_use_evalscope"] or not unknown:
        return None
    known = ", ".join(GENERATION)
    return Words(
        f"--eval_generation_config: while training, benchmarks are answered without {', '.join(unknown)}. There are: "
        f"{known}.",
        f"--eval_generation_config：训练中评测不支持 {', '.join(unknown)}。可选：{known}。",
    )


@rule(*TRAINING)
def benchmarks_are_answered_in_words(case: Case) -> Words | None:
    """Classes and vectors answer nothing."""
    if not case["eval_use_evalscope"] or case["task_type"] == "causal_lm":
        return None
    return Words(
        f"--eval_use_evalscope asks the model for replies, and --task_type {case['task_type']} makes none. Remove one of "
        "them.",
        f"--eval_use_evalscope 需要模型生成回复，而 --task_type {case['task_type']} 不生成回复。请去掉其中一个。",
    )


@rule(*TRAINING)
def replies_need_rows(case: Case) -> Words | None:
    """Benchmarks have questions of their own; replies are compared with those of rows."""
    if not case["predict_with_generate"] or case["eval_strategy"] == "no" or has_rows_to_validate(case.values):
        return None
    return Words(
        "--predict_with_generate has no rows to answer: give --val_dataset or --split_dataset_ratio, or remove it.",
        "--predict_with_generate 没有可供回答的数据：请给出 --val_dataset 或 --split_dataset_ratio，或去掉该参数。",
    )


# ----------------------------------------------------------------------------------------------------------- trackers


@rule(*TRAINING)
def trackers_are_known(case: Case) -> Words | None:
    """A name that nobody reports to would be found out at the end of the run."""
    unknown = [name for name in case["report_to"] if name not in (*TRACKERS, "all", "none")]
    if not unknown:
        return None
    known = ", ".join([*TRACKERS, "all", "none"])
    return Words(
        f"--report_to {' '.join(unknown)}: there is no such tracker. There are: {known}.",
        f"--report_to {' '.join(unknown)}：没有这样的记录工具。可选：{known}。",
    )


@rule(*TRAINING)
def notifications_go_somewhere(case: Case) -> Words | None:
    """A webhook is an address."""
    method = case["swanlab_notification_method"]
    if method is None or method == "email" or case["swanlab_webhook_url"]:
        return None
    return Words(
        f"--swanlab_notification_method {method} needs --swanlab_webhook_url.",
        f"--swanlab_notification_method {method} 需要 --swanlab_webhook_url。",
    )


def _divides(part: float | None, whole: float) -> bool:
    return part is not None and abs(whole / part - round(whole / part)) < 1e-9  # shares are not exact in binary
