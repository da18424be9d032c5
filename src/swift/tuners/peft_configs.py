"""This file knows how options become the config of a peft adapter."""

from __future__ import annotations

from typing import Any, Literal

from peft import AdaLoraConfig, BOFTConfig, FourierFTConfig, LoraConfig, MissConfig, TaskType, VeraConfig
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from swift.core.errors import ModelError, UsageError
from swift.core.logs import get_logger
from swift.tuners.request import Request
from swift.tuners.targets import is_named, modules_to_save, target_modules, target_parameters, token_rows

INIT_WEIGHTS: dict[str, bool | str] = {"true": True, "false": False, "gaussian": "gaussian"}
"""`--init_weights` -> what peft calls it. true: A is Kaiming uniform, B zero; gaussian: A normal, B zero; false: both
random, so that the adapter changes the model from the start. All others begin as true, and are then given the
beginning that `tuners/beginnings.py` computes."""


BONE_WEIGHTS: dict[str, bool | Literal["bat"]] = {"true": True, "false": False, "bat": "bat"}
"""The same for Bone."""


def lora_config(model: PreTrainedModel, request: Request) -> LoraConfig:
    """LoRA (arXiv:2106.09685): W x + scale B A x, with scale = alpha / r, or alpha / sqrt(r) with rsLoRA (2312.03732).

    With DoRA (2402.09353) the sum of W and scale B A is normalised by column and given a learnt magnitude. The rows of
    new tokens are trained beside it, unless embedding and output layer are trained whole.
    """
    options = request.options
    parameters = target_parameters(model, options)
    return LoraConfig(
        **_of_lora_and_its_kin(model, request),
        r=options.lora_rank,
        use_dora=options.use_dora,
        use_rslora=options.use_rslora,
        target_parameters=parameters or None,
    )


def peft_task(model: PreTrainedModel) -> TaskType | None:
    """What peft calls the task of a model; None for one without a head."""
    if type(model).__name__.endswith("ForSequenceClassification"):
        return TaskType.SEQ_CLS
    return TaskType.CAUSAL_LM if model.get_output_embeddings() is not None else None


def adalora_config(model: PreTrainedModel, request: Request) -> AdaLoraConfig:
    """AdaLoRA (arXiv:2303.10512): W x + scale B diag(E) A x, whose ranks shrink where they matter least.

    Every matrix begins with `adalora_init_r` ranks; at the end they have `adalora_target_r` on average. Raises
    UsageError when the steps of the run leave no time for that.
    """
    variants, steps = request.variants, request.run.total_steps
    if steps is not None:
        _require_time(request, steps)
    return AdaLoraConfig(
        **_of_lora_and_its_kin(model, request),
        target_r=variants.adalora_target_r,
        init_r=variants.adalora_init_r,
        tinit=variants.adalora_tinit,
        tfinal=variants.adalora_tfinal,
        deltaT=variants.adalora_deltaT,
        beta1=variants.adalora_beta1,
        beta2=variants.adalora_beta2,
        orth_reg_weight=variants.adalora_orth_reg_weight,
        # peft insists on a number; without a training any that fits the others is as good
        total_step=steps or variants.adalora_tinit + variants.adalora_tfinal + 2,
    )


def vera_config(model: PreTrainedModel, request: Request) -> VeraConfig:
    """VeRA (arXiv:2310.11454): W x + diag(b) B diag(d) A x, with random A and B that all layers share.

    Each layer takes the part of A and B that fits its shape. A and B are drawn from a seed of their own, so that they
    need not be saved; they may come out differently on another version of torch, so that they are by default.
    """
    variants = request.variants
    return VeraConfig(
        **_of_all(model, request),
        r=variants.vera_rank,
        save_projection=variants.vera_projection_prng_key,
        vera_dropout=variants.vera_dropout,
        d_initial=variants.vera_d_initial,
        fan_in_fan_out=_stores_transposed(model),
    )


def boft_config(model: PreTrainedModel, request: Request) -> BOFTConfig:
    """BOFT (arXiv:2311.06243) with one butterfly factor: W is rotated by an orthogonal matrix of blocks, and scaled.

    Raises ModelError when the width of a layer cannot be divided into such blocks.
    """
    variants = request.variants
    common = _of_all(model, request)
    number = variants.boft_block_num
    flag, divisor = (
        ("--boft_block_num", number) if number is not None else ("--boft_block_size", variants.boft_block_size)
    )
    for name, module in _targeted(model, common["target_modules"]):
        if isinstance(module, nn.Linear) and module.in_features % divisor:
            raise ModelError(
                f"{flag} {divisor} does not divide the {module.in_features} inputs of {name}. Choose a divisor of it, or "
                f"leave that layer out of --target_modules."
            )
    return BOFTConfig(
        **common,
        boft_block_size=0 if number is not None else variants.boft_block_size,
        boft_block_num=number or 0,
        boft_dropout=variants.boft_dropout,
        fan_in_fan_out=_stores_transposed(model),
    )


def fourierft_config(model: PreTrainedModel, request: Request) -> FourierFTConfig:
    """FourierFT (arXiv:2405.03003): the change of W is the inverse Fourier transform of a few learnt coefficients.

    The coefficients begin random, so that the model is changed a little from the start. Raises ModelError when a layer
    has fewer weights than coefficients are wanted.
    """
    common = _of_all(model, request)
    count = request.variants.fourier_n_frequency
    for name, module in _targeted(model, common["target_modules"]):
        if isinstance(module, (nn.Linear, Conv1D)) and module.weight.numel() < count:
            raise ModelError(
                f"--fourier_n_frequency {count} is more than the {module.weight.numel()} weights of {name}. Choose a "
                f"smaller number, or leave that layer out of --target_modules."
            )
    return FourierFTConfig(
        **common,
        n_frequency=count,
        scaling=request.variants.fourier_scaling,
        fan_in_fan_out=_stores_transposed(model),
    )


def bone_config(model: PreTrainedModel, request: Request) -> MissConfig:
    """Bone, which peft keeps as MiSS (arXiv:2409.15371): W x + D' (x1 + x2 + ...), for slices x1, x2, ... of x.

    A slice is as long as D has rows, `lora_rank`; D begins at zero, or random with `false`. With `bat` D is a stack of
    square blocks, one for each slice of the outputs, and a block W1 of W becomes W1 + W1 D1 + D1. Raises ModelError when
    a layer cannot be cut into such blocks.
    """
    common = _of_all(model, request)
    rank, begins = request.options.lora_rank, request.options.init_weights
    for name, module in _targeted(model, common["target_modules"]):
        if not isinstance(module, nn.Linear):
            continue
        if begins == "bat" and (module.in_features % rank or module.out_features % rank):
            raise ModelError(
                f"--init_weights bat cuts weights into blocks of --lora_rank {rank}, which does not divide the "
                f"{module.out_features} x {module.in_features} of {name}. Choose a divisor, or leave that layer out of "
                f"--target_modules."
            )
        if module.in_features < rank:
            raise ModelError(f"--lora_rank {rank} is more than the {module.in_features} inputs of {name}. Lower it.")
    return MissConfig(**common, r=rank, init_weights=BONE_WEIGHTS[begins])


def _of_all(model: PreTrainedModel, request: Request) -> dict[str, Any]:
    """What the configs of the kinds have in common that are no LoRA: they know of layers, and not of rows or ties."""
    saved = modules_to_save(model, request.options)
    embeddings = [name for name in saved if _is_embedding(name)]
    if embeddings and _is_tied(model):
        raise UsageError(
            f"--modules_to_save {' '.join(embeddings)}: the embedding and the output layer of this model are one matrix, "
            f"and only --tuner_type lora trains it as one. Leave it out, or use lora."
        )
    targets = target_modules(model, request.options)
    rows = token_rows(model, targets, saved, request.run.new_token_ids)
    if rows:
        last = " ".join(dict.fromkeys(name.rpartition(".")[2] for name in rows))
        raise UsageError(
            f"--new_special_tokens: only --tuner_type full and lora train the rows of new tokens. Use one of them, or "
            f"train the whole layers: --modules_to_save {last}."
        )
    return {"task_type": peft_task(model), "target_modules": targets, "modules_to_save": saved or None}


def _of_lora_and_its_kin(model: PreTrainedModel, request: Request) -> dict[str, Any]:
    """What the configs of LoRA and of AdaLoRA have in common."""
    options = request.options
    saved = modules_to_save(model, options)
    targets = target_modules(model, options)
    return {
        "task_type": peft_task(model),
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "bias": options.lora_bias,
        "init_lora_weights": INIT_WEIGHTS.get(options.init_weights, True),
        "target_modules": targets,
        "trainable_token_indices": token_rows(model, targets, saved, request.run.new_token_ids),
        "modules_to_save": saved or None,
        "fan_in_fan_out": _stores_transposed(model),
        "ensure_weight_tying": _saves_tied_embedding(model, saved),
    }


def _require_time(request: Request, steps: int) -> None:
    """AdaLoRA needs steps between its phases in which ranks shrink, one of them to learn what matters."""
    tinit, tfinal = request.variants.adalora_tinit, request.variants.adalora_tfinal
    if tinit + tfinal + 1 >= steps:
        raise UsageError(
            f"--tuner_type adalora: of the {steps} steps of this run, --adalora_tinit {tinit} and --adalora_tfinal "
            f"{tfinal} leave {max(0, steps - tinit - tfinal)} in which ranks shrink, and it takes 2 at least. Train "
            f"longer, or lower them."
        )


def _targeted(model: nn.Module, targets: list[str] | str) -> list[tuple[str, nn.Module]]:
    """The modules that targets mean, with their names."""
    return [(name, module) for name, module in model.named_modules() if is_named(name, targets)]


def _stores_transposed(model: nn.Module) -> bool:
    """GPT-2's Conv1D holds its weight as [in, out]."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def _saves_tied_embedding(model: PreTrainedModel, saved: list[str]) -> bool:
    """Whether embedding and output layer are one matrix and it is trained whole: then it stays one.

    Trained apart, the two would drift, and the merged model would be of another architecture than its base.
    """
    touched = any(_is_embedding(name) for name in saved)
    if touched and _is_tied(model):
        get_logger().info("The embedding and the output layer of this model are one matrix; it is trained as one.")
    return touched and _is_tied(model)


def _is_embedding(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in EMBEDDING_LAYER_NAMES


def _is_tied(model: PreTrainedModel) -> bool:
    """Whether the output layer is the embedding; a model without one has nothing to tie, whatever its config says."""
    return bool(model.config.get_text_config().tie_word_embeddings) and model.get_output_embeddings() is not None
