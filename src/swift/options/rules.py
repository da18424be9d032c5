"""This file knows which combinations of options are refused, and says all of them at once.

Three kinds: an option that has no effect here (`when` of its declaration), an option of something that is not
available yet (`later`), and options that contradict each other (the tables of rules_*.py).
"""

from __future__ import annotations

import json
from typing import Any

from swift.options import (
    rules_answering,
    rules_data,
    rules_engines,
    rules_evaluation,
    rules_loading,
    rules_optimizers,
    rules_paths,
    rules_preference,
    rules_sharding,
    rules_tasks,
    rules_training,
    rules_tuners,
)
from swift.options.case import Case, case_of
from swift.options.conditions import Words
from swift.options.declare import Command, Flag, flags
from swift.options.renamed import RENAMED

TABLES = (
    rules_loading.rule, rules_paths.rule, rules_training.rule, rules_data.rule, rules_sharding.rule, rules_tuners.rule, rules_optimizers.rule,
    rules_preference.rule, rules_tasks.rule, rules_evaluation.rule, rules_answering.rule, rules_engines.rule,
)  # fmt: skip


def broken(command: Command) -> list[Words]:
    """Everything that is wrong with the options of this command, which must have been derived; [] when nothing is."""
    case = case_of(command)
    found = [words for flag in flags(type(command)).values() if (words := _refused(flag, case))]
    return [*found, *(words for table in TABLES for words in table.broken(case))]


def not_ready(command: Command) -> list[Words]:
    """What is wrong at this moment, on this machine, for a command that is about to run; [] when nothing is.

    A check before a run (`--dry_run true`) has its own report of these things.
    """
    if command.values().get("dry_run"):
        return []
    return rules_paths.before_running.broken(case_of(command))


def asks_for_nothing(value: Any, default: Any) -> bool:
    """Whether a value leaves its option off: null, false, empty, or a zero that is the default anyway."""
    return value is None or value is False or value in ([], {}, "") or (not value and value == default)


def shown(name: str, value: Any) -> str:
    """An option as it would be typed."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, list):
        text = " ".join(str(item) for item in value)
    elif isinstance(value, dict):
        text = f"'{json.dumps(value, ensure_ascii=False, default=str)}'"
    else:
        text = str(value)
    return f"--{name} {text}".rstrip()


def _refused(flag: Flag, case: Case) -> Words | None:
    if flag.name not in case.asked:
        return None
    value, condition = case[flag.name], flag.marks.when
    later = flag.marks.later if _is_unavailable(flag, value) else None
    if condition is not None and not asks_for_nothing(value, flag.default) and not condition.holds(case.values):
        return _ineffective(shown(flag.name, value), condition.words, later)
    if later is None:
        return None
    works = ", ".join(str(name) for name in flag.marks.works)
    return Words(
        f"{shown(flag.name, value)} is not available yet: {later}." + (f" What works: {works}." if works else ""),
        f"{shown(flag.name, value)} 暂不可用：{LATER_ZH[later]}。" + (f"目前可用：{works}。" if works else ""),
    )


def _ineffective(option: str, when: Words, later: str | None) -> Words:
    and_later = f" It is not available yet either: {later}." if later else ""
    and_later_zh = f"另外，该功能暂不可用：{LATER_ZH[later]}。" if later else ""
    return Words(
        f"{option} has no effect here: it applies when {when.en}. Remove it, or meet that condition.{and_later}",
        f"{option} 在此不起作用：仅当{when.zh} 时有效。请去掉它，或满足该条件。{and_later_zh}",
    )


def _is_unavailable(flag: Flag, value: Any) -> bool:
    """Whether the value belongs to a feature that is to come. The default always works, and so does asking for
    nothing where nothing is the default."""
    if flag.marks.later is None or value == flag.default:
        return False
    if asks_for_nothing(value, flag.default) and not flag.default:
        return False
    items = value if isinstance(value, list) and value else [value]
    return not all(item in flag.marks.works for item in items)


LATER_ZH = {
    "quantizing a model": "模型量化",
    "models of images, video and audio": "图像、视频和音频模型",
    "conversion to and from Megatron": "与 Megatron 格式互转",
}
"""What is not available yet -> the same in Chinese."""

__all__ = ["RENAMED", "broken", "not_ready"]
