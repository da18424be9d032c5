"""This file knows in which ways a training can be run that must come to the same numbers, and which apply to a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from swift.core import environment
from swift.options.commands import Sft
from swift.options.declare import Origin, Source, flags
from swift.options.rules import broken

BASE, WHOLE, PACKED = "one row at a time", "all rows in one step, padded", "packed"
ROWS = 64
"""Rows that are drawn from each data set."""


@dataclass(frozen=True)
class Variant:
    """A way to run a training.

    changes: options, against the base. against: the name of the variant it must equal.
    left_out: why it is not run; "" when it is. note: what is to be known about it.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    against: str = BASE
    processes: int = 1
    left_out: str = ""
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """What the variants depend on. total: rows of a step. processes: how many are compared with one; devices: how
    many accelerators there are, None on a CPU."""

    total: int
    processes: int
    devices: int | None


def with_options(command: Sft, changes: Mapping[str, Any], why: str) -> Sft:
    """The command with other values, which nobody has asked for; options that this kind of command lacks are passed
    over."""
    return _replaced(command, changes, Source(Origin.RULE, why))


def as_typed(command: Sft, changes: Mapping[str, Any], why: str) -> Sft:
    """The command as if these options had been typed, so that they are refused where a user's would be."""
    return _replaced(command, changes, Source(Origin.COMMAND_LINE, why))


def _replaced(command: Sft, changes: Mapping[str, Any], source: Source) -> Sft:
    known = flags(type(command))
    values = {name: value for name, value in changes.items() if name in known}
    return command.replace(values, dict.fromkeys(values, source))


def prepared_for_proof(command: Sft, steps: int) -> Sft:
    """The command without what would only cost time: as many steps as are compared, every one logged, a few rows, no
    evaluation, no trackers, no checkpoints, one folder."""
    data = command.data
    return with_options(
        command,
        {
            "max_steps": steps, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "eval_on_start": False,
            "split_dataset_ratio": 0.0, "val_dataset": [], "cached_val_dataset": [], "report_to": ["none"],
            "add_version": False, "create_checkpoint_symlink": False, "resume_from_checkpoint": None,
            "push_to_hub": False, "max_epochs": None, "early_stop_interval": None, "predict_with_generate": False,
            "eval_use_evalscope": False, "eval_dataset": [],
            "dataset": [few(name) for name in data.dataset],
            "cached_dataset": [few(name) for name in data.cached_dataset],
            "use_flash_ckpt": False, "logging_dir": None, "dataloader_num_workers": 0,
            "dataloader_prefetch_factor": None, "dataloader_persistent_workers": False,
        },
        "of the proof",
    )  # fmt: skip


def few(argument: str) -> str:
    """An argument of `--dataset` asking for at most `ROWS` rows."""
    name, mark, number = argument.rpartition("#")
    if mark and number.isdigit():
        return f"{name}#{min(int(number), ROWS)}"
    return f"{argument}#{ROWS}"


def comparable(command: Sft, total: int) -> tuple[Sft, list[str]]:
    """The base of `batch`: one row at a time, padded, without chance and without what depends on how a step is cut.

    Also a note for every option of the command that had to be changed for that.
    """
    values, table = command.values(), flags(type(command))
    notes = []
    changes: dict[str, Any] = {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": total, "packing": False,
        "packing_length": None,
    }  # fmt: skip
    for name, flag in table.items():
        value, when = values[name], flag.marks.when
        has_effect = when is None or when.holds(values)
        if "dropout" in name and isinstance(value, float) and value > 0 and has_effect:
            changes[name] = 0.0
            notes.append(f"--{name} {value} is 0 here: what is dropped differs from batch to batch")
    for name, nothing, why in CHANCE:
        if name in values and values[name] not in (nothing, None):
            changes[name] = nothing
            notes.append(f"--{name} {str(values[name]).lower()} is {str(nothing).lower()} here: {why}")
    if values["lr_scheduler_type"] != "constant" or values["warmup_ratio"]:
        notes.append("the learning rate is constant, so that every step moves the weights")
    extra = {name: value for name, value in command.extra.items() if name != "warmup_steps"}
    changes |= {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None, "warmup_ratio": 0.0}
    # Said in so many words: rows are laid end to end of themselves only where nobody says how to pad.
    base = as_typed(with_options(command, changes, "of the proof"), {"padding_free": False}, "of the proof")
    return base.model_copy(update={"extra": extra}), notes


CHANCE = (
    ("neftune_noise_alpha", 0.0, "noise differs from batch to batch"),
    ("group_by_length", False, "which rows come together depends on the size of a batch"),
    ("router_aux_loss_coef", 0.0, "the loss that balances experts is a product of means over a batch"),
)
"""Options by which a batch is more than its rows: name, value without effect, why."""


def order_dependent(command: Sft) -> str:
    """Why a step of this command depends on how it is cut into batches; "" when it must not."""
    loss = command.values()["loss_type"]
    if loss == "online_contrastive":
        return f"--loss_type {loss} learns the hard pairs of a batch: other batches have other hard pairs, by design"
    if loss == "infonce" and environment.INFONCE_USE_BATCH.flag():
        return (
            f"--loss_type {loss} compares the rows of a batch with each other (in-batch negatives): another batch is "
            f"another loss, by design. With INFONCE_USE_BATCH=false it is not"
        )
    return ""


def batch_variants(command: Sft, setting: Setting) -> Iterator[Variant]:
    """The variants of `batch` that are held against the base, each with a reason where it does not apply."""
    total, cut = setting.total, order_dependent(command)
    values = command.values()
    for size in range(2, total + 1):
        if total % size == 0:
            shape = {"per_device_train_batch_size": size, "gradient_accumulation_steps": total // size}
            yield Variant(f"batches of {size} x {total // size}", shape, left_out=cut)
    two = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": total // 2}
    yield Variant("rows laid end to end (padding_free)", {**two, "padding_free": True}, left_out=cut)
    kept = values["use_logits_to_keep"]
    yield Variant(
        "all logits at once" if kept is not False else "logits of learnt tokens only",
        {"use_logits_to_keep": kept is False},
    )
    recomputed = not values["gradient_checkpointing"]
    recompute = {"gradient_checkpointing": recomputed, "gradient_checkpointing_kwargs": None}
    yield Variant("activations computed again" if recomputed else "activations kept", recompute)
    yield _in_processes(command, setting, cut)
    unpacked = cut or _not_packed(values)
    whole = {"gradient_accumulation_steps": ROWS * 8}
    yield Variant(WHOLE, whole, against="", left_out=unpacked)
    yield Variant(PACKED, {**whole, "packing": True, "packing_length": _pack(values)}, WHOLE, left_out=unpacked)


def refusal(base: Sft, changed: Sft) -> str:
    """Why the rules of options refuse a variant, in the words that a user would read; "" when they do not.

    What they say of the base as well is not meant: it comes of options that the proof itself has changed.
    """
    known = {words.en for words in broken(base)}
    return " ".join(words.en for words in broken(changed) if words.en not in known)


def _in_processes(command: Sft, setting: Setting, cut: str) -> Variant:
    count = setting.processes
    shape = {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": setting.total // count,
        "average_tokens_across_devices": True,
    }  # fmt: skip
    left_out = cut
    if setting.devices is not None and setting.devices < count:
        left_out = f"there is room for {setting.devices} processes, and {count} need {count} devices"
    if command.data.streaming and not cut:
        left_out = "processes read a stream in shares, so that a step of several has other rows than a step of one"
    note = ""
    if not command.training.average_tokens_across_devices:
        note = (
            "in several processes the loss of this command is averaged in each process by itself, which weighs tokens "
            "of short rows more; the proof has --average_tokens_across_devices true, which does not"
        )
    return Variant(f"{count} processes", shape, processes=count, left_out=left_out, note=note)


def _not_packed(values: Mapping[str, Any]) -> str:
    if values["task_type"] not in (None, "causal_lm"):
        return f"--task_type {values['task_type']} does not pack rows"
    for name in ("streaming", "lazy_tokenize"):
        if values[name]:
            return f"with --{name} true rows are not known beforehand, so that no step can hold all of them"
    return ""


def _pack(values: Mapping[str, Any]) -> int | None:
    return values["packing_length"] or values["max_length"]
