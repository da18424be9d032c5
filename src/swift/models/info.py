"""This file knows what a checkpoint says of itself, before any of its weights is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.catalog.families_text import FAMILIES
from swift.catalog.family import Family
from swift.core.errors import ModelError
from swift.core.logs import get_logger
from swift.core.paths import is_dir
from swift.hub.base import looks_like_id
from swift.hub.models import NOT_NEEDED, Access, model_folder, name_of
from swift.models.families import family, family_named
from swift.models.knobs import tell_knobs
from swift.models.precision import dtype_of_this_machine
from swift.models.rope import RopePlan, plan_rope
from swift.models.weights import check_folder, check_weight_file, weight_files
from swift.options.model import ModelOptions

LENGTH_KEYS = (
    "seq_length", "max_position_embeddings", "n_positions", "model_max_length", "seq_len", "max_seq_len",
    "max_sequence_length", "max_seq_length",
)  # fmt: skip
"""The names under which configs say the longest context; the smallest that is present counts."""
TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where the config of the language model lies inside that of a model with other senses."""
OTHER_SENSES = (
    "vision_config",
    "visual",
    "vit_config",
    "audio_config",
    "speech_config",
    "video_config",
    "img_processor",
)
MOE_KEYS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "num_local_experts")
DTYPE_KEYS = ("dtype", "torch_dtype", "params_dtype")
HALF_QUANTIZED = frozenset({"gptq", "awq", "aqlm"})
"""Quantizations whose kernels compute in float16."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model from its config.json and the options, without its weights.

    path: the folder of the checkpoint, absolute.
    model_type, architectures: as the config names them.
    family: what `--model_type` names: as given, else as the name, the args.json or the architecture tells, else None.
    dtype: the type the weights are loaded in: `--torch_dtype`, else the checkpoint's, else what suits this machine.
    max_length: the longest context in tokens, after `--rope_scaling` and `--max_model_len`; None when nobody says.
    rope: the changes of the rotary embedding that loading applies.
    quantization: the method the stored weights are quantized with (gptq, awq, fp8, ...), or None.
    ties_embeddings: the output projection is the embedding matrix.
    needs_remote_code: the checkpoint brings its own Python code for its architecture.
    adapters: the folders given with `--adapters`, each with an adapter_config.json.
    repository: the folder of `--local_repo_path`, from which the loader of the family imports.
    """

    path: Path
    model_type: str
    architectures: tuple[str, ...]
    family: str | None
    dtype: str
    max_length: int | None
    rope: RopePlan
    vocab_size: int | None
    is_moe: bool
    is_multimodal: bool
    quantization: str | None
    ties_embeddings: bool
    needs_remote_code: bool
    adapters: tuple[Path, ...] = ()
    repository: Path | None = None

    @property
    def name(self) -> str:
        """The name of the folder, or of the repository it is a copy of: what served models are called after."""
        return name_of(self.path)


def model_info(options: ModelOptions, hub: Access | None = None) -> ModelInfo:
    """Read what the checkpoint of `--model` says of itself.

    Names that are no folders are fetched from `hub`; with None there must be folders. Without `--model`, the model is
    the one that the first of `--adapters` was trained on. Raises ModelError when a folder, its config or the base of an
    adapter is missing.
    """
    adapters = tuple(adapter_folder(name, hub) for name in options.adapters)
    path = _model_folder(options, adapters, hub)
    config = read_json(path / "config.json")
    text = text_config(config)
    rope = plan_rope(options.rope_scaling, options.max_model_len, _rope_of(text), _max_length(config))
    if rope.warning:
        get_logger().warning(rope.warning)
    quantization = _quantization(config)
    architectures = tuple(config.get("architectures") or ())
    model_type = str(config.get("model_type") or "")
    known = family(options.model_type, architectures, model_type, path, _noted_family(path))
    row = FAMILIES.get(known or "")
    tell_knobs(options.model_kwargs or {}, known)
    return ModelInfo(
        path=path,
        model_type=model_type,
        architectures=architectures,
        family=known,
        dtype=options.torch_dtype or (row and row.dtype) or _dtype(config, quantization) or dtype_of_this_machine(),
        max_length=rope.max_length,
        rope=rope,
        vocab_size=text.get("vocab_size"),
        is_moe=any("moe" in name.lower() for name in architectures) or any(text.get(key) for key in MOE_KEYS),
        is_multimodal=any(config.get(key) for key in OTHER_SENSES) or (row is not None and row.is_multimodal),
        quantization=quantization.get("quant_method"),
        ties_embeddings=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        needs_remote_code=bool(config.get("auto_map")),
        adapters=adapters,
        repository=_repository(options.local_repo_path, row, path),
    )


def require_weights(info: ModelInfo) -> list[Path]:
    """The files of weights of a model. Raises ModelError when there are none, or an index names absent ones."""
    files = weight_files(info.path)
    if not files:
        found = ", ".join(sorted(child.name for child in info.path.iterdir())[:8])
        raise ModelError(
            f"--model {info.path} holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index of "
            f"several. It holds: {found}. Copy the weights there, or pass the folder that has them."
        )
    return files


def check_weights(info: ModelInfo) -> None:
    """`--check_model`: every file of weights of the model and of its adapters is whole and fits its index.

    Only headers are read. Raises ModelError naming the file, the bytes expected and the bytes found.
    """
    require_weights(info)
    check_folder(info.path)
    for adapter in info.adapters:
        check_adapter(adapter)


def check_adapter(folder: Path) -> set[str] | None:
    """The names of an adapter's weights, whose file is there and whole, else ModelError; None for a `.bin` file."""
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return check_weight_file(folder / name)
    raise ModelError(
        f"--adapters {folder} holds an adapter_config.json and no adapter_model.safetensors: the weights of the "
        f"adapter are missing. Copy the checkpoint again, or pass another checkpoint of that run."
    )


def adapter_folder(name: str, hub: Access | None = None) -> Path:
    """The folder of an adapter given with `--adapters`: itself, or the `default` folder inside it.

    An id is fetched from `hub`. Raises ModelError when there is no adapter_config.json; a whole model says to pass it
    with `--model`.
    """
    folder = model_folder(name, "--adapters", hub, None)
    for candidate in (folder, folder / "default"):
        if (candidate / "adapter_config.json").is_file():
            return candidate
    if (folder / "config.json").is_file():
        raise ModelError(f"--adapters {name} is a whole model, not an adapter; pass it with --model {name}.")
    inside = sorted(child.parent.name for child in folder.glob("*/adapter_config.json"))
    hint = f" Inside it there are adapters: {', '.join(inside[:6])}." if inside else ""
    raise ModelError(f"--adapters {name} is no adapter: it holds no adapter_config.json.{hint}")


def base_of_adapter(adapter: Path) -> str | None:
    """The model an adapter was trained on, as its args.json or its adapter_config.json names it; None if neither.

    A name under which there is a folder goes before one that only a hub can know, and that before one that is nothing.
    """
    named: list[str] = []
    for folder in (adapter, adapter.parent):
        if (folder / "args.json").is_file():
            named.append(read_json(folder / "args.json").get("model") or "")
    named.append(read_json(adapter / "adapter_config.json").get("base_model_name_or_path") or "")
    for fits in (is_dir, looks_like_id, bool):
        found = [name for name in named if name and fits(name)]
        if found:
            return found[0]
    return None


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model; the config itself for a text model."""
    return list(_text_configs(config))[-1]


def read_json(path: Path) -> dict[str, Any]:
    """The mapping a JSON file of a checkpoint holds. Raises ModelError when it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is no valid JSON: {error.msg} in line {error.lineno}. Copy it again.") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path} is no text file, though it should hold JSON. Copy it again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} should hold a JSON object, and holds a {type(value).__name__}. Copy it again.")
    return value


def _model_folder(options: ModelOptions, adapters: tuple[Path, ...], hub: Access | None) -> Path:
    """The folder of the model, with its config.json in it."""
    if options.model is None and not adapters:
        raise ModelError("--model is missing: pass the local folder of a checkpoint.")
    name = options.model
    if name is None:
        name = base_of_adapter(adapters[0])
        known = name is not None and (is_dir(name) or (hub is not None and looks_like_id(name)))
        if name is None or not known:
            raise ModelError(
                f"--adapters {adapters[0]} was trained on {name or 'a model it does not name'}, which is not on this "
                f"machine under that path. Pass the model it belongs to: --model <folder>."
            )
        get_logger().info("model = %s, which the adapter was trained on", name)
    row = family_named(name, options.model_type)
    ignored = NOT_NEEDED if row is None or row.ignored_files is None else row.ignored_files
    folder = model_folder(name, "--model", hub, options.model_revision, ignored)
    if (folder / "config.json").is_file():
        return folder
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"--model {name} is an adapter, not a model; pass it with --adapters {name} "
            f"(and --model with the model it was trained on)."
        )
    inside = sorted(child.parent.name for child in folder.glob("*/config.json"))
    hint = f" Inside it there are models: {', '.join(inside[:6])}." if inside else ""
    raise ModelError(f"--model {name} is no checkpoint: it holds no config.json.{hint}")


def _repository(option: str | None, row: Family | None, path: Path) -> Path | None:
    """The clone of the source repository that the loader of a family imports from."""
    wanted = "" if row is None else row.repository
    if option is None and not wanted:
        return None
    if option is None:
        raise ModelError(
            f"--model {path} is loaded with source code of {wanted}. Run: git clone {wanted}, and pass its folder with "
            f"--local_repo_path."
        )
    if not wanted:
        raise ModelError(
            f"--local_repo_path {option} has no effect on {path}: its family ({row.name if row else 'none known'}) is "
            f"loaded without source code of a repository. Drop it."
        )
    folder = Path(option).expanduser().absolute()
    if not folder.is_dir():
        raise ModelError(f"--local_repo_path {option} is no folder. Pass the folder of a clone of {wanted}.")
    return folder


def _noted_family(path: Path) -> str | None:
    """The family that the run which wrote this checkpoint was told, or found."""
    return read_json(path / "args.json").get("model_type") if (path / "args.json").is_file() else None


def _text_configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config, and the configs of the language model nested in it, outermost first."""
    yield config
    for key in TEXT_CONFIGS:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            yield from _text_configs(inner)
            return


def _max_length(config: Mapping[str, Any]) -> int | None:
    lengths = [inner[key] for inner in _text_configs(config) for key in LENGTH_KEYS if isinstance(inner.get(key), int)]
    return min((length for length in lengths if length > 0), default=None)


def _rope_of(text: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The rope scaling of a config; that of full attention where layers differ in it."""
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(rope, Mapping):
        return None
    return rope.get("full_attention", rope)


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantization of the stored weights; {} when they are not quantized."""
    for inner in _text_configs(config):
        if isinstance(inner.get("quantization_config"), Mapping):
            return inner["quantization_config"]
    return {}


def _dtype(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> str | None:
    """The type the checkpoint wants its weights loaded in."""
    if quantization.get("quant_method") in HALF_QUANTIZED:
        return "float16"
    if quantization.get("quant_method") == "bitsandbytes" and quantization.get("bnb_4bit_compute_dtype"):
        return str(quantization["bnb_4bit_compute_dtype"]).removeprefix("torch.")
    for inner in _text_configs(config):
        for key in DTYPE_KEYS:
            if isinstance(inner.get(key), str) and inner[key] != "auto":
                return inner[key].removeprefix("torch.")
    return None
