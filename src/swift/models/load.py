"""This file knows how the weights of a checkpoint become a model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_enabled

from swift.core.errors import MissingPackage, ModelError
from swift.core.logs import get_logger
from swift.models.device import devices_here, place, require_trainable
from swift.models.heads import LOADING, Loading, Task, head_names
from swift.models.info import LENGTH_KEYS, ModelInfo, require_weights
from swift.models.initialize import fill_missing
from swift.models.loader import ModelLoader, loader_of, warn_of_missing
from swift.models.precision import torch_dtype
from swift.models.quantize import choose_trainable_kernels, converted, loading_arguments
from swift.models.rope import RopePlan
from swift.models.tasks import require_task
from swift.models.weights import check_folder
from swift.options.model import ModelOptions, QuantizationOptions

FLASH_PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
"""Attention -> the module that must be importable, and the package that brings it."""
_WRITING_HEADS = ("lm_head.", "embed_out.", "output.weight")
"""Beginnings of names of the weights by which a model writes, which other tasks have no place for."""


def load_model(
    info: ModelInfo, options: ModelOptions, quantization: QuantizationOptions | None = None, *, training: bool
) -> PreTrainedModel:
    """The model of a checkpoint with the head of `--task_type`, in `info.dtype`, in evaluation mode, on its devices.

    A classification head that the checkpoint lacks is drawn at random, for training and for adapters that bring one.

    quantization: how its weights are quantized on the way; None leaves them as they are stored.

    Nothing is fetched, and no code of the checkpoint is run unless a plugin asks for it. Raises ModelError when
    transformers does not know the architecture, when weights are damaged, missing or of other shapes than the config
    says; MissingPackage when an attention or a quantization needs one.
    """
    loader, loading = loader_of(info), LOADING[options.task_type]
    loader.auto = loading.auto
    _require_known(info, loader, loading)
    require_task(info, options)
    require_weights(info)
    warn_of_missing(info)
    quantization = quantization or QuantizationOptions()
    sharded = is_deepspeed_zero3_enabled() or is_fsdp_enabled()
    devices = devices_here() if deepspeed_config() is None else devices_here().first
    placement = place(options.device_map, options.max_memory, devices, training=training, sharded=sharded)
    arguments: dict[str, Any] = {
        "dtype": torch_dtype(info.dtype),
        "device_map": placement.device_map,
        "max_memory": placement.max_memory,
        "local_files_only": True,
        **loading_arguments(info, quantization),
        **_implementations(info, options, training=training),
    }
    if loading.auto is AutoModelForSequenceClassification:
        arguments["ignore_mismatched_sizes"] = True  # of a head with other classes; anything else is refused below
    config = task_config(info, options)
    if training:
        choose_trainable_kernels(config)
    model = _read(loader, config, arguments)
    _judge(info, loader.report, model, options, may_be_new=training or bool(info.adapters))
    if options.task_type == "embedding" and "pooler" in dict(model.named_children()):
        model.pooler = None  # type: ignore[assignment]  # made for another task, and in no use here
    if training:
        require_trainable(vars(model).get("hf_device_map"))
    return converted(model, info, quantization, training=training)


def require_means(info: ModelInfo, options: ModelOptions, quantization: QuantizationOptions, *, training: bool) -> None:
    """Raise what `load_model` would raise for a package or device that is not there, without reading any weights."""
    loading_arguments(info, quantization)
    _implementations(info, options, training=training)


def _implementations(info: ModelInfo, options: ModelOptions, *, training: bool) -> dict[str, Any]:
    """The arguments of `from_pretrained` that choose attention and experts."""
    arguments: dict[str, Any] = {}
    if options.attn_impl is not None:
        arguments["attn_implementation"] = attention(options.attn_impl, training=training)
    if options.experts_impl is not None:
        if not info.is_moe:
            raise ModelError(
                f"--experts_impl {options.experts_impl} has no effect on {info.name}: it is no mixture of experts. "
                f"Drop --experts_impl."
            )
        arguments["experts_implementation"] = options.experts_impl
    return arguments


def task_config(info: ModelInfo, options: ModelOptions) -> PreTrainedConfig:
    """The config of a checkpoint with what `--task_type`, `--num_labels` and `--problem_type` say of its head."""
    config = load_config(info)
    count = {"seq_cls": options.num_labels, "reranker": 1}.get(options.task_type)
    if count is not None and config.num_labels != count:
        config.num_labels = count  # which renames the classes, and is left alone where they fit
    if options.task_type == "seq_cls":
        config.problem_type = options.problem_type
    return config


def load_config(info: ModelInfo) -> PreTrainedConfig:
    """The config of a checkpoint as transformers reads it, with `--rope_scaling` and `--max_model_len` applied."""
    try:
        config = loader_of(info).get_config(str(info.path))
    except (ValueError, KeyError, TypeError, OSError, StrictDataclassError) as error:
        raise ModelError(f"{info.path / 'config.json'} is not understood: {_one_line(error)}") from error
    apply_rope(config, info.rope)
    return config


def apply_rope(config: PreTrainedConfig, plan: RopePlan) -> None:
    """Write a plan into the config of the language model: its rope parameters, and each length key it has.

    Where layers differ in their rope, those with full attention are scaled: windows do not grow with the context.
    """
    text = config.get_text_config()
    values = text.to_dict()
    if plan.scaling is not None:
        if "rope_parameters" not in values:
            raise ModelError(
                f"--rope_scaling has no effect on {config.model_type}: it has no rotary position embedding. Drop it."
            )
        text.rope_parameters = _scaled(values["rope_parameters"] or {}, plan.scaling)
    if plan.config_length is not None:
        for key in LENGTH_KEYS:
            if isinstance(values.get(key), int):
                setattr(text, key, plan.config_length)
    if plan.scaling is not None or plan.config_length is not None:
        get_logger().info("rope = %s, context = %s tokens", plan.scaling or "as it is", plan.max_length)


def attention(name: str, *, training: bool) -> str:
    """The name transformers knows an attention by. Raises MissingPackage or ModelError when it cannot run here."""
    name = "flash_attention_2" if name == "flash_attn" else name
    if name == "flex_attention" and training and not torch.accelerator.is_available():
        raise ModelError(
            "--attn_impl flex_attention computes no gradients on a CPU, only replies. Train with --attn_impl sdpa."
        )
    if name not in FLASH_PACKAGES:
        return name
    module, package = FLASH_PACKAGES[name]
    if find_spec(module) is None:
        raise MissingPackage(
            f"--attn_impl {name} needs the package {package}, which is not installed. Run: pip install {package} "
            f"--no-build-isolation (it needs a CUDA GPU), or use --attn_impl sdpa."
        )
    if not torch.cuda.is_available():
        raise ModelError(f"--attn_impl {name} needs a CUDA GPU, and there is none here. Use --attn_impl sdpa.")
    return name


def _read(loader: ModelLoader, config: PreTrainedConfig, arguments: dict[str, Any]) -> PreTrainedModel:
    """Read the weights; what goes wrong on the way is said in terms of files and options."""
    info = loader.info
    is_own = type(loader).get_model is not ModelLoader.get_model  # of a plugin, which may want the tokenizer
    processor = loader.get_processor(str(info.path), config) if is_own else None
    try:
        return loader.get_model(str(info.path), config, processor, arguments)
    except SafetensorError as error:
        check_folder(info.path)  # names the file and its bytes
        raise ModelError(f"The weights in {info.path} cannot be read: {_first_line(error)}") from error
    except ImportError as error:
        raise MissingPackage(f"Loading {info.path} needs a package: {_first_line(error)}") from error
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        check_folder(info.path)
        raise ModelError(f"{info.path} cannot be loaded: {_first_line(error)}") from error


def _judge(
    info: ModelInfo, report: Mapping[str, Any], model: PreTrainedModel, options: ModelOptions, *, may_be_new: bool
) -> None:
    """Refuse a model with weights made up at random, or fill them; name weights that found no place.

    report: {} for a loader that does not tell what was missing. may_be_new: whether a classification head may be.
    """
    missing, unexpected = _found(report, options.task_type)
    heads = tuple(f"{head}." for head in head_names(model))
    if missing and heads and all(name.startswith(heads) for name in missing):
        if not may_be_new:
            raise ModelError(
                f"{info.path} has no classification head of this size ({_some(missing)}): it was not trained for this "
                f"task. Pass the checkpoint that was, or its adapter with --adapters."
            )
        get_logger().info("the classification head is new, drawn at random: %s", _some(missing))
        missing = []
    if options.init_strategy is not None:
        fill_missing(model, missing, options.init_strategy)
    elif missing:
        raise ModelError(
            f"{info.path} lacks {len(missing)} of the weights that its config.json asks for, which would be left at "
            f"random: {_some(missing)}. The config and the weights are not of one model, or files are missing. If they "
            f"are meant to be new, as in an architecture of your own, say how they begin: --init_strategy normal."
        )
    if unexpected:
        get_logger().warning(
            "%d weights of %s have no place in %s and are not used: %s",
            len(unexpected), info.path, " ".join(info.architectures), _some(unexpected),
        )  # fmt: skip


def _require_known(info: ModelInfo, loader: ModelLoader, loading: Loading) -> None:
    """Refuse what neither a plugin nor transformers can build for a task, with the reason."""
    if info.is_multimodal:
        raise ModelError(
            f"--model {info.path} ({info.model_type}) is a multimodal model; not available yet: models with images, "
            f"video or audio. Pass a text model."
        )
    if type(loader) is not ModelLoader or _builds(info.model_type, loading):
        return
    if info.needs_remote_code:
        raise ModelError(
            f"--model {info.path} ({info.model_type}) brings its own Python code, because transformers "
            f"{transformers.__version__} does not know it. Such code runs with all your rights, and is run only when a "
            f"plugin of yours says so: register the model with loader=RemoteCodeLoader and pass it with "
            f"--external_plugins (docs/models.md has the lines)."
        )
    if info.model_type in CONFIG_MAPPING:
        raise ModelError(
            f"--model {info.path} is a {info.model_type} ({', '.join(info.architectures) or 'no architecture named'}), "
            + ("which is no causal language model: it does not continue text." if loading.noun.startswith("causal")
               else f"which transformers does not know as a {loading.noun}.")
        )  # fmt: skip
    raise ModelError(
        f"--model {info.path}: transformers {transformers.__version__} does not know the model_type "
        f"{info.model_type!r} of its config.json. A newer transformers may: pip install -U transformers"
    )


def _builds(model_type: str, loading: Loading) -> bool:
    """Whether transformers, with what plugins registered there, has a model of this type for the task."""
    return model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in loading.known


def _found(report: Mapping[str, Any], task: Task) -> tuple[list[str], list[str]]:
    """The weights that are missing or of another shape, and those without a place, as far as they matter to the task."""
    unexpected = sorted(report.get("unexpected_keys", ()))
    shapes = [str(each[0]) for each in report.get("mismatched_keys", ())]
    missing = sorted([*report.get("missing_keys", ()), *shapes])
    if task not in ("causal_lm", "generative_reranker"):
        unexpected = [name for name in unexpected if not name.startswith(_WRITING_HEADS)]
    if task == "embedding":
        missing = [name for name in missing if not name.startswith("pooler.")]
    return missing, unexpected


def _scaled(existing: Mapping[str, Any], scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Rope parameters with another scaling: base and share of rotated dimensions stay as they are."""
    if isinstance(existing.get("full_attention"), Mapping):
        return {**existing, "full_attention": _scaled(existing["full_attention"], scaling)}
    kept = {key: existing[key] for key in ("rope_theta", "partial_rotary_factor") if key in existing}
    return {**kept, **scaling}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
