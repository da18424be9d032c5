"""This file knows how a model is made ready to learn: with all its parameters, a new adapter, or one made before."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.warning import PeftWarning
from safetensors import SafetensorError
from transformers import PreTrainedModel

from swift.core.errors import ModelError, UsageError
from swift.core.logs import get_logger
from swift.models.info import adapter_folder, check_adapter
from swift.models.precision import mixed_precision, torch_dtype
from swift.models.quantize import is_quantized
from swift.options.tuner import TunerChoice, TunerOptions
from swift.options.tuner_variants import TunerVariantOptions
from swift.tuners import adalora, residual
from swift.tuners.dropout import quicken
from swift.tuners.freeze import freeze
from swift.tuners.low_rank import shorten
from swift.tuners.methods import METHODS, Method, kind_of, method_of
from swift.tuners.own.methods import OWN_METHODS, attach_own, is_own, load_own
from swift.tuners.plugin import attach_plugged, is_plugged, load_plugged
from swift.tuners.request import Request, Run

INEXACT_INITS = ("pissa_niter", "lora_ga")
"""Initialisations of peft that move a part of the weights into the adapter in a way that loading does not repeat."""


def attach(
    model: PreTrainedModel,
    choice: TunerChoice,
    options: TunerOptions,
    *,
    variants: TunerVariantOptions | None = None,
    adapters: Sequence[str] = (),
    asked: Collection[str] = (),
    run: Run | None = None,
) -> PreTrainedModel | PeftModel:
    """The model ready for training: what is trained has requires_grad, all else has not.

    `full` trains all parameters but the frozen ones. Every other type adds an adapter, drawn from torch's random
    numbers, or goes on with the one of `adapters`, in the shape it was made with; of the options that the user `asked`
    for, none may want another shape. The embeddings of new tokens are trained in any case. float16 parameters that are
    trained become float32, which mixed precision needs.
    """
    if choice.tuner_type == "full":
        require_whole(model)
        if adapters:
            raise UsageError(
                f"--adapters {' '.join(adapters)} cannot be trained with --tuner_type full. Train it on with "
                f"--tuner_type lora, or merge it first (swift merge-lora) and pass the result with --model."
            )
        freeze(model, options)
        _cast_trained(model)
        if run and run.new_token_ids and not any(p.requires_grad for p in model.get_input_embeddings().parameters()):
            get_logger().warning("The embedding is frozen: new special tokens are not learnt. Do not freeze it.")
        return model
    request = Request(options, variants or TunerVariantOptions(), run or Run())
    if choice.tuner_type in OWN_METHODS:
        attach_own(model, choice.tuner_type, request, adapters=adapters, asked=asked)
        _cast_trained(model)
        return model
    if choice.tuner_type not in METHODS:
        made = attach_plugged(model, choice.tuner_type, request.run, adapters)
        _cast_trained(made)
        return made
    method = METHODS[choice.tuner_type]
    model.requires_grad_(False)
    if adapters:
        return _continued(model, method, request, adapters, asked)
    with _without_noise():
        config = method.config(model, request)
    shorten(config)
    adapted = _with_types(_made(model, config), options)
    if residual.begins_outside(options.init_weights):
        residual.begin(adapted, request)
    return adapted


def require_whole(model: PreTrainedModel) -> None:
    """Refuse to train the weights of a quantized model themselves: a few bits have no room for a small step."""
    if is_quantized(model):
        raise UsageError(
            "--tuner_type full cannot train quantized weights, only adapters beside them. Use --tuner_type lora, or a "
            "model that is not quantized (drop --quant_method)."
        )


def load_adapters(model: PreTrainedModel, paths: Sequence[str | Path]) -> PreTrainedModel | PeftModel:
    """The model with adapters for inference, all of them active; their effects add up. The model itself without any.

    Raises ModelError when a folder is no adapter, when its weights are missing or damaged, or do not fit the model.
    """
    folders = [adapter_folder(str(path)) for path in paths]
    if any(is_plugged(folder) for folder in folders):
        return load_plugged(model, folders)
    if any(is_own(folder) for folder in folders):
        return load_own(model, folders)
    for folder in folders:
        check_adapter(folder)
    if len(folders) == 1 and residual.fits(model, folders[0]):
        return _as_it_was_trained(model, folders[0]).eval()
    adapted: PreTrainedModel | PeftModel = model
    names: list[str] = []
    for index, folder in enumerate(folders):
        name = "default" if index == 0 else f"adapter_{index}"
        adapted = _read_adapter(adapted, folder, name=name, trainable=False)
        names.append(name)
    if isinstance(adapted, PeftModel) and len(names) > 1:
        tuner = adapted.base_model
        assert isinstance(tuner, BaseTuner), "several adapters are active in the tuner, which PeftModel wraps"
        tuner.set_adapter(names, inference_mode=True)
    return adapted.eval() if paths else adapted


def _as_it_was_trained(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with an adapter that began with what its quantized weights have lost."""
    about = residual.read_residual(folder)
    assert about is not None, "the caller has looked"
    check_adapter(folder)
    config = residual.training_config(saved_config(folder), about)
    adapted = _made(model, config)
    with _misfits(folder, config):
        residual.restore(adapted, folder)
    return adapted


def load_named_adapters(
    model: PreTrainedModel | PeftModel, adapters: Mapping[str, Path]
) -> PreTrainedModel | PeftModel:
    """The model with adapters that are chosen by name, of which none is active yet; the model itself without any.

    Raises UsageError for tuners that cannot be chosen by name, ModelError as `load_adapters`.
    """
    for name, folder in adapters.items():
        if is_plugged(folder) or is_own(folder) or "." in name:
            why = "a name has no dots" if "." in name else "only adapters of peft can be chosen by name"
            raise UsageError(f"--adapters {name}={folder}: {why}.")
        model = _read_adapter(model, folder, name=name, trainable=False)
    return model.eval()


def saved_config(folder: Path) -> PeftConfig:
    """What the adapter in a folder says of itself."""
    with _without_noise():
        return PeftConfig.from_pretrained(str(folder))


def _made(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """A new adapter on a model."""
    try:
        with _without_noise():
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise ModelError(f"This model cannot be given the adapter that was asked for: {_first_lines(error)}") from error
    assert isinstance(adapted, PeftModel), "no mixed adapters were asked for"
    return adapted


def _with_types(adapted: PeftModel, options: TunerOptions) -> PeftModel:
    """The adapter in the types it is trained in."""
    quicken(adapted)
    _cast_trained(adapted)
    if options.lora_dtype is not None:
        _cast_adapter(adapted, options.lora_dtype, str(adapted.dtype).removeprefix("torch."))
    return adapted


def _continued(
    model: PreTrainedModel, method: Method, request: Request, adapters: Sequence[str], asked: Collection[str]
) -> PeftModel:
    """An adapter made before, trainable, with what it was made with in place of the options of this run."""
    if len(adapters) != 1:
        raise UsageError(f"--adapters: training goes on with exactly one adapter (got {len(adapters)}).")
    folder = adapter_folder(adapters[0])
    if is_own(folder):
        raise UsageError(f"--adapters {folder} is none of peft's. Give the --tuner_type that it was made by.")
    config = saved_config(folder)
    _require_kind(folder, config, method)
    about = residual.read_residual(folder)
    if about is not None:
        config = residual.training_config(config, about)
    _require_shape(folder, config, method, request, asked)
    if about is None and not isinstance(config, AdaLoraConfig):
        return _with_types(_read_adapter(model, folder, name="default", trainable=True), request.options)
    check_adapter(folder)
    if isinstance(config, AdaLoraConfig):
        config = adalora.of_full_ranks(config, method.config(model, request), method.schedule)
    config.inference_mode = False
    shorten(config)
    adapted = _with_types(_made(model, config), request.options)
    with _misfits(folder, config):
        (adalora if about is None else residual).restore(adapted, folder)
    return adapted


def _require_shape(folder: Path, config: PeftConfig, method: Method, request: Request, asked: Collection[str]) -> None:
    """Refuse options that the user asked for and that the adapter was not made with; say what holds instead of others."""
    wanted = {**request.options.model_dump(), **request.variants.model_dump()}
    saved = {option: _as_typed(getattr(config, key), wanted[option]) for option, key in method.shape.items()}
    differing = [option for option in method.shape if (wanted[option] or 0) != (saved[option] or 0)]
    refused = [f"--{option} {wanted[option]} (it has {saved[option]})" for option in differing if option in asked]
    if refused:
        raise UsageError(
            f"The adapter {folder} was made with another shape than {', '.join(refused)}. Drop that option."
        )
    for option in differing:
        get_logger().info("%s = %s, as the adapter was made with", option, saved[option])


def _as_typed(saved: Any, wanted: Any) -> Any:
    """A saved value as the option has it: what is true or "bat" in a config is a word on the command line."""
    return str(saved).lower() if isinstance(wanted, str) and isinstance(saved, bool) else saved


def _require_kind(folder: Path, config: PeftConfig, method: Method) -> None:
    """Refuse to go on with an adapter of another kind than `--tuner_type`, which says its own."""
    if type(config) is method.saved:
        return
    found = method_of(config)
    if found is None:
        raise ModelError(
            f"--adapters {folder} is a {kind_of(config)} adapter, and none of those that are trained here: "
            f"{', '.join(METHODS)}."
        )
    raise UsageError(
        f"--adapters {folder} is a {kind_of(config)} adapter. Go on with its own type: --tuner_type {found[0]}."
    )


def _read_adapter(model: PreTrainedModel | PeftModel, folder: Path, *, name: str, trainable: bool) -> PeftModel:
    """Add a saved adapter to a model; every weight must find its place, and every place its weight."""
    stored = check_adapter(folder)
    config = saved_config(folder)
    if isinstance(config, LoraConfig) and str(config.init_lora_weights).startswith(INEXACT_INITS):
        get_logger().warning(
            "%s was initialised with %s, which changed the weights it was trained on: unless it was converted when it "
            "was saved, it does not fit the original model.", folder, config.init_lora_weights,
        )  # fmt: skip
    with _misfits(folder, config):
        warnings.filterwarnings("error", message=".*missing adapter keys")  # they would be left at random
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
            adapted = model
        else:
            if trainable:
                shorten(config)
            adapted = PeftModel.from_pretrained(
                model, str(folder), adapter_name=name, is_trainable=trainable, config=config
            )
    with _without_noise():
        places = set(get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False))
    unplaced = sorted((stored or set()) - places - set(adapted.state_dict()))
    if unplaced:
        raise _misfit(folder, config, f"{len(unplaced)} of its weights have no place there, {unplaced[0]} among them")
    return adapted


@contextmanager
def _misfits(folder: Path, config: PeftConfig) -> Iterator[None]:
    """What goes wrong while a saved adapter is put on a model is said in terms of options."""
    try:
        with _without_noise():
            yield
    except (RuntimeError, ValueError, KeyError, TypeError, UserWarning, SafetensorError) as error:
        raise _misfit(folder, config, _first_lines(error)) from error


@contextmanager
def _without_noise() -> Iterator[None]:
    """Warnings that a user cannot act on are not shown.

    peft 0.21 asks transformers 5.23 for checkpointing by an older name; and it warns of every adapter on a tied
    embedding, which here is trained as one matrix when it is trained whole, and is untied when it is merged.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*", category=UserWarning)
        # of BOFT's kernel for several butterfly factors, and here there is one; of VeRA without its random matrices
        warnings.filterwarnings(
            "ignore", message=".*CUDA extension.*|.*boft_n_butterfly_factor.*", category=UserWarning
        )
        warnings.filterwarnings("ignore", message="Specified to not (load|save) vera_A.*", category=UserWarning)
        # AdaLoRA's pattern names parameters, and peft looks for layers of these names; its layers may have rank 0
        warnings.filterwarnings("ignore", message=".*rank_pattern keys.*lora_E.*", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message=".*have invalid shape.*", category=PeftWarning)
        yield


def _misfit(folder: Path, config: PeftConfig, why: str) -> ModelError:
    return ModelError(
        f"--adapters {folder} does not fit the model: {why}. It was trained on {config.base_model_name_or_path}; pass "
        f"that model with --model."
    )


def _cast_trained(model: torch.nn.Module) -> None:
    """float16 has no room for the small steps of an optimizer: what is trained is kept in float32."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.float16:
            parameter.data = parameter.data.float()


def _cast_adapter(model: PreTrainedModel | PeftModel, dtype: str, model_dtype: str) -> None:
    """`--lora_dtype`: the type of the adapter's matrices; modules trained whole keep theirs."""
    if dtype == "float16" and mixed_precision(model_dtype) == "fp16":
        raise UsageError(
            "--lora_dtype float16 cannot be trained in fp16 mixed precision, which keeps float32 values of what it "
            "trains. Use --lora_dtype float32, or --torch_dtype bfloat16."
        )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch_dtype(dtype))


def _first_lines(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:3]).rstrip(".")
