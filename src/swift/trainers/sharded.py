"""This file knows what a training does otherwise when DeepSpeed or FSDP2 divides its weights over processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import enable_fsdp_ram_efficient_loading
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import TrainingArguments

from swift.core.errors import RunError, UsageError
from swift.core.extras import need
from swift.core.logs import get_logger
from swift.options.training import TrainingOptions
from swift.parallel.sharding import Config, deepspeed_config, fsdp_config, zero_stage


def sharding(training: TrainingOptions) -> str | None:
    """What divides the weights: deepspeed, fsdp or nothing."""
    return "deepspeed" if training.deepspeed is not None else "fsdp" if training.fsdp is not None else None


def sharding_arguments(training: TrainingOptions) -> dict[str, Any]:
    """What `--deepspeed` or `--fsdp` becomes in the training arguments of transformers; {} without them.

    FSDP's own recomputation of activations goes before `--gradient_checkpointing`: with both, every weight would be
    gathered once more in the backward pass.

    Raises MissingPackage without DeepSpeed, and UsageError for settings that contradict the other options.
    """
    if training.deepspeed is not None:
        need("deepspeed", "--deepspeed")
        config = deepspeed_config(
            training.deepspeed, hpz_partition_size=training.zero_hpz_partition_size,
            autotp_size=training.deepspeed_autotp_size,
        )  # fmt: skip
        return {"deepspeed": config}
    if training.fsdp is None:
        return {}
    config = fsdp_config(training.fsdp)
    _check_fsdp(config, training)
    if config.get("cpu_ram_efficient_loading"):
        enable_fsdp_ram_efficient_loading()  # the first process reads the weights, before the Trainer is made
    values: dict[str, Any] = {"fsdp": True, "fsdp_config": config}
    if config.get("activation_checkpointing") and training.gradient_checkpointing:
        get_logger().info("gradient_checkpointing = False, because activation_checkpointing of FSDP does the same")
        values["activation_checkpointing"] = False
    return values


def _check_fsdp(config: Config, training: TrainingOptions) -> None:
    if training.save_only_model and config.get("state_dict_type") == "SHARDED_STATE_DICT":
        raise UsageError(
            "--save_only_model true and state_dict_type SHARDED_STATE_DICT of --fsdp contradict each other: the parts of "
            "the state are there to be continued from. Drop --save_only_model, or pass --fsdp with a configuration that "
            "has state_dict_type FULL_STATE_DICT."
        )


def require_sharding(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Refuse a run that was to use FSDP and would not: accelerate leaves it out in silence where it has no device."""
    if args.fsdp and accelerator.distributed_type != DistributedType.FSDP:
        raise RunError(
            f"--fsdp needs an accelerator such as a GPU for each process, and there is none here ({accelerator.device}). "
            f"Drop --fsdp, or use --deepspeed, which runs on a CPU too."
        )


def gathered_weights(model: nn.Module, *, of_adapter: bool) -> dict[str, Any]:
    """The weights that FSDP has divided, whole, on the CPU of the first process; {} on the others.

    of_adapter: those alone that are trained. All processes call this.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=of_adapter)
    return get_model_state_dict(model, options=options)


# ------------------------------------------------------------------------------------------------------------ resuming


@dataclass(frozen=True)
class SavedState:
    """How the state of an optimizer lies in a checkpoint.

    sharding: deepspeed, fsdp or None for a single file. num_processes: over how many it is divided, where it can be
    read by as many only. stage: of ZeRO; 1 stands for 2 too.
    """

    sharding: str | None
    num_processes: int | None = None
    stage: int = 0


def saved_state(checkpoint: Path) -> SavedState:
    """How the state of the optimizer lies in this checkpoint."""
    if (checkpoint / "latest").is_file():
        folder = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
        parts = len(list(folder.glob("*zero_pp_rank_*_optim_states.pt")))
        third = any(folder.glob("*zero_pp_rank_*_model_states.pt"))
        return SavedState("deepspeed", parts or None, 3 if third else min(parts, 1))
    is_fsdp = (checkpoint / "optimizer_0").is_dir() or (checkpoint / "optimizer.bin").is_file()
    return SavedState("fsdp" if is_fsdp else None)


def check_continuable(checkpoint: Path, training: TrainingOptions, num_processes: int) -> None:
    """Refuse to go on from a checkpoint whose optimizer this run could not read. Raises RunError that says what can."""
    saved, here = saved_state(checkpoint), sharding(training)
    front = f"--resume_from_checkpoint {checkpoint}"
    anew = "To start a new run from its weights, pass it with --adapters (an adapter) or --model (a whole model)."
    if saved.sharding != here:
        was = f"with --{saved.sharding}" if saved.sharding else "without --deepspeed and --fsdp"
        way = f"Add --{saved.sharding}" if saved.sharding else f"Drop --{here}"
        raise RunError(
            f"{front} was saved {was}, and the state of its optimizer can be read in that way only. {way}. {anew}"
        )
    if training.deepspeed is None:
        return
    stage = zero_stage(deepspeed_config(training.deepspeed))
    if saved.stage != (1 if stage == 2 else stage):
        raise RunError(
            f"{front} was saved with ZeRO stage {'1 or 2' if saved.stage == 1 else saved.stage}, and --deepspeed is stage "
            f"{stage}, which divides the state of the optimizer otherwise. Use the same stage. {anew}"
        )
    if saved.num_processes not in (None, num_processes):
        raise RunError(
            f"{front} was saved by {saved.num_processes} processes, and there are {num_processes} now: DeepSpeed reads the "
            f"parts of an optimizer in as many processes as wrote them. Use NPROC_PER_NODE={saved.num_processes}. {anew}"
        )
