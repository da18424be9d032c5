"""This file knows in which floating-point type weights are held and training computes on this machine."""

from __future__ import annotations

from typing import Literal

import torch

MixedPrecision = Literal["bf16", "fp16", "no"]


def dtype_of_this_machine() -> str:
    """The type for weights that do not say theirs: bfloat16 or else float16 on an accelerator, float32 on a CPU."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if torch.accelerator.is_available():
        return "float16"
    return "float32"


def mixed_precision(dtype: str) -> MixedPrecision:
    """The precision of training for weights of `dtype`.

    bfloat16 weights train in bf16. float16 and float32 weights train in fp16 mixed precision (float32 master values,
    a loss scaler), which needs a CUDA device: on a CPU and on MPS float32 trains in plain float32. float16 on a CPU
    has no scaler and is left to the caller to refuse.
    """
    if dtype == "bfloat16":
        return "bf16"
    return "fp16" if torch.cuda.is_available() else "no"


def torch_dtype(name: str) -> torch.dtype:
    """`bfloat16` -> torch.bfloat16. `name` is one of the names that `--torch_dtype` takes, or a checkpoint's."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype), f"{name} is no type of numbers"
    return dtype
