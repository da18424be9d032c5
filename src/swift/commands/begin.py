"""This file knows what commands begin with: plugins, randomness, and a word on every value that was decided for you."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from transformers import enable_full_determinism, set_seed
from transformers.utils.logging import disable_progress_bar

from swift.commands.task_settings import settled_task
from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.hub.base import local_folder
from swift.hub.models import Access, access, model_folder
from swift.models.info import ModelInfo
from swift.options.adapters import unnamed
from swift.options.commands import Sft
from swift.options.declare import Command, Origin, Source, flags
from swift.options.general import GeneralOptions
from swift.options.help import show
from swift.options.parse import with_checkpoint
from swift.options.saved import FILE_NAME

C = TypeVar("C", bound=Command)
S = TypeVar("S", bound=Sft)


def begin(command: C, general: GeneralOptions, *, deterministic: bool = False) -> C:
    """Load plugins, seed every source of randomness, and log what was decided by rule.

    Returns the command, to which the args.json of a checkpoint that had to be fetched from a hub may have added.
    """
    command = _with_fetched_args(command, access(general))
    for file in command.values()["external_plugins"]:
        load_plugin(Path(file).expanduser())
    disable_progress_bar()  # of loading and writing weights: a run has one bar, its own
    if deterministic:
        enable_full_determinism(general.seed)
    else:
        set_seed(general.seed)
    log_decisions(command)
    return command


def _with_fetched_args(command: C, hub: Access) -> C:
    """The command with what the args.json of its first adapter, else of its model, says, where that is an id."""
    values = command.values()
    named = [("--adapters", name, None) for name in unnamed(values["adapters"][:1])]
    if not named and values["model"] is not None:
        named = [("--model", values["model"], values["model_revision"])]
    if not values["load_args"] or not named or local_folder(named[0][1], named[0][0]) is not None:
        return command
    option, name, revision = named[0]
    folder = model_folder(name, option, hub, revision)
    return with_checkpoint(command, folder) if (folder / FILE_NAME).is_file() else command


def load_plugin(file: Path) -> None:
    """Import a Python file, which registers what it brings. The same file is loaded once."""
    if not file.is_file():
        raise UsageError(f"--external_plugins {file} is no file. Pass the path of a Python file.")
    name = "swift_plugin" + re.sub(r"\W", "_", str(file.resolve().with_suffix("")))
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--external_plugins {file} is no Python file. Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def log_decisions(command: Command) -> None:
    """One line per value that a rule chose. What stays off or belongs to a feature to come is not worth a line."""
    values, table = command.values(), flags(type(command))
    decided = {
        name: source
        for name, source in command.sources.items()
        if source.origin is Origin.RULE and values[name] not in (None, False) and not table[name].marks.later
    }
    width = max((len(name) for name in decided), default=0)
    for name, source in decided.items():
        get_logger().info("%-*s = %s  (%s)", width, name, show(values[name]), source.detail)


def settle(command: S, info: ModelInfo) -> tuple[S, ModelInfo]:
    """The command with the values that its checkpoint decides: `--torch_dtype`, `--max_length` and what follows it, and
    what belongs to its task."""
    changes, sources = settled_task(command.model, command.template, info)
    if command.model.torch_dtype is None:
        changes["torch_dtype"], why = info.dtype, f"{info.path.name}/config.json"
        if info.dtype == "float16" and not torch.accelerator.is_available():
            changes["torch_dtype"], why = "float32", "float16 weights do not train on a CPU"
        sources["torch_dtype"] = Source(Origin.RULE, why)
    elif command.model.torch_dtype == "float16" and not torch.accelerator.is_available():
        raise UsageError("--torch_dtype float16 does not train on a CPU: use bfloat16 or float32.")
    if command.template.max_length is None and info.max_length is not None:
        changes["max_length"] = info.max_length
        sources["max_length"] = Source(Origin.RULE, f"{info.path.name}/config.json")
    if command.training.packing and command.training.packing_length is None and "max_length" in changes:
        changes["packing_length"] = info.max_length
        sources["packing_length"] = Source(Origin.RULE, "follows max_length")
    settled = command.replace(changes, sources)
    log_decisions(settled.model_copy(update={"sources": sources}))
    return settled, replace(info, dtype=settled.model.torch_dtype)
