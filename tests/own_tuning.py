"""Tiny models changed by our own methods, for their tests."""

from __future__ import annotations

import torch

import tiny
from swift.options.tuner import TunerChoice, TunerOptions
from swift.options.tuner_variants import TunerVariantOptions
from swift.tuners.attach import attach

IDS_BT = torch.arange(5, 25)[None]
VARIANTS = {
    "llamapro": {"llamapro_num_new_blocks": 2, "llamapro_num_groups": 2},
    "adapter": {"adapter_length": 8},
    "reft": {"reft_rank": 3},
}
"""Small settings of every method."""


def tuned(method, model=None, *, adapters=(), asked=(), seed=0, modules_to_save=(), **variants):
    """A model with what a method adds, not in training."""
    torch.manual_seed(seed)
    return attach(
        model or tiny.model(), TunerChoice(tuner_type=method), TunerOptions(modules_to_save=list(modules_to_save)),
        variants=TunerVariantOptions(**{**VARIANTS[method], **variants}), adapters=[str(path) for path in adapters],
        asked=asked,
    ).eval()  # fmt: skip


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def stirred(model, scale=0.05):
    """The same model after its trained parameters moved, as after some steps of training."""
    torch.manual_seed(7)
    for parameter in trained(model).values():
        parameter.data += scale * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model):
    return model(IDS_BT).logits
