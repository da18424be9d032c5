"""This file knows args.json: what a run writes beside its checkpoints, and what a later command reads back.

The file is flat: option -> value, so that other tools can read it, and one more key, `swiftlet`, which holds the
command, the version, the source of every value and the extra training arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from swift.core.paths import exists, is_file
from swift.options.adapters import unnamed
from swift.options.conditions import TRAINING
from swift.options.data import DataOptions
from swift.options.declare import Command, Origin, Source, flags

FILE_NAME = "args.json"
ABOUT = "swiftlet"
"""The key of the file that no option has."""

ALWAYS = ("tuner_type", "task_type", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
"""Read back whatever this command's own value is, unless the user asked for another."""
WHEN_UNSET = (
    "external_plugins", "use_hf", "model", "model_type", "model_revision", "torch_dtype", "attn_impl", "experts_impl",
    "new_special_tokens", "num_labels", "problem_type", "rope_scaling", "max_model_len", "quant_method", "quant_bits",
    "hqq_axis", "bnb_4bit_compute_dtype", "template", "system", "truncation_strategy", "agent_template", "norm_bbox",
    "use_chat_template", "response_prefix",
)  # fmt: skip
"""Read back when the user did not ask for a value."""
OF_THE_MODEL = ("use_hf", "model_revision")
"""Of these, what a checkpoint says is about its own model, and not read back when the user names another."""
DATA = tuple(DataOptions.model_fields)
"""Read back with --load_data_args."""
PATHS = (
    "model", "adapters", "dataset", "val_dataset", "resume_from_checkpoint", "output_dir", "external_plugins",
    "custom_dataset_info",
)  # fmt: skip
"""Written as absolute paths when they name something on this disk, so that a later command finds it from anywhere."""
WHERE = ("output_dir", "add_version", "resume_from_checkpoint", "resume_only_model", "ignore_data_skip", "logging_dir")
"""What says where a run begins and writes, and not what it does."""
SECRETS = ("_token", "api_key", "secret", "webhook_url")
"""Parts of option names whose text is never written."""


@dataclass
class Loaded:
    """Values read back from a checkpoint, and their sources."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)


def write_args(command: Command, folder: Path) -> Path:
    """Write args.json into `folder` and return its path."""
    values = {name: _written(name, value) for name, value in command.values().items() if name != "command"}
    about = {
        "version": version("swiftlet"),
        "command": command.name,
        "sources": {name: str(source) for name, source in command.sources.items()},
        "training_arguments": command.extra,
    }
    path = folder / FILE_NAME
    path.write_text(json.dumps({**values, ABOUT: about}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def differences(command: Command, folder: Path) -> list[str]:
    """The options that the user gave to this command and to the run of `folder` differently, in words.

    What was derived may differ, as it does with another number of processes; so may what says where a run begins and
    writes.
    """
    stored = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    sources = stored.get(ABOUT, {}).get("sources", {})
    given = {Origin.FILE, Origin.ENVIRONMENT, Origin.COMMAND_LINE}
    then = {name for name, source in sources.items() if source.partition(":")[0] in {origin.value for origin in given}}
    now = {name for name, source in command.sources.items() if source.asked_for}
    values = json.loads(json.dumps({name: _written(name, value) for name, value in command.values().items()}))
    return [
        f"--{name} was {stored.get(name)!r} and is {values[name]!r}"
        for name in sorted((then | now) - set(WHERE))
        if name in values and values[name] != stored.get(name)
    ]


def load(command: type[Command], values: Mapping[str, Any], sources: Mapping[str, Source],
         complain: Callable[..., None]) -> Loaded:  # fmt: skip
    """The values that `--load_args` and `--load_data_args` bring in for a command with these given `values`.

    The file is that of the first of --resume_from_checkpoint, --adapters, --model which holds one. Reading is the
    default for everything but training. A file that cannot be read is a problem, told to `complain`.
    """
    wants = values.get("load_args", command.name not in TRAINING)
    folder = checkpoint_folder(values)
    if folder is None or not (wants or values.get("load_data_args")):
        return Loaded()
    file = folder / FILE_NAME
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        complain("args_broken", file=file, why=error)
        return Loaded()
    if not isinstance(stored, dict):
        complain("args_broken", file=file, why="no JSON object")
        return Loaded()
    table = flags(command)
    names = [*(ALWAYS + WHEN_UNSET if wants else ()), *(DATA if values.get("load_data_args") else ())]
    if _asked("model", sources):
        names = [name for name in names if name not in OF_THE_MODEL]
    loaded = Loaded()
    for name in names:
        if name in table and stored.get(name) not in (None, []) and not _asked(name, sources):
            loaded.values[name] = stored[name]
            loaded.sources[name] = Source(Origin.CHECKPOINT, str(file))
    return loaded


def checkpoint_folder(values: Mapping[str, Any]) -> Path | None:
    """The first of the named checkpoints that has an args.json; None when none has."""
    named = [values.get("resume_from_checkpoint"), *unnamed(values.get("adapters") or ()), values.get("model")]
    for name in named:
        if name and is_file(f"{name}/{FILE_NAME}"):
            return Path(name).expanduser()
    return None


def _asked(name: str, sources: Mapping[str, Source]) -> bool:
    return name in sources and sources[name].asked_for


def _written(name: str, value: Any) -> Any:
    if isinstance(value, str) and any(part in name for part in SECRETS):
        return None
    if name in PATHS and isinstance(value, str):
        return _absolute(value)
    if name == "new_special_tokens":
        return [_absolute(item) if item.endswith(".txt") else item for item in value]
    if name in PATHS and isinstance(value, list):
        return [_absolute(item) for item in value]
    return value


def _absolute(text: str) -> str:
    """A path of this disk made absolute, with the `#count` of a dataset kept; anything else as it is."""
    if text.lstrip().startswith(("[", "{")):
        return text  # JSON
    path, mark, count = text.rpartition("#") if "#" in text and not exists(text) else (text, "", "")
    return f"{Path(path).expanduser().resolve()}{mark}{count}" if exists(path) else text
