"""This file knows what a training does otherwise when DeepSpeed or FSDP2 divides its weights over processes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import enable_fsdp_ram_efficient_loading
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments

from swift.core.errors import RunError, UsageError
from swift.core.extras import need
from swift.models.info import ModelInfo, read_json
from swift.options.saved import FILE_NAME
from swift.options.training import TrainingOptions
from swift.parallel.partitions import is_partitioned
from swift.parallel.sharding import Config, deepspeed_config, fsdp_config, offloads, zero_stage

OTHER_ORDER = {"round_robin_gradients", "parameter_alignment"}
"""Settings of ZeRO by which parameters lie in other places than DeepSpeed writes down."""
MATRICES = re.compile(r"mp_rank_(\d+)_")
"""Whose part of the matrices a file of DeepSpeed holds."""
RECOMPUTES = "activation_checkpointing"
"""The word of transformers, and of configurations of FSDP."""


def sharding(training: TrainingOptions) -> str | None:
    """What divides the weights: deepspeed, fsdp or nothing."""
    return "deepspeed" if training.deepspeed is not None else "fsdp" if training.fsdp is not None else None


def divides_weights(training: TrainingOptions) -> bool:
    """Whether weights are divided too, and not the optimizer alone."""
    if training.deepspeed_autotp_size > 1:
        return True
    third = training.deepspeed is not None and zero_stage(deepspeed_config(training.deepspeed)) == 3
    return third or training.fsdp is not None


def sharding_arguments(training: TrainingOptions) -> dict[str, Any]:
    """What `--deepspeed` or `--fsdp` becomes in the training arguments of transformers; {} without them.

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
    return {"fsdp": True, "fsdp_config": {**config, RECOMPUTES: False}, RECOMPUTES: False}


def recompute_inside(args: TrainingArguments, training: TrainingOptions) -> None:
    """Let a model under FSDP recompute its activations layer by layer, where `--fsdp` or `--gradient_checkpointing` says so.

    FSDP2 gathers a layer once for its backward pass, whoever recomputes it. So the model does, which stays as it is:
    the wrappers of accelerate would give its modules other names, by which peft does not find its adapters. What
    transformers advises against is true of FSDP1, and set here, after it has looked.
    """
    if training.fsdp is None or not (training.gradient_checkpointing or fsdp_config(training.fsdp).get(RECOMPUTES)):
        return
    args.activation_checkpointing = True


def check_quantization(training: TrainingOptions, quantization: str | None) -> None:
    """Refuse to divide weights that are stored in few bits. quantization: the method, or None. Raises UsageError."""
    if quantization is not None and divides_weights(training):
        raise UsageError(
            f"The weights of this model are quantized by {quantization}, and --{sharding(training)} would divide them over "
            "processes, which is not available. Use --deepspeed zero2, which divides the optimizer alone."
        )


def check_tensor_parallel(training: TrainingOptions, info: ModelInfo) -> None:
    """Refuse `--deepspeed_autotp_size` for a model whose matrices it does not divide evenly. Raises UsageError.

    DeepSpeed would give some processes more heads than others, or none.
    """
    size = training.deepspeed_autotp_size
    if size == 1:
        return
    front = f"--deepspeed_autotp_size {size}"
    if info.is_moe or info.is_multimodal:
        raise UsageError(
            f"{front} is for language models without experts, and this one is {info.model_type}. Use --deepspeed zero3, "
            "which divides every model."
        )
    config = read_json(info.path / "config.json")
    heads = int(config["num_attention_heads"])
    sizes = {
        "num_attention_heads": heads,
        "num_key_value_heads": int(config.get("num_key_value_heads") or heads),
        "intermediate_size": int(config["intermediate_size"]),
    }
    uneven = [f"{name} {value}" for name, value in sizes.items() if value % size]
    if uneven:
        raise UsageError(
            f"{front} must divide the sizes of the model, and does not divide {', '.join(uneven)}. Choose a smaller "
            "number, or --deepspeed zero3 without it."
        )


def require_dividable(model: nn.Module, training: TrainingOptions) -> None:
    """Refuse an adapter on the embedding of a model whose output layer is the same matrix: FSDP cannot lay it out.

    Raises UsageError that says what can.
    """
    if training.fsdp is None or not isinstance(model, PeftModel):
        return
    base: Any = model.get_base_model()
    if not base.all_tied_weights_keys or isinstance(base.get_input_embeddings(), (nn.Embedding, nn.Linear)):
        return
    raise UsageError(
        "--fsdp cannot divide a model whose embedding has an adapter (by --target_modules, --modules_to_save or "
        "--new_special_tokens) and is its output layer as well. Use --deepspeed zero2, or leave the embedding out."
    )


def require_agreement(args: TrainingArguments) -> None:
    """Refuse a configuration of DeepSpeed that has other numbers than the options. Raises UsageError that lists them."""
    if args.deepspeed is None:
        return
    found = args.hf_deepspeed_config.mismatches  # type: ignore[attr-defined]  # made where there is a configuration
    if found:
        listed = "; ".join(line.removeprefix("- ds ").replace(" vs hf ", " and --") for line in found)
        raise UsageError(
            f'--deepspeed and the other options contradict each other: {listed}. Write "auto" into the configuration.'
        )


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


def gathered_weights(model: nn.Module, engine: Any, *, cut: bool) -> dict[str, Any] | None:
    """The weights that are divided over processes, whole, on the CPU of the first process; {} on the others.

    Of an adapter those alone that are trained. None where every process has all weights. All processes call this.

    engine: DeepSpeed's, around the model. cut: each matrix is divided (`--deepspeed_autotp_size`).
    """
    of_adapter = isinstance(model, PeftModel)
    if isinstance(model, FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=of_adapter)
        return get_model_state_dict(model, options=options)
    if cut:
        return engine._consolidated_16bit_state_dict() or {}
    if any(is_partitioned(parameter) for parameter in model.parameters()):
        return engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=of_adapter) or {}
    return None


def without_first_step(optimizer: Any) -> None:
    """Take back the step that DeepSpeed makes with gradients of zero when stage 0 begins in 16 bits, to claim memory.

    It decays weights, and the bias corrections of Adam would count it: the first steps came out a quarter too small.
    """
    unfused: Any = need("deepspeed.runtime.fp16.unfused_optimizer", "--deepspeed")
    if not isinstance(optimizer, unfused.FP16_UnfusedOptimizer):
        return
    for halves, wholes in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for half, whole in zip(halves, wholes, strict=True):
            whole.data.copy_(half.data)
    optimizer.optimizer.state.clear()


# ------------------------------------------------------------------------------------------------------------ resuming


@dataclass(frozen=True)
class SavedState:
    """How the state of an optimizer lies in a checkpoint.

    sharding: deepspeed, fsdp or None for a single file. num_processes: over how many it is divided, where it can be
    read by as many only. stage: of ZeRO; 1 stands for 2 too. offloads: whether DeepSpeed's optimizer for CPUs made it;
    None when nobody knows. cut: over how many processes each matrix is divided.
    """

    sharding: str | None
    num_processes: int | None = None
    stage: int = 0
    offloads: bool | None = None
    cut: int = 1


def saved_state(checkpoint: Path) -> SavedState:
    """How the state of the optimizer lies in this checkpoint."""
    if (checkpoint / "latest").is_file():
        folder = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
        parts = len(list(folder.glob("*zero_pp_rank_*_optim_states.pt")))
        third = any(folder.glob("*zero_pp_rank_*_model_states.pt"))
        cut = {match[1] for file in folder.iterdir() if (match := MATRICES.search(file.name))}
        stage = 3 if third else min(parts, 1)
        return SavedState("deepspeed", parts or None, stage, _saved_offloads(checkpoint), len(cut))
    is_fsdp = (checkpoint / "optimizer_0").is_dir() or (checkpoint / "optimizer.bin").is_file()
    return SavedState("fsdp" if is_fsdp else None)


def divides_anew(saved: SavedState, training: TrainingOptions, num_processes: int) -> bool:
    """Whether an optimizer that DeepSpeed has divided must be divided otherwise to go on: it is then read by ourselves."""
    if saved.stage == 0 or training.deepspeed is None or training.resume_only_model:
        return False
    stage = zero_stage(deepspeed_config(training.deepspeed))
    return saved.num_processes != num_processes or saved.stage != (1 if stage == 2 else stage)


def _saved_offloads(checkpoint: Path) -> bool | None:
    """Whether the run that saved a checkpoint had its optimizer on the CPU, by the options beside it."""
    value = read_json(checkpoint / FILE_NAME).get("deepspeed") if (checkpoint / FILE_NAME).is_file() else None
    try:
        return None if value is None else offloads(deepspeed_config(value))
    except UsageError:  # a file that is not there any more
        return None


def _stages(saved: SavedState) -> str:
    return "1 or 2" if saved.stage == 1 else str(saved.stage)


def check_continuable(checkpoint: Path, training: TrainingOptions, num_processes: int) -> None:
    """Refuse to go on from a checkpoint whose optimizer this run could not read. Raises RunError that says what can."""
    if training.resume_only_model:
        return
    saved, here = saved_state(checkpoint), sharding(training)
    front = f"--resume_from_checkpoint {checkpoint}"
    anew = "To go on with its weights and a new optimizer, add --resume_only_model true."
    if saved.sharding != here:
        was = f"with --{saved.sharding}" if saved.sharding else "without --deepspeed and --fsdp"
        way = f"Add --{saved.sharding}" if saved.sharding else f"Drop --{here}"
        raise RunError(
            f"{front} was saved {was}, and the state of its optimizer can be read in that way only. {way}. {anew}"
        )
    if training.deepspeed is None:
        return
    config = deepspeed_config(training.deepspeed)
    stage = zero_stage(config)
    size = training.deepspeed_autotp_size
    if saved.cut != size or (size > 1 and divides_anew(saved, training, num_processes)):
        raise RunError(
            f"{front} was saved with --deepspeed_autotp_size {saved.cut} by {saved.num_processes or 'some'} processes of ZeRO "
            f"stage {_stages(saved)}, and this run has --deepspeed_autotp_size {size}, {num_processes} processes and stage "
            f"{stage}: parts of matrices are continued by those that have them. {anew}"
        )
    if (saved.stage == 0) != (stage == 0):
        raise RunError(
            f"{front} was saved with ZeRO stage {_stages(saved)}, and --deepspeed is stage {stage}: stage 0 does not "
            f"divide the state of the optimizer, and keeps it otherwise. Use the same stage. {anew}"
        )
    moved = sorted(OTHER_ORDER & config.get("zero_optimization", {}).keys())
    if divides_anew(saved, training, num_processes) and moved:
        raise RunError(
            f"{front} was saved by {saved.num_processes} processes in another way than it is to be continued, and with "
            f"{moved[0]} of --deepspeed nobody can tell whose part is whose. Use as many processes and the same stage. {anew}"
        )
    if saved.offloads is False and offloads(deepspeed_config(training.deepspeed)):
        raise RunError(
            f"{front} was saved without offloading, and DeepSpeed's optimizer for CPUs keeps other states than that of "
            f"PyTorch. Use the preset that it was saved with. {anew}"
        )
