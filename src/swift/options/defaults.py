"""This file knows the defaults that follow from other options: one small pure function per derived option.

A function gets the flat values of the command, with those already derived, and answers with a value and the reason in
words, or None when nothing follows. What depends on the checkpoint (max_length, torch_dtype, template, lazy_tokenize
of a model of unknown kind) or on the folder of the run (logging_dir) is derived where these are known.
"""

from __future__ import annotations

import math
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from swift.catalog.families_text import FAMILIES
from swift.catalog.family import Family
from swift.catalog.tasks import TASK_LOSSES
from swift.options import defaults_preference
from swift.options.conditions import TRAINING, Values
from swift.options.declare import Command, Origin, Source, flags
from swift.options.derivations import Derivations, Derived, training_processes

derives = Derivations()

SERVED = ("deploy", "rollout", "eval", "app")
ENOUGH_ROWS = 16
"""Rows an optimizer step should see at least."""


def derive(command: Command) -> Command:
    """The command with every option filled in that nobody set and that follows from the others.

    The source of such a value is Origin.RULE with the reason. Values that the user, a file or a checkpoint gave are
    left alone; deriving twice changes nothing.
    """
    values = command.values()
    table = flags(type(command))
    changes: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for name, function in DERIVATIONS.items():
        if name not in table or not _is_open(command, name, values[name], table[name].default):
            continue
        derived = function(values)
        if derived is not None and derived[0] != values[name]:
            value, reason = derived
            values[name] = changes[name] = value
            sources[name] = Source(Origin.RULE, reason)
    return command.replace(changes, sources)


def has_rows_to_validate(values: Values) -> bool:
    """Whether there are rows of the user's to evaluate on."""
    return bool(values.get("val_dataset") or values.get("cached_val_dataset") or values.get("split_dataset_ratio"))


def is_validated(values: Values) -> bool:
    """Whether there is anything to evaluate on: rows of the user's, or benchmarks."""
    return has_rows_to_validate(values) or bool(values.get("eval_use_evalscope") and values.get("eval_dataset"))


def has_rows_to_infer(values: Values) -> bool:
    """Whether inference goes over a data set instead of being a dialogue."""
    split = values.get("split_dataset_ratio") and (values.get("dataset") or values.get("cached_dataset"))
    return bool(values.get("val_dataset") or values.get("cached_val_dataset") or split)


def _is_open(command: Command, name: str, value: Any, default: Any) -> bool:
    """Whether nobody has decided: None, or the plain default which a method may replace by its own."""
    source = command.sources.get(name, Source(Origin.DEFAULT))
    return value is None or (source.origin is Origin.DEFAULT and value == default)


def _last_part(model: str) -> str:
    """The name of a model: the last part of its path or id."""
    name = model.rstrip("/").rpartition("/")[2]
    return Path(model).expanduser().resolve().name if name in {"", ".", "..", "~"} else name


# ------------------------------------------------------------------------------------------------------ every command


@derives("load_args")
def load_args(values: Values) -> Derived:
    """A trained checkpoint is used the way it was trained; a training begins afresh."""
    if values["command"] in TRAINING:
        return False, "a training takes its options from this command line"
    return True, "a checkpoint is used the way it was trained"


@derives("task_type")
def task_type(values: Values) -> Derived:
    """What the family of the model is for, as far as a name tells; classes ask for a classifier."""
    family = _named_family(values)
    if family is not None and family.task in TASK_LOSSES:
        return family.task, f"what {family.name} models are for"
    if values.get("num_labels"):
        return "seq_cls", "num_labels asks for a classifier"
    return None


def _named_family(values: Values) -> Family | None:
    """The family that `--model_type` names, or the only one that has checkpoints of the model's name."""
    if values.get("model_type"):
        return FAMILIES.get(values["model_type"])
    name = _last_part(values["model"]) if values.get("model") else ""
    known = [family for family in FAMILIES.values() if name and family.knows(name)]
    return known[0] if len(known) == 1 else None


@derives("truncation_strategy")
def truncation_strategy(values: Values) -> Derived:
    """GRPO and GKD cut prompts rather than lose them."""
    if values.get("rlhf_type") in {"grpo", "gkd"}:
        return "left", f"{values['rlhf_type']} keeps long prompts, cut at the left"
    return "delete", "rows that are too long are left out"


@derives("padding_side")
def padding_side(values: Values) -> Derived:
    """Methods that generate pad at the left."""
    if values.get("rlhf_type") in {"ppo", "gkd"}:
        return "left", f"{values['rlhf_type']} generates from padded prompts"
    return None


@derives("stream")
def stream(values: Values) -> Derived:
    """A dialogue shows the reply while it is written; rows and several beams cannot."""
    if values["command"] not in {"infer", "app", *SERVED, "sample"}:
        return None
    if values["command"] == "app":
        return True, "a chat page shows the reply while it is written"
    if values["command"] != "infer":
        return False, "a request asks for streaming itself"
    if has_rows_to_infer(values):
        return False, "a data set is inferred in batches"
    if values["num_beams"] > 1:
        return False, "beam search has no reply before its end"
    return True, "a dialogue shows the reply while it is written"


# ----------------------------------------------------------------------------------------------------------- training


@derives("output_dir")
def output_dir(values: Values) -> Derived:
    """A folder for each model, below the current one."""
    if values["command"] not in TRAINING or not values["model"]:
        return None
    return str(Path("output", _last_part(values["model"])).absolute()), "output/ and the name of the model"


@derives("gradient_accumulation_steps")
def gradient_accumulation_steps(values: Values) -> Derived:
    """Enough passes that an optimizer step sees 16 rows."""
    if values.get("rlhf_type") == "grpo":
        return 1, "grpo learns from each batch at once"
    sharers = values["sequence_parallel_size"] * (values.get("deepspeed_autotp_size") or 1)
    readers = max(1, training_processes(values) // sharers)
    steps = max(1, math.ceil(ENOUGH_ROWS / values["per_device_train_batch_size"] / readers))
    return steps, f"so that an optimizer step sees at least {ENOUGH_ROWS} rows"


@derives("learning_rate")
def learning_rate(values: Values) -> Derived:
    """An adapter can learn ten times faster than the whole model."""
    if values["tuner_type"] == "full":
        return 1e-5, "1e-5 for full parameters"
    return 1e-4, "1e-4 for adapters"


@derives("vit_gradient_checkpointing")
def vit_gradient_checkpointing(values: Values) -> Derived:
    """The towers do as the language model does."""
    return values["gradient_checkpointing"], "follows gradient_checkpointing"


@derives("metric_for_best_model")
def metric_for_best_model(values: Values) -> Derived:
    """What the method is after."""
    if values.get("rlhf_type") == "ppo":
        return None
    if values.get("rlhf_type") == "grpo":
        return "reward", "grpo is after reward"
    if values.get("eval_use_evalscope") and values.get("eval_dataset") and not has_rows_to_validate(values):
        return f"test_{values['eval_dataset'][0]}", "there are no rows to validate on, and this is the first benchmark"
    if values["predict_with_generate"]:
        if values.get("eval_metric") not in {None, "nlg"}:
            return None  # only the plugin knows what it reports
        return "rouge-l", "replies are compared with the reference"
    return "loss", "the loss is what is measured"


@derives("greater_is_better")
def greater_is_better(values: Values) -> Derived:
    """A loss should fall, everything else should rise."""
    metric = values["metric_for_best_model"]
    if metric is None:
        return None
    return ("loss" not in metric), "a loss should fall, other metrics should rise"


@derives("eval_strategy")
def eval_strategy(values: Values) -> Derived:
    """Evaluate when checkpoints are saved, if there is something to evaluate on."""
    if not is_validated(values):
        return "no", "there is nothing to evaluate on"
    return values["save_strategy"], "follows save_strategy"


@derives("eval_steps")
def eval_steps(values: Values) -> Derived:
    """Evaluate each checkpoint."""
    if values["eval_strategy"] != "steps":
        return None
    return values["save_steps"], "follows save_steps"


@derives("dataloader_num_workers")
def dataloader_num_workers(_values: Values) -> Derived:
    """One process prepares batches, where processes are cheap to start."""
    if sys.platform == "win32":
        return 0, "processes start slowly on Windows"
    return 1, "one process prepares batches while the model learns"


@derives("dataloader_prefetch_factor")
def dataloader_prefetch_factor(values: Values) -> Derived:
    """Two batches ahead."""
    if not values["dataloader_num_workers"]:
        return None
    return 2, "each worker prepares two batches ahead"


@derives("optim")
def optim(_values: Values) -> Derived:
    """AdamW, fused into one kernel where torch does so by itself."""
    try:
        major, minor = (int(part) for part in version("torch").split(".")[:2])
    except PackageNotFoundError:
        return "adamw_torch", "AdamW of torch"
    if (major, minor) >= (2, 8):
        return "adamw_torch_fused", "the fused AdamW of torch 2.8 and later"
    return "adamw_torch", "AdamW of torch"


@derives("optimizer")
def optimizer(values: Values) -> Derived:
    """Some options bring an optimizer of their own."""
    if values["lorap_lr_ratio"]:
        return "lorap", "lorap_lr_ratio is its option"
    return ("galore", "use_galore asks for it") if values["use_galore"] else None


@derives("lora_dropout")
def lora_dropout(values: Values) -> Derived:
    """LoRA on bare parameters changes weights, and sees no input that parts could be dropped of."""
    return (0.0, "--target_parameters have no input to drop parts of") if values["target_parameters"] else None


@derives("use_logits_to_keep")
def use_logits_to_keep(values: Values) -> Derived:
    """Unsloth's models leave out the logits at the beginning only."""
    return (False, "Unsloth computes all logits") if values["tuner_backend"] == "unsloth" else None


@derives("packing_length")
def packing_length(values: Values) -> Derived:
    """A packed sequence is as long as a row may be."""
    if not values["packing"] or values["max_length"] is None:
        return None
    return values["max_length"], "follows max_length"


@derives("lazy_tokenize")
def lazy_tokenize(values: Values) -> Derived:
    """Rows are prepared beforehand where their lengths are needed, or prepared already."""
    for name in ("packing", "group_by_length", "streaming", "cached_dataset"):
        if values[name]:
            return False, f"{name} prepares rows in its own way"
    return None


@derives("loss_type")
def loss_type(values: Values) -> Derived:
    """The first loss of a task; the original loss of DPO and of GRPO, the other methods have one only."""
    if "rlhf_type" not in values:
        names = TASK_LOSSES.get(values["task_type"], ())
        return (names[0], f"what {values['task_type']} is usually trained with") if names else None
    name = {"dpo": "sigmoid", "grpo": "grpo"}.get(values.get("rlhf_type", ""))
    return ([name], f"the original loss of {values['rlhf_type']}") if name else None


@derives("eval_metric")
def eval_metric(values: Values) -> Derived:
    """What can be measured of the task's output."""
    task = values["task_type"]
    if task == "causal_lm":
        return ("nlg", "replies are compared with the reference") if values["predict_with_generate"] else None
    if task == "embedding":
        name = "infonce" if values.get("loss_type") == "infonce" else "paired"
        return name, f"{name} fits the loss of embeddings"
    return ("reranker", "rankings are measured") if "reranker" in task else None


@derives("swanlab_project")
def swanlab_project(values: Values) -> Derived:
    """Runs of this program, together."""
    return ("swiftlet", "the name of this program") if _uses_swanlab(values) else None


@derives("swanlab_exp_name")
def swanlab_exp_name(values: Values) -> Derived:
    """The folder of the run names it."""
    return (values["output_dir"], "follows output_dir") if _uses_swanlab(values) and values["output_dir"] else None


@derives("llamapro_num_groups")
def llamapro_num_groups(values: Values) -> Derived:
    """Each new layer has a place of its own."""
    if values["tuner_type"] != "llamapro":
        return None
    return values["llamapro_num_new_blocks"], "each new layer has a place of its own"


def _uses_swanlab(values: Values) -> bool:
    return bool({"swanlab", "all"} & set(values["report_to"]))


# ------------------------------------------------------------------------------------------------------------ serving


@derives("vllm_enable_prefix_caching")
def vllm_enable_prefix_caching(values: Values) -> Derived:
    """The completions of a group share their prompt."""
    if values.get("rlhf_type") != "grpo" or not values["use_vllm"]:
        return None
    return True, "the completions of a group share their prompt"


@derives("vllm_use_async_engine")
def vllm_use_async_engine(values: Values) -> Derived:
    """Servers and tasks other than text need it."""
    if values["command"] == "rollout":
        return bool(values["multi_turn_scheduler"]), "several turns need the asynchronous engine, one turn does not"
    if values.get("infer_backend") != "vllm":
        return None
    if values["task_type"] != "causal_lm":
        return True, f"{values['task_type']} needs the asynchronous engine"
    return values["command"] in SERVED, "a server answers many requests at a time"


@derives("served_model_name")
def served_model_name(values: Values) -> Derived:
    """The name users know the model by. Of a server that runs already, only the server knows it."""
    names = values["model"] and values["command"] != "parity"
    return (_last_part(values["model"]), "the last part of model") if names else None


@derives("studio_title")
def studio_title(values: Values) -> Derived:
    """The page is named after the model."""
    return (_last_part(values["model"]), "the name of the model") if values["model"] else None


@derives("verbose")
def verbose(values: Values) -> Derived:
    """A server tells what it answers, unless something else is looked at."""
    if values["command"] in {"app", "eval"}:
        return False, "the page or the benchmark is what is looked at"
    return True, "a server tells what it answers"


DERIVATIONS = {**derives.rows, **defaults_preference.derives.rows}
"""Option -> the function that derives it, in the order in which they are asked."""
