"""This file knows the rules between options of optimizers, schedules of the learning rate and callbacks."""

from __future__ import annotations

from collections.abc import Mapping

from swift.catalog.components import CALLBACKS, OPTIMIZERS
from swift.options.case import Case, Rules
from swift.options.conditions import TRAINING, Words
from swift.options.wording import guessed

rule = Rules()
BRINGS = {"lorap": "lorap_lr_ratio", "galore": "use_galore"}
"""Optimizer -> the option it is chosen by, and cannot do without."""
MUON = ("muon", "muonclip")
WHOLE_MATRICES = (*MUON, "galore")
"""Optimizers that look at a matrix as a whole."""
COLD = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules without a warmup."""
BARE = ("constant", "constant_with_warmup")
"""Schedules without settings."""


@rule(*TRAINING)
def an_optimizer_is_known(case: Case) -> Words | None:
    """One of ours, unless plugins may bring others."""
    name = case["optimizer"]
    if name is None or name in OPTIMIZERS or case["external_plugins"]:
        return None
    return _unknown("optimizer", "optimizer", "优化器", name, OPTIMIZERS)


@rule(*TRAINING)
def callbacks_are_known(case: Case) -> Words | None:
    """Ours, unless plugins may bring others."""
    names = [name for name in case["callbacks"] or () if name not in CALLBACKS]
    if not names or case["external_plugins"]:
        return None
    if "deepspeed_elastic" in names:
        return Words(
            "--callbacks deepspeed_elastic: elastic training needs DLRover, which is not supported. Every run saves on "
            "SIGTERM before it stops, and goes on with --resume_from_checkpoint.",
            "--callbacks deepspeed_elastic：弹性训练依赖 DLRover，暂不支持。任何训练在收到 SIGTERM 时都会先保存再停止，"
            "并可用 --resume_from_checkpoint 继续。",
        )
    return _unknown("callbacks", "callback", "回调", names[0], CALLBACKS)


@rule(*TRAINING)
def one_optimizer_is_chosen(case: Case) -> Words | None:
    """LoRA+ and GaLore are optimizers too."""
    asked = [f"--{flag}" for flag in BRINGS.values() if case.asks(flag)]
    named = case["optimizer"] if "optimizer" in case.asked else None
    if named is not None and not (named in BRINGS and f"--{BRINGS[named]}" in asked):
        asked.insert(0, f"--optimizer {named}")
    if len(asked) < 2:
        return None
    return Words(
        f"{asked[0]} and {asked[1]} cannot be used together: each brings an optimizer. Remove one of them.",
        f"{asked[0]} 与 {asked[1]} 不能同时使用：两者各自带有优化器。请去掉其中一个。",
    )


@rule(*TRAINING)
def a_named_optimizer_has_its_option(case: Case) -> Words | None:
    """Without it there would be nothing to do."""
    if case["optimizer"] not in BRINGS or "optimizer" not in case.asked:
        return None
    flag = BRINGS[case["optimizer"]]
    if case[flag]:
        return None
    return Words(
        f"--optimizer {case['optimizer']} needs --{flag}, which also chooses it by itself.",
        f"--optimizer {case['optimizer']} 需要设置 --{flag}（设置后会自动选用）。",
    )


@rule(*TRAINING)
def early_stopping_says_when(case: Case) -> Words | None:
    """The callback counts up to a number."""
    if "early_stop" not in (case["callbacks"] or ()) or case["early_stop_interval"]:
        return None
    return Words(
        "--callbacks early_stop needs --early_stop_interval, which also adds it by itself.",
        "--callbacks early_stop 需要设置 --early_stop_interval（设置后会自动添加）。",
    )


@rule(*TRAINING)
def muon_is_no_choice_of_optim(case: Case) -> Words | None:
    """It brings the optimizer of all parameters."""
    if case["optimizer"] not in MUON or "optim" not in case.asked:
        return None
    return Words(
        f"--optim {case['optim']} has no effect with --optimizer {case['optimizer']}, which optimizes every parameter. "
        "Remove one of them.",
        f"--optim {case['optim']} 在 --optimizer {case['optimizer']} 下不起作用：后者会优化所有参数。请去掉其中一个。",
    )


@rule(*TRAINING)
def qk_clip_scales_weights(case: Case) -> Words | None:
    """An adapter leaves the weights it would scale as they are."""
    if case["optimizer"] != "muonclip" or case["tuner_type"] == "full":
        return None
    return Words(
        f"--optimizer muonclip scales weights of the model, which --tuner_type {case['tuner_type']} leaves as they are. "
        "Use --optimizer muon, or --tuner_type full.",
        f"--optimizer muonclip 会缩放模型自身的权重，而 --tuner_type {case['tuner_type']} 不改动它们。"
        "请使用 --optimizer muon 或 --tuner_type full。",
    )


@rule(*TRAINING)
def whole_matrices_are_not_sharded(case: Case) -> Words | None:
    """A process would see a part of a matrix only."""
    sharding = next((flag for flag in ("deepspeed", "fsdp") if case[flag]), None)
    chosen = case["optimizer"] if case["optimizer"] in WHOLE_MATRICES else "galore" if case["use_galore"] else None
    if sharding is None or chosen is None:
        return None
    shown = "--use_galore" if chosen == "galore" else f"--optimizer {chosen}"
    return Words(
        f"{shown} and --{sharding} cannot be used together: {chosen} looks at whole matrices, which {sharding} shards. "
        "Remove one of them.",
        f"{shown} 与 --{sharding} 不能同时使用：{chosen} 需要完整的矩阵，而 {sharding} 会将其切分。请去掉其中一个。",
    )


@rule(*TRAINING)
def a_schedule_that_warms_up(case: Case) -> Words | None:
    """The others begin at the full rate, whatever the warmup."""
    kind = case["lr_scheduler_type"]
    flag = "warmup_ratio" if case.asks("warmup_ratio") else "warmup_steps" if case.extra.get("warmup_steps") else None
    if kind not in COLD or flag is None:
        return None
    instead = "constant_with_warmup" if kind == "constant" else "linear"
    return Words(
        f"--{flag} has no effect with --lr_scheduler_type {kind}, which does not warm up. Use {instead}, or remove it.",
        f"--{flag} 在 --lr_scheduler_type {kind} 下不起作用：它没有 warmup。请改用 {instead}，或去掉该参数。",
    )


@rule(*TRAINING)
def a_schedule_that_has_settings(case: Case) -> Words | None:
    """A constant rate has nothing to set."""
    if case["lr_scheduler_type"] not in BARE or not case.asks("lr_scheduler_kwargs"):
        return None
    return Words(
        f"--lr_scheduler_kwargs has no effect with --lr_scheduler_type {case['lr_scheduler_type']}, which has no settings. "
        "Remove it, or choose another schedule.",
        f"--lr_scheduler_kwargs 在 --lr_scheduler_type {case['lr_scheduler_type']} 下不起作用：它没有可设置项。"
        "请去掉该参数，或更换调度器。",
    )


def _unknown(flag: str, kind: str, kind_zh: str, name: str, table: Mapping[str, object]) -> Words:
    guess, known = guessed(name, table), ", ".join(sorted(table))
    return Words(
        f"--{flag} {name}: there is no such {kind}.{guess.en} There are: {known}. Plugins (--external_plugins) bring others.",
        f"--{flag} {name}：没有这个{kind_zh}。{guess.zh}可选：{known}。插件（--external_plugins）可以注册更多。",
    )
