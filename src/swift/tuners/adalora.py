"""This file knows what AdaLoRA does between the steps of a training, and what of it a checkpoint must hold.

W x + scale B diag(E) A x: each matrix has as many triplets (a row of A, a value of E, a column of B) as ranks. After
every optimizer step the triplets are ranked by how much the loss depends on them, and those beyond the budget of the
step have their value set to zero (AdaLoRA, arXiv:2303.10512, algorithm 1). They may come back while ranks are still
shrinking, so that a saved adapter, from which they are gone, is not enough to go on exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    AdaLoraModel,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.adalora.layer import SVDLinear
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from swift.core.errors import RunError, UsageError

ADAPTER = "default"
FILE = "adapter_model.safetensors"
STATE = "adalora_state.safetensors"
"""All triplets, and the smoothed importance of their elements: what a checkpoint has beside the adapter."""
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What peft's allocator remembers: name of the parameter -> tensor of its shape."""
LEARNT = ("lora_A", "lora_B", "lora_E")


def is_adalora(model: nn.Module) -> bool:
    """Whether a model has an AdaLoRA adapter."""
    return isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel)


def orthogonality(model: PeftModel) -> Tensor:
    """The penalty that keeps triplets apart, weighted: the mean over all A and B of |A A^T - I| and |B^T B - I|.

    In the Frobenius norm (equation 4 of the paper, where the norm is squared; peft's models are trained with the norm).
    """
    penalties = []
    for _, layer in triplet_layers(model):
        for rows_RK in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].T):
            gram_RR = rows_RK @ rows_RK.T
            penalties.append(torch.linalg.matrix_norm(gram_RR - torch.eye(len(gram_RR), device=gram_RR.device)))
    return _config(model).orth_reg_weight * torch.stack(penalties).mean()


def allocate(model: PeftModel, step: int) -> None:
    """Rank the triplets and zero those beyond the budget, after the optimizer step of this number, counted from 1.

    Needs the gradients of that step. A parameter without one did not matter in it, and of a step that was skipped
    because its gradients are no numbers nothing is learnt.
    """
    for name, parameter in model.named_parameters():
        if _is_learnt(name):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    _tuner(model).update_and_allocate(step)


def save_state(model: PeftModel, folder: Path) -> None:
    """Write beside a saved adapter what going on exactly takes."""
    state = {f"learnt/{name}": value.detach() for name, value in model.named_parameters() if _is_learnt(name)}
    allocator = _tuner(model).rankallocator
    for kind in IMPORTANCE:
        state |= {f"{kind}/{name}": value for name, value in vars(allocator)[kind].items()}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / STATE)


def restore(model: PeftModel, folder: Path) -> None:
    """Bring the full-rank adapter of a model to where a saved one was.

    Triplets that are gone from the adapter come from the state beside it; without one they stay as they are with the
    value 0, so that the function is the same.
    """
    pattern = _pattern(folder)
    own = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    saved = {name: _spread(name, tensor, own, pattern) for name, tensor in load_file(folder / FILE).items()}
    left = set_peft_model_state_dict(model, saved, ADAPTER)
    assert not left.unexpected_keys, f"{folder} has what the model has not: {left.unexpected_keys[:3]}"
    state = load_file(folder / STATE) if (folder / STATE).is_file() else {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"learnt/{name}" in state:
                parameter.copy_(state[f"learnt/{name}"])


def resume(model: PeftModel, folder: Path) -> None:
    """Bring the adapter and the allocation of its ranks to where they were when the training was saved.

    Raises RunError when the state beside the adapter is missing.
    """
    if not (folder / STATE).is_file():
        raise RunError(f"{folder} cannot be continued: it lacks {STATE}. Start a new run from it with --adapters.")
    restore(model, folder)
    pattern = _pattern(folder)
    _config(model).rank_pattern = pattern or None  # type: ignore[assignment]  # peft says list, and means a mapping
    devices = {name: parameter.device for name, parameter in _tuner(model).model.named_parameters()}
    for entry, tensor in load_file(folder / STATE).items():
        kind, _, name = entry.partition("/")
        if kind in IMPORTANCE:
            vars(_tuner(model).rankallocator)[kind][name] = tensor.to(devices[name])


def of_full_ranks(saved: AdaLoraConfig, wanted: PeftConfig, schedule: Sequence[str]) -> AdaLoraConfig:
    """The config of a saved adapter for a training that goes on with it: of all ranks, and with the schedule of this run."""
    config = dataclasses.replace(saved, rank_pattern=None, **{key: vars(wanted)[key] for key in schedule})
    if config.target_r >= config.init_r:
        raise UsageError(
            f"--adalora_target_r {config.target_r} must be less than the {config.init_r} ranks of the adapter."
        )
    return config


def triplet_layers(model: PeftModel) -> Iterator[tuple[str, SVDLinear]]:
    """The adapted layers, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, SVDLinear):
            yield name, module


def _pattern(folder: Path) -> dict[str, list[bool]]:
    """Name of E in the model -> which triplets are left; {} before ranks have shrunk."""
    found: Any = PeftConfig.from_pretrained(str(folder)).rank_pattern  # type: ignore[attr-defined]  # it is the config of AdaLoRA
    return {name.removesuffix(f".{ADAPTER}"): kept for name, kept in (found or {}).items()}


def _spread(name: str, tensor: Tensor, own: Mapping[str, Tensor], pattern: Mapping[str, list[bool]]) -> Tensor:
    """A saved tensor in the places of its triplets among all; values of the others are 0, their vectors as they are."""
    layer, _, part = name.rpartition(".")
    kept = pattern.get(f"{layer.removeprefix('base_model.model.')}.lora_E")
    if part not in LEARNT or kept is None:
        return tensor
    whole = torch.zeros_like(own[name]) if part == "lora_E" else own[name].clone()
    places = torch.tensor(kept)
    if part == "lora_B":
        whole[:, places] = tensor.to(whole)
    else:
        whole[places] = tensor.to(whole)
    return whole


def _is_learnt(name: str) -> bool:
    return any(part in name.split(".") for part in LEARNT)


def _tuner(model: PeftModel) -> AdaLoraModel:
    assert isinstance(model.base_model, AdaLoraModel), "the caller has looked"
    return model.base_model


def _config(model: PeftModel) -> AdaLoraConfig:
    config = model.peft_config[ADAPTER]
    assert isinstance(config, AdaLoraConfig), "an AdaLoRA model has its config"
    return config
