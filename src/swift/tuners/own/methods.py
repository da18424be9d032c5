"""This file knows our own methods by name: how each changes a model, is trained on, loaded, and merged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from swift.core.errors import ModelError, UsageError
from swift.core.logs import get_logger
from swift.models.info import adapter_folder, read_json
from swift.options.tuner_variants import TunerVariantOptions
from swift.tuners.own.bottleneck import BottleneckConfig, add_bottlenecks
from swift.tuners.own.folder import CONFIG, Tuning, carry, drop, is_own, misfit, tuning_of
from swift.tuners.own.layers import decoder_layers
from swift.tuners.own.llamapro import LlamaProConfig, expand
from swift.tuners.own.reft import ReftConfig, add_interventions, fix_directions
from swift.tuners.request import Request
from swift.tuners.targets import modules_to_save

NUM_LAYERS = "num_base_layers"
"""The setting that says how many layers the model had: names of layers mean something in a model of as many only."""


@dataclass(frozen=True)
class OwnMethod:
    """A way to change a model.

    config: a dataclass of its settings. apply: changes the model and names the new modules. options: option -> the
    field of `config` it sets. unmergeable: why its effect is no matter of weights; None when it can be merged.
    fix: what is computed once and for all in a model that learns no more.
    """

    config: Callable[..., Any]
    apply: Callable[[PreTrainedModel, Any], list[str]]
    options: Mapping[str, str]
    unmergeable: str | None
    fix: Callable[[PreTrainedModel], None] = lambda _: None


OWN_METHODS = {
    "llamapro": OwnMethod(
        LlamaProConfig,
        expand,
        {"llamapro_num_new_blocks": "num_new_blocks", "llamapro_num_groups": "num_groups"},
        None,
    ),
    "adapter": OwnMethod(
        BottleneckConfig,
        add_bottlenecks,
        {"adapter_length": "length", "adapter_act": "act"},
        "a bottleneck is a network with an activation of its own, which no weight of the model can hold",
    ),
    "reft": OwnMethod(
        ReftConfig,
        add_interventions,
        {
            "reft_layers": "layers", "reft_rank": "rank", "reft_intervention_type": "intervention_type",
            "reft_args": "args",
        },
        "it edits what layers put out, on the way from one to the next, where the model has no weight",
        fix_directions,
    ),
}  # fmt: skip
"""`--tuner_type` -> the method."""


def attach_own(
    model: PreTrainedModel, method: str, request: Request, *, adapters: Sequence[str], asked: Collection[str]
) -> PreTrainedModel:
    """The model changed by one of our methods and ready to learn: what is new is trained, and `--modules_to_save`.

    With `adapters` it goes on with that one, in the shape it was made with; of the options that the user `asked` for,
    none may want another. Raises UsageError and ModelError for what does not fit.
    """
    if len(adapters) > 1:
        raise UsageError(f"--adapters: training goes on with exactly one adapter (got {len(adapters)}).")
    if adapters:
        folder = adapter_folder(adapters[0])
        if not is_own(folder):
            raise UsageError(
                f"--adapters {folder} was not made by --tuner_type {method}. Give the type it was made by."
            )
        _require_same(method, folder, request.variants, asked)
        tuning = _load(model, folder)
    else:
        _, layers = decoder_layers(model)
        config = {field: getattr(request.variants, option) for option, field in OWN_METHODS[method].options.items()}
        settings = {**config, NUM_LAYERS: len(layers)}
        tuning = _apply(model, method, settings, _ending_with(model, modules_to_save(model, request.options)))
    model.requires_grad_(False)
    for place in tuning.places:
        model.get_submodule(place).requires_grad_(True)
    _require_learnt(model, request.run.new_token_ids)
    return model


def load_own(model: PreTrainedModel, folders: Sequence[Path]) -> PreTrainedModel:
    """The model as one of our methods has trained it, for inference. Raises ModelError for several adapters at once."""
    if len(folders) > 1:
        raise ModelError(
            f"--adapters {' '.join(map(str, folders))}: adapters made by --tuner_type {', '.join(OWN_METHODS)} are used "
            f"one at a time, and not beside others. Give one of them."
        )
    tuning = _load(model, folders[0])
    OWN_METHODS[tuning.method].fix(model)
    return model.requires_grad_(False).eval()


def merge_own(model: PreTrainedModel, folders: Sequence[Path]) -> PreTrainedModel:
    """A model of its own, with what was trained among its weights. Raises ModelError, with the reason, when it cannot."""
    for folder in folders:
        why = OWN_METHODS[_method_of(folder)].unmergeable if is_own(folder) else None
        if why:
            raise ModelError(f"--adapters {folder} cannot be merged: {why}. Use it unmerged, with --adapters.")
    merged = load_own(model, folders)
    drop(merged)
    get_logger().info("merged: %d layers, nothing was computed anew", len(decoder_layers(merged)[1]))
    return merged


def _apply(model: PreTrainedModel, method: str, settings: Mapping[str, Any], whole: Sequence[str]) -> Tuning:
    """Change the model, and let it carry how; `whole` are names that modules had before."""
    kept = [model.get_submodule(name) for name in whole]
    known = OWN_METHODS[method]
    config = known.config(**{field: settings[field] for field in known.options.values()})
    added = known.apply(model, config)
    now = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    places = [*added, *(now[id(module)] for module in kept)]
    tuning = Tuning(method, {**settings, **asdict(config)}, places, whole)
    carry(model, tuning)
    return tuning


def _load(model: PreTrainedModel, folder: Path) -> Tuning:
    """Repeat on the model what a saved adapter was made by, and read its weights."""
    saved = read_json(folder / CONFIG)
    method = _method_of(folder)
    _, layers = decoder_layers(model)
    settings = {field: saved[field] for field in OWN_METHODS[method].options.values() if field in saved}
    if len(settings) < len(OWN_METHODS[method].options) or NUM_LAYERS not in saved:
        raise ModelError(f"{folder / CONFIG} does not say all settings of {method}. Copy the checkpoint again.")
    if saved[NUM_LAYERS] != len(layers):
        raise misfit(folder, f"it was made for {saved[NUM_LAYERS]} layers, and the model has {len(layers)}")
    names = dict(model.named_modules(remove_duplicate=False))
    absent = [name for name in saved["modules_to_save"] if name not in names]
    if absent:
        raise misfit(folder, f"the model has no module {absent[0]}")
    tuning = _apply(model, method, {**settings, NUM_LAYERS: len(layers)}, saved["modules_to_save"])
    tuning.load(model, folder)
    return tuning


def _method_of(folder: Path) -> str:
    method = read_json(folder / CONFIG)["swift_type"]
    if method not in OWN_METHODS:
        raise ModelError(f"--adapters {folder} was made by {method}, which is none of {', '.join(OWN_METHODS)}.")
    return method


def _require_same(method: str, folder: Path, variants: TunerVariantOptions, asked: Collection[str]) -> None:
    """Training goes on in the shape that was saved; what the user asked for must not be another."""
    made_by = _method_of(folder)
    if made_by != method:
        raise UsageError(f"--adapters {folder} was made by --tuner_type {made_by} (got {method}). Give that type.")
    saved = read_json(folder / CONFIG)
    for option, field in OWN_METHODS[method].options.items():
        wanted = getattr(variants, option)
        if wanted == saved.get(field):
            continue
        if option in asked:
            raise UsageError(
                f"The adapter {folder} was made with another shape than --{option} {wanted} (it has {saved.get(field)}). "
                f"Drop that option."
            )
        get_logger().info("%s = %s, as the adapter was made with", option, saved.get(field))


def _require_learnt(model: PreTrainedModel, new_token_ids: Sequence[int]) -> None:
    """New tokens have rows in embedding and output layer that mean nothing before they are trained."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    frozen = [end for end in ends if end is not None and not all(p.requires_grad for p in end.parameters())]
    if new_token_ids and frozen:
        names = [
            name.rpartition(".")[2] for name, module in model.named_modules() if any(module is end for end in ends)
        ]
        raise UsageError(
            f"--new_special_tokens are not learnt as long as the embedding stays as it is. Train it along: "
            f"--modules_to_save {' '.join(names)}."
        )


def _ending_with(model: nn.Module, suffixes: Sequence[str]) -> list[str]:
    """The full names of the modules that suffixes name."""
    names = [name for name, _ in model.named_modules()]
    return [name for name in names if any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)]


__all__ = ["OWN_METHODS", "attach_own", "is_own", "load_own", "merge_own", "tuning_of"]
