"""This file knows how Unsloth makes a model with fast kernels that is ready to learn (`--tuner_backend unsloth`).

Unsloth loads the model itself, and puts LoRA on it. It needs a GPU, and is not among what Swiftlet installs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from swift.core.errors import ModelError, UsageError
from swift.core.extras import need
from swift.models.info import ModelInfo
from swift.models.precision import torch_dtype
from swift.options.tuner import TunerOptions
from swift.tuners.peft_configs import lora_config
from swift.tuners.request import Request, Run

OPTION = "--tuner_backend unsloth"


@dataclass(frozen=True)
class Loading:
    """How Unsloth loads a model.

    max_length: the longest row, which it lays out memory for. bits: 4 or 8 quantizes with bitsandbytes, None does not.
    recompute: whether activations are recomputed, in its own way. seed: of the matrices of LoRA.
    """

    max_length: int
    bits: int | str | None
    recompute: bool
    seed: int

    @property
    def checkpointing(self) -> str | bool:
        """Unsloth's name for its way of recomputing."""
        return "unsloth" if self.recompute else False


def require_unsloth() -> ModuleType:
    """The package. Raises ModelError where there is no GPU, MissingPackage where Unsloth is missing."""
    if not torch.cuda.is_available():
        raise ModelError(f"{OPTION} needs a GPU, and there is none here. Use --tuner_backend peft.")
    return need("unsloth", OPTION)


def learner(
    info: ModelInfo, tuner_type: str, options: TunerOptions, loading: Loading, adapters: Sequence[str] = ()
) -> PreTrainedModel | PeftModel:
    """The model, ready to learn all its parameters (`full`) or LoRA; with `adapters`, the one training goes on with.

    Raises MissingPackage where Unsloth is missing, ModelError where there is no GPU, UsageError for a number of bits
    that it does not know.
    """
    fast: Any = require_unsloth().FastLanguageModel
    if loading.bits not in (None, 4, 8):
        raise UsageError(f"{OPTION} loads weights in 4 or 8 bits (got --quant_bits {loading.bits}).")
    model, _ = fast.from_pretrained(
        model_name=str(adapters[0] if adapters else info.path),  # a saved adapter names its model
        max_seq_length=loading.max_length,
        dtype=torch_dtype(info.dtype),
        load_in_4bit=loading.bits == 4,
        load_in_8bit=loading.bits == 8,
        full_finetuning=tuner_type == "full",
        fix_tokenizer=False,
        trust_remote_code=False,
        use_gradient_checkpointing=loading.checkpointing,
        random_state=loading.seed,
        local_files_only=True,
    )
    if tuner_type == "full" or adapters:
        return model
    config = lora_config(model, Request(options, run=Run()))
    return fast.get_peft_model(
        model,
        r=config.r,
        target_modules=_targets(config.target_modules),
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias=config.bias,
        use_gradient_checkpointing=loading.checkpointing,
        random_state=loading.seed,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        modules_to_save=config.modules_to_save,
        init_lora_weights=config.init_lora_weights,
        target_parameters=None if config.target_parameters is None else list(config.target_parameters),
        ensure_weight_tying=config.ensure_weight_tying,
    )


def _targets(found: Any) -> list[str] | str:
    """A regular expression as it is, names as a list."""
    return found if isinstance(found, str) else sorted(found)
