"""This file knows how options are shown: the page of all commands, and the pages of one command."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from swift.core.registry import nearest
from swift.options.conditions import Words
from swift.options.declare import Command, Flag, flags
from swift.options.expectations import expected
from swift.options.wording import say

GROUPS: dict[str, Words] = {
    "ModelOptions": Words("Model", "模型"),
    "QuantizationOptions": Words("Quantization on load", "加载时量化"),
    "DataOptions": Words("Data", "数据"),
    "TemplateOptions": Words("Template", "对话模板"),
    "GenerationOptions": Words("Generation", "生成"),
    "TunerChoice": Words("What is trained", "训练方式"),
    "TunerOptions": Words("Tuner", "Tuner"),
    "TunerVariantOptions": Words("Other tuners", "其他 Tuner"),
    "TrainingOptions": Words("Training", "训练"),
    "OptimizerOptions": Words("GaLore and LISA", "GaLore 与 LISA"),
    "TrackingOptions": Words("Tracking", "日志与跟踪"),
    "TrainingEvaluationOptions": Words("Benchmarks while training", "训练中评测"),
    "VllmOptions": Words("vLLM", "vLLM"),
    "SglangOptions": Words("SGLang", "SGLang"),
    "LmdeployOptions": Words("LMDeploy", "LMDeploy"),
    "PreferenceOptions": Words("Preferences", "偏好对齐"),
    "PolicyOptions": Words("GRPO", "GRPO"),
    "SamplerOptions": Words("Completions for GRPO", "GRPO 采样"),
    "RewardOptions": Words("Rewards and teachers", "奖励与教师模型"),
    "DistillOptions": Words("GKD", "GKD"),
    "PpoOptions": Words("PPO", "PPO"),
    "InferOptions": Words("Inference", "推理"),
    "DeployOptions": Words("Server", "部署"),
    "TurnOptions": Words("Turns of a rollout", "多轮 Rollout"),
    "ParityOptions": Words("Comparison", "对比"),
    "WebOptions": Words("Web page", "网页"),
    "AppOptions": Words("Chat page", "聊天页面"),
    "EvaluationOptions": Words("Evaluation", "评测"),
    "MergeOptions": Words("Merging and writing weights", "合并与权重保存"),
    "ExportOptions": Words("Export", "导出"),
    "SamplingOptions": Words("Sampling", "采样"),
    "ProofOptions": Words("Proofs", "运行前检查"),
    "GeneralOptions": Words("General", "通用"),
}
"""The heading of each group in the help and in the manual."""


def heading(flag: Flag, language: str) -> str:
    """The heading of the group a flag is declared in."""
    return GROUPS[flag.owner.__name__].say(language)


def show(value: Any) -> str:
    """A value as one would type it: true, null, `a b` for lists."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return " ".join(show(item) for item in value) if value else "[]"
    return "null" if value is None else str(value)


def overview(summaries: Mapping[str, tuple[str, bool]], tools: Mapping[str, str], language: str, *, bold: bool) -> str:
    """The page of `swift --help`: the commands, each with its sentence and whether it can be run yet."""
    lines = [say("tagline", language), "", say("usage", language), "", _heading(say("commands", language), bold)]
    for name, (summary, works) in summaries.items():
        later = "" if works else f"  {say('not_yet', language)}"
        lines.append(f"  {name:<12}{summary}{later}")
    lines += ["", _heading(say("tools", language), bold)]
    lines += [f"  {name:<12}{summary}" for name, summary in tools.items()]
    return "\n".join([*lines, "", say("more_help", language)])


def page(command: type[Command], summary: str, words: Iterable[str], language: str, *, bold: bool) -> str:
    """The page of `swift <command> --help`: grouped, the important first; with `words`, only what is about them."""
    wanted = [word.lower().lstrip("-").replace("-", "_") for word in words]
    table = flags(command)
    shown = [flag for flag in table.values() if _about(flag, wanted, language)]
    if not shown:
        near = nearest(wanted[0], table)
        guess = say("guess", language, name=near[0]) if near else ""
        return say("nothing_found", language, command=command.name, words=" ".join(words), guess=guess)
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    lines = [f"swift {command.name}: {summary}", say("marked", language)]
    by_group: dict[str, list[Flag]] = {}
    for flag in shown:
        by_group.setdefault(heading(flag, language), []).append(flag)
    for title, members in by_group.items():
        lines += ["", _heading(title, bold)]
        for flag in sorted(members, key=lambda flag: not flag.marks.important):
            lines += _entry(flag, language, width, bold=bold)
    return "\n".join(lines)


def default_text(flag: Flag, language: str) -> str:
    """The default of a flag in words: the value, or the rule that derives it."""
    if flag.default is None and flag.marks.rule:
        return f"{say('derived', language)}: {flag.marks.rule}"
    value = say("unset", language) if flag.default is None else show(flag.default)
    return f"{say('default', language)}: {value}"


def _about(flag: Flag, wanted: list[str], language: str) -> bool:
    if not wanted:
        return True
    text = f"{flag.name} {flag.help} {heading(flag, language)}".lower()
    return all(word in text or word.replace("_", " ") in text for word in wanted)


def _entry(flag: Flag, language: str, width: int, *, bold: bool) -> list[str]:
    star = "*" if flag.marks.important else " "
    name = f"--{flag.name}"
    kind = expected(flag.info, language)
    notes = [default_text(flag, language)]
    if flag.marks.when:
        notes.append(f"{say('applies', language)} {flag.marks.when.words.say(language)}")
    if flag.marks.later:
        some = f" ({say('choices', language)}: {', '.join(map(show, flag.marks.works))})" if flag.marks.works else ""
        notes.append(f"{say('later', language)}: {flag.marks.later}{some}")
    head = f"{star} {_heading(name, bold)}  {kind}"
    body = textwrap.wrap(f"{flag.help} [{'; '.join(notes)}]", width - 6, break_long_words=False)
    return [head, *(f"      {line}" for line in body)]


def _heading(text: str, bold: bool) -> str:
    return f"\033[1m{text}\033[0m" if bold else text
