"""This file knows Liger's fused kernels (`--use_liger_kernel`): which models have them, and how they are put in."""

from __future__ import annotations

from types import ModuleType

import torch
from transformers import PreTrainedModel

from swift.core.errors import ModelError
from swift.core.extras import need
from swift.core.logs import get_logger

MODULE = "liger_kernel.transformers.monkey_patch"


def require_liger() -> ModuleType:
    """Liger's table of kernels. Raises MissingPackage without Liger, ModelError without a GPU."""
    patches = need(MODULE, "--use_liger_kernel true")
    if not torch.cuda.is_available():
        raise ModelError("--use_liger_kernel true needs a GPU that Triton compiles for, and there is none here.")
    return patches


def use_liger(model: PreTrainedModel) -> None:
    """Replace norms, rotary embeddings and feed-forward layers of this model by Liger's kernels.

    Its fused loss is left out: losses are computed without all logits in any case, and with weights per token.

    Raises MissingPackage without Liger; ModelError without a GPU, and for models that it has no kernels for.
    """
    patches = require_liger()
    known = patches.MODEL_TYPE_TO_APPLY_LIGER_FN
    if model.config.model_type not in known:
        raise ModelError(
            f"--use_liger_kernel true: Liger has no kernels for {model.config.model_type}. Drop the flag, or update it: "
            "pip install -U liger-kernel"
        )
    patches._apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    get_logger().info("kernels of Liger are in place of %s's own", model.config.model_type)
