"""This file knows the optimizers of `--optim`: what each needs installed, and which `--optim_args` it takes.

transformers builds them; it drops settings that it does not know, and finds a missing package only when the model is
loaded. So both are looked at before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from swift.core.errors import MissingPackage, UsageError
from swift.core.extras import EXTRAS
from swift.core.logs import get_logger
from swift.trainers.optim_args import Kind, read_optim_args

GALORE: dict[str, Kind] = {"rank": "int", "update_proj_gap": "int", "scale": "float", "proj_type": "str"}
ADEMAMIX: dict[str, Kind] = {
    "beta1": "float", "beta2": "float", "beta3": "float", "alpha": "float", "eps": "float", "t_alpha": "int",
    "t_beta3": "int",
}  # fmt: skip
SCHEDULE_FREE: dict[str, Kind] = {"weight_lr_power": "float", "r": "float"}
APOLLO: dict[str, Kind] = {**GALORE, "proj": "str", "scale_type": "str"}

TAKES: dict[str, dict[str, Kind]] = {
    "sgd": {"momentum": "float", "dampening": "float", "nesterov": "bool"},
    "adagrad": {"lr_decay": "float", "eps": "float"},
    "rmsprop": {"momentum": "float", "alpha": "float", "eps": "float", "centered": "bool"},
    "grokadamw": dict.fromkeys(
        ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"), "float"
    ),
    "adamw_anyprecision": {
        "use_kahan_summation": "bool", "momentum_dtype": "str", "variance_dtype": "str",
        "compensation_buffer_dtype": "str",
    },
    "stable_adamw": {"max_lr": "float"},
    "adamw_torch_4bit": {"bf16_stochastic_round": "bool"},
    "adamw_torch_8bit": {"bf16_stochastic_round": "bool"},
}  # fmt: skip
"""Name -> the settings that transformers reads for it. Weight decay is `--weight_decay` for all of them."""
FAMILIES_TAKE = {"galore_": GALORE, "apollo_": APOLLO, "schedule_free_": SCHEDULE_FREE, "ademamix": ADEMAMIX, "paged_ademamix": ADEMAMIX}  # fmt: skip

PACKAGES = {
    "galore_": ("galore_torch", "galore-torch"),
    "apollo_": ("apollo_torch", "apollo-torch"),
    "schedule_free_": ("schedulefree", "schedulefree"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch_npu"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    **dict.fromkeys(
        ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_", "ademamix", "paged_ademamix", "lion_", "paged_lion_", "rmsprop_bnb"),
        ("bitsandbytes", "bitsandbytes"),
    ),
}  # fmt: skip
"""How a name begins -> the module it needs, and what installs it; the longest beginning decides."""


WHOLE = ("galore_", "apollo_", "lomo", "adalomo")
"""How the names begin of optimizers that take a model, and no groups of ours."""


def check_optim(name: str, optim_args: str | None, training: Mapping[str, Any]) -> None:
    """Look at everything that would go wrong, or be dropped, when transformers builds this optimizer.

    training: `gradient_accumulation_steps`, `max_grad_norm` and `optim_target_modules` of the run.

    Raises MissingPackage and UsageError.
    """
    package = _of_family(PACKAGES, name)
    if package is not None and importlib.util.find_spec(package[0]) is None:
        extra = EXTRAS.get(package[0])
        line = f"'swiftlet[{extra}]'" if extra else package[1]
        raise MissingPackage(
            f"--optim {name} needs the package {package[1]}, which is not installed. Run: pip install {line}"
        )
    takes = TAKES.get(name) or _of_family(FAMILIES_TAKE, name) or {}
    read_optim_args(optim_args, takes, f"--optim {name}")
    if name.startswith(("galore_", "apollo_")) and not training["optim_target_modules"]:
        instead = " Or use --use_galore true, which finds them itself." if name.startswith("galore_") else ""
        raise UsageError(f"--optim {name} needs --optim_target_modules, the layers to project.{instead}")
    if name.endswith("_layerwise"):
        _check_layerwise(name, training)


def _check_layerwise(name: str, training: Mapping[str, Any]) -> None:
    """These step inside the backward pass, and keep their states to themselves."""
    if training["gradient_accumulation_steps"] != 1:
        raise UsageError(
            f"--optim {name} steps in every backward pass: --gradient_accumulation_steps must be 1 (got "
            f"{training['gradient_accumulation_steps']}). A larger --per_device_train_batch_size does the same."
        )
    if training["max_grad_norm"]:
        raise UsageError(
            f"--optim {name} steps before the norm of the whole gradient is known, so nothing can be clipped. Add "
            "--max_grad_norm 0."
        )
    get_logger().warning("--optim %s: its states are not in the checkpoints, which cannot be resumed", name)


def _of_family(table: Mapping[str, Any], name: str) -> Any:
    """The value of the longest key that the name begins with; None without one."""
    found = max((start for start in table if name.startswith(start)), key=len, default=None)
    return None if found is None else table[found]
