"""This file knows what engines of others are given of a model, whichever they are, and what is looked at beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from swift.core.errors import EngineError, UsageError
from swift.core.registry import did_you_mean
from swift.models.info import read_json

UNREADABLE = ("modules_to_save", "use_dora", "bias", "trainable_token_indices")
"""What adapter_config.json says of adapters that only transformers and peft read."""
ALWAYS = "always"
"""The name by which an engine knows the adapter of requests that name none."""


@dataclass(frozen=True)
class Served:
    """What an engine is to serve.

    folder: of the checkpoint. dtype: its weights are loaded in. context_length: None asks config.json.
    adapters: name -> folder, chosen request by request. always: the adapter of requests that name none.
    places: how many adapters share a batch at least; above 0 requests may name adapters that are added later.
    max_logprobs: most alternatives per token that a request may ask for. seed: of the engine.
    overrides: what of config.json is replaced. trusts_code: whether code of the checkpoint may run.
    devices: the GPUs to be used, by number; () leaves the choice to the engine.
    """

    folder: Path
    dtype: str = "auto"
    context_length: int | None = None
    adapters: Mapping[str, Path] | None = None
    always: Path | None = None
    places: int = 0
    max_logprobs: int = 20
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    trusts_code: bool = False
    devices: tuple[int, ...] = ()

    @property
    def named(self) -> dict[str, Path]:
        """The adapters a request may name."""
        return dict(self.adapters or {})

    @property
    def all_adapters(self) -> dict[str, Path]:
        """Name -> folder of all adapters that are to be loaded."""
        return {**self.named, **({} if self.always is None else {ALWAYS: self.always})}

    def adapter_of(self, wanted: str | None) -> str | None:
        """The name of the adapter of a request that wants this one; None is the model alone."""
        if wanted is not None:
            return wanted
        return None if self.always is None else ALWAYS


def check_adapter(folder: Path, backend: str) -> dict[str, Any]:
    """The adapter_config.json of an adapter that is LoRA and nothing else. Raises EngineError for any other."""
    config = read_json(folder / "adapter_config.json")
    kind = config.get("peft_type")
    found = [name for name in UNREADABLE if config.get(name) and config[name] != "none"]
    if kind != "LORA" or found:
        what = f"it is {kind}" if kind != "LORA" else f"it has {' and '.join(found)}"
        raise EngineError(
            f"--infer_backend {backend} cannot read the adapter {folder}: {what}. Merge it (--merge_lora true), or use "
            f"--infer_backend transformers."
        )
    return config


def check_devices(sizes: Mapping[str, int], devices: int | None) -> None:
    """Raises EngineError when the product of these options is more than the number of GPUs; None does not count them."""
    needed = prod(sizes.values())
    if devices is not None and needed > devices:
        asked = " and ".join(f"--{name} {size}" for name, size in sizes.items() if size > 1) or "the model"
        raise EngineError(f"{asked} need {needed} GPUs, and there are {devices}.")


def check_known(option: str, given: Mapping[str, Any], known: Mapping[str, Any], engine: str) -> None:
    """Raises UsageError for further arguments that the installed version of an engine does not have."""
    problems = []
    for name in given:
        if name not in known:
            guess = did_you_mean(name, known)
            problems.append(f"--{option}: the installed {engine} has no argument {name}.{guess}")
    if problems:
        raise UsageError(*problems)


def check_rows(served: Served, tokenizer: PreTrainedTokenizerBase, engine: str) -> None:
    """Raises EngineError for a tokenizer with more tokens than the embedding of the checkpoint has rows."""
    config = read_json(served.folder / "config.json")
    rows = (config.get("text_config") or config).get("vocab_size")
    if rows is not None and len(tokenizer) > rows:
        raise EngineError(
            f"The tokenizer has {len(tokenizer)} tokens and {served.folder} has rows for {rows}: {engine} cannot read the "
            f"tokens that were added. Merge the adapter they were trained with (--merge_lora true)."
        )


def check_gpu(backend: str) -> None:
    """Raises EngineError on a machine without a GPU, for an engine that has no use for any other."""
    if not torch.accelerator.is_available():
        raise EngineError(
            f"--infer_backend {backend} needs a GPU, and torch {torch.__version__} finds none. Use --infer_backend "
            "transformers."
        )


def generation_config(folder: Path) -> GenerationConfig:
    """What a checkpoint says of generation."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_pretrained(folder, "config.json")


def first_words(error: BaseException) -> str:
    """The beginning of what an error says, in one line."""
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:4]) or type(error).__name__
