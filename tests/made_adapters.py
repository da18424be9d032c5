"""Adapters as a run saves them, made without training, for tests of what is done with them."""

from __future__ import annotations

import torch

from swift.models.info import model_info
from swift.models.load import load_model
from swift.options.model import ModelOptions
from swift.options.tuner import TunerChoice, TunerOptions
from swift.options.tuner_variants import TunerVariantOptions
from swift.tuners import checkpoints
from swift.tuners.attach import attach
from swift.tuners.request import Run

VARIANTS = TunerVariantOptions(
    adalora_init_r=4, adalora_target_r=2, vera_rank=8, vera_d_initial=0.5, fourier_n_frequency=50,
    llamapro_num_new_blocks=2, llamapro_num_groups=2,
)  # fmt: skip


def trained(base, folder, method="lora", **options):
    """An adapter that changes the model, as a run saves it."""
    torch.manual_seed(0)
    model = load_model(model_info(ModelOptions(model=str(base))), ModelOptions(model=str(base)), training=True)
    tuned = attach(
        model, TunerChoice(tuner_type=method), TunerOptions(**options), variants=VARIANTS, run=Run(total_steps=100)
    )
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    if not checkpoints.write(tuned, folder, None):
        tuned.save_pretrained(folder, save_embedding_layers=False)
    checkpoints.complete(tuned, folder)
    return folder
