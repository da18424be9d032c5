"""This file knows how an adapter becomes part of the weights, and how it is shown that nothing else changed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraModel, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from swift.core.errors import ModelError
from swift.core.logs import get_logger
from swift.models.info import adapter_folder
from swift.tuners.attach import load_adapters, saved_config
from swift.tuners.methods import METHODS, kind_of, method_of
from swift.tuners.own.methods import is_own, merge_own
from swift.tuners.plugin import is_plugged
from swift.tuners.probe import logits_for, spread_prompt

TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""How far merged logits may be from those with the adapter, as a share of their norm: what rounding the sums W + BA to
the type of the weights explains, and a lost matrix or a wrong scale does not."""


@dataclass(frozen=True)
class Merged:
    """A model with its adapters in its weights, and what it said to some prompts before, float32 on the CPU.

    without, with_adapter: logits [T, V] for each prompt, of the model alone and of the model with its adapters.
    """

    model: PreTrainedModel
    without: list[Tensor]
    with_adapter: list[Tensor]


def merge(model: PreTrainedModel, adapters: Sequence[str | Path]) -> PreTrainedModel:
    """The model with the adapters added into its weights, in their type: W + scale B A for every adapted matrix.

    The model is changed in place. Merged and unmerged logits of a short prompt are compared before it is given back.
    Raises ModelError for adapters that cannot be merged, with the reason, and when the logits differ by more than
    rounding explains.
    """
    return merge_heard(model, adapters, [spread_prompt(model)]).model


def merge_heard(model: PreTrainedModel, adapters: Sequence[str | Path], prompts: Sequence[Sequence[int]]) -> Merged:
    """As `merge`, with what the model says to prompts of one's own: token ids, compared in place of the short one."""
    if not adapters:
        raise ModelError("There is nothing to merge: --adapters names no adapter.")
    folders = [adapter_folder(str(path)) for path in adapters]
    if any(is_plugged(folder) for folder in folders):
        raise ModelError(
            f"--adapters {' '.join(map(str, folders))} cannot be merged: how a tuner of your own changes weights is not "
            f"known here. Use it unmerged, with --adapters."
        )
    without = [logits_for(model, prompt) for prompt in prompts]
    if any(is_own(folder) for folder in folders):
        merged = merge_own(model, folders)
        return Merged(merged, without, [logits_for(merged, prompt) for prompt in prompts])
    for path in adapters:
        require_mergeable(saved_config(adapter_folder(str(path))), Path(path))
    if model.config.to_dict().get("quantization_config"):
        raise ModelError(
            f"{model.config.name_or_path} is quantized, and an adapter cannot be added into quantized weights without "
            f"loss. Merge into the model it was quantized from."
        )
    adapted = load_adapters(model, adapters)
    assert isinstance(adapted, PeftModel), "there is at least one adapter"
    before = [logits_for(adapted, prompt) for prompt in prompts]
    _untie(adapted)
    merged = _fold(adapted).requires_grad_(False)
    _require_equal(before, [logits_for(merged, prompt) for prompt in prompts], model.dtype)
    return Merged(merged, without, before)


def require_mergeable(config: PeftConfig, folder: Path) -> None:
    """Refuse an adapter that no weight matrix can hold, saying why."""
    found = method_of(config)
    if found is None:
        why: str | None = f"it is a {kind_of(config)} adapter, and those that can be merged are {', '.join(METHODS)}"
    else:
        why = found[1].unmergeable(config)
    if why:
        raise ModelError(f"--adapters {folder} cannot be merged: {why}. Use it unmerged, with --adapters.")


def relative_errors(expected_TV: Tensor, found_TV: Tensor) -> Tensor:
    """|found - expected| / |expected| for each position, in the Euclidean norm: a vector of T numbers."""
    return (found_TV - expected_TV).norm(dim=-1) / expected_TV.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)


def distance(expected: Sequence[Tensor], found: Sequence[Tensor], dtype: torch.dtype) -> float:
    """How far logits [T, V] of some prompts are apart, as a share of their norm: the worst prompt counts.

    Of a prompt the worst position counts in float32; in half precision the median one, because rounding may send
    single tokens to another expert.
    """
    errors = [relative_errors(before_TV, after_TV) for before_TV, after_TV in zip(expected, found, strict=True)]
    of_prompts = [errors_T.max() if dtype == torch.float32 else errors_T.median() for errors_T in errors]
    return float(torch.stack(of_prompts).max())  # a value that is not a number stays one


def _require_equal(before: Sequence[Tensor], after: Sequence[Tensor], dtype: torch.dtype) -> None:
    """The gate: merged is unmerged, but for rounding."""
    error = distance(before, after, dtype)
    tolerance = TOLERANCES[dtype]
    name = str(dtype).removeprefix("torch.")
    if not error <= tolerance:  # also when the error is not a number
        raise ModelError(
            f"The merged model does not equal the model with its adapter: their logits differ by {error:.2g} of their "
            f"norm, and {tolerance:.2g} is what rounding to {name} explains. Nothing was saved. Use the adapter "
            f"unmerged, or merge in more precision: --torch_dtype float32."
        )
    get_logger().info("merged = adapter: logits differ by %.2g of their norm (limit %.2g, %s)", error, tolerance, name)


def _fold(adapted: PeftModel) -> PreTrainedModel:
    """Add the matrices into the weights and take the adapter away."""
    tuner = cast("LoraModel", adapted.base_model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")  # the gate answers this worry
        try:
            return cast("PreTrainedModel", tuner.merge_and_unload(safe_merge=True))
        except (ValueError, NotImplementedError) as error:
            raise ModelError(f"The adapter cannot be merged: {str(error).strip()}") from error


def _untie(adapted: PeftModel) -> None:
    """Give the output layer a matrix of its own where it shares one with the embedding and either is adapted.

    Added into the shared matrix, an adapter of one would act on the other too.
    """
    model: PreTrainedModel = cast("LoraModel", adapted.base_model).model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not (isinstance(embedding, BaseTunerLayer) or isinstance(head, BaseTunerLayer)):
        return
    source, target = _without_adapter(embedding), _without_adapter(head)
    if source.weight is target.weight:
        target.weight = nn.Parameter(source.weight.detach().clone(), requires_grad=False)
        get_logger().info("The embedding and the output layer differ from now on: the adapter changes one of them.")


def _without_adapter(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
