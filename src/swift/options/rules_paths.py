"""This file knows what the paths of a command line must be: those that are read, there; those that are written, free.

`rule` is asked of every command line. `before_running` is asked only of one that is about to run, because its answers
are of this moment and this machine: nobody who asks what a command line means needs its rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from swift.core.errors import DataError
from swift.core.paths import exists, unknown_home, why_unusable
from swift.options.adapters import split_name
from swift.options.case import Case, Rules
from swift.options.conditions import Words
from swift.options.row_sources import looks_local, parse_source

rule, before_running = Rules(), Rules()
MAYBE_A_HUB_ID = (
    "model", "adapters", "ref_model", "ref_adapters", "reward_model", "reward_adapters", "teacher_model",
    "teacher_adapters", "mcore_model", "mcore_adapters", "cached_dataset", "cached_val_dataset",
)  # fmt: skip
ALWAYS_LOCAL = ("resume_from_checkpoint", "external_plugins", "custom_dataset_info", "local_repo_path", "cache_files")
ROWS = ("dataset", "val_dataset")
FOLDERS = ("output_dir", "logging_dir", "eval_output_dir")
"""What folders are written."""
FILES = ("result_path", "report", "html")
"""What files are written."""
SHOWN = 100
"""Characters of a path that a message shows: the system may have refused it for its length."""


@rule()
def homes_are_known(case: Case) -> Words | None:
    """`~name` is the home folder of a user of this machine; taken as it is written, it would become a folder here."""
    flags = (*MAYBE_A_HUB_ID, *ALWAYS_LOCAL, *ROWS, *FOLDERS, *FILES)
    wrong = [(flag, text, home) for flag, text in _typed(case, flags) if (home := unknown_home(_path(text, flag)))]
    if not wrong:
        return None
    listed = ", ".join(f"--{flag} {text}" for flag, text, _ in wrong)
    home = wrong[0][2]
    return Words(
        f"{listed}: {home} is no home folder on this machine. Write the path out; ./{home} is a folder of that name.",
        f"{listed}：{home} 不是本机的主目录。请写出完整路径；如确为该名称的目录，请写 ./{home}。",
    )


@rule()
def named_paths_exist(case: Case) -> Words | None:
    """A path that the user typed must be there; an id of a hub is left to the hub."""
    missing: list[str] = []
    for flag, text in _typed(case, (*MAYBE_A_HUB_ID, *ALWAYS_LOCAL)):
        path = _path(text, flag)
        if flag == "custom_dataset_info" and text.lstrip().startswith(("[", "{")):
            continue  # the JSON itself
        if (flag in ALWAYS_LOCAL or _looks_local(path)) and not exists(path) and not unknown_home(path):
            missing.append(f"--{flag} {_shown(text)}")
    return _missing(missing)


@before_running()
def rows_are_there(case: Case) -> Words | None:
    """A data set that can only be a file or a folder; what a plugin or a file registers may be called anything."""
    if case["external_plugins"] or case["custom_dataset_info"]:
        return None
    missing: list[str] = []
    for flag, text in _typed(case, ROWS):
        if unknown_home(text):
            continue
        try:
            source = parse_source(text, f"--{flag}")
        except DataError as error:
            return Words(str(error), str(error))
        if source.hub is None and looks_local(source.name) and not exists(source.name):
            missing.append(f"--{flag} {_shown(text)}")
    return _missing(missing)


@before_running("export", "merge-lora")
def an_export_has_room(case: Case) -> Words | None:
    """A model is not mixed with what is in a folder, unless that is asked for."""
    output, writes = case["output_dir"], any(case[name] for name in ("merge_lora", "to_cached_dataset", "to_ollama"))
    if output is None or not writes or case["exist_ok"] or unknown_home(output):
        return None
    folder = Path(output).expanduser()
    if not exists(output) or not folder.is_dir() or not any(folder.iterdir()):
        return None
    return Words(
        f"--output_dir {output} exists and is not empty. Give another --output_dir, or overwrite the model in it with "
        "--exist_ok true.",
        f"--output_dir {output} 已存在且不为空。请换一个 --output_dir，或用 --exist_ok true 覆盖其中的模型。",
    )


@before_running()
def what_is_written_can_be(case: Case) -> Words | None:
    """A long run must not end at the file that was to keep its results."""
    for flag, text in _typed(case, (*FOLDERS, *FILES)):
        why = None if unknown_home(text) else _why_not_written(text, flag in FOLDERS)
        if why is not None:
            return Words(
                f"--{flag} {_shown(text)} cannot be written: {why.en}. Give another path.",
                f"--{flag} {_shown(text)} 无法写入：{why.zh}。请换一个路径。",
            )
    return None


def _why_not_written(text: str, is_folder: bool) -> Words | None:
    """Why a file or folder cannot be made or added to, as far as can be told without touching anything."""
    unusable = why_unusable(text)
    if unusable is not None:
        return Words(unusable, unusable)
    path = Path(text).expanduser().absolute()
    if exists(text) and path.is_dir() is not is_folder:
        return Words("it is a file", "它是一个文件") if is_folder else Words("it is a folder", "它是一个目录")
    there = next(each for each in (path, *path.parents) if exists(str(each)))
    if there != path and not there.is_dir():
        return Words(f"{there} is a file", f"{there} 是一个文件")
    wanted = os.W_OK | os.X_OK if there.is_dir() else os.W_OK
    return None if os.access(there, wanted) else Words(f"{there} may not be written", f"没有 {there} 的写权限")


def _missing(arguments: list[str]) -> Words | None:
    shown = ", ".join(arguments)
    return Words(f"{shown}: there is no such file or folder.", f"{shown}：文件或目录不存在。") if arguments else None


def _typed(case: Case, flags: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The texts that the user gave to these flags, one by one."""
    for flag in flags:
        value = case[flag] if flag in case.asked else None
        for text in [value] if isinstance(value, str) else value or []:
            yield flag, text


def _path(text: str, flag: str) -> str:
    """The path in the text of an option: without the name of an adapter, without a number of rows."""
    if flag == "adapters":
        return split_name(text)[1]
    return text.partition("#")[0] if flag.startswith("cached") else text


def _looks_local(text: str) -> bool:
    """Whether it is meant as a path: an id of a hub is `owner/name`."""
    return text.startswith(("/", ".", "~")) or "\\" in text or text.count("/") > 1


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
