"""Every kind of adapter: what it learns, saves, goes on from, and becomes when it is merged."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import tiny
from swift.core.errors import ModelError, UsageError
from swift.options.tuner import TunerChoice, TunerOptions
from swift.options.tuner_variants import TunerVariantOptions
from swift.tuners.attach import attach, load_adapters
from swift.tuners.merge import merge, relative_errors
from swift.tuners.methods import METHODS
from swift.tuners.request import Request, Run
from trainers import runs

IDS_BT = torch.arange(5, 17)[None]
STEPS = 6
VARIANTS = {
    "adalora": {"adalora_init_r": 4, "adalora_target_r": 2},
    "vera": {"vera_rank": 8, "vera_d_initial": 0.5},
    "boft": {},
    "fourierft": {"fourier_n_frequency": 50},
}
"""Options that fit the tiny model, by kind."""
RATES = {"lora": 1e-2, "adalora": 1e-2, "vera": 1e-1, "boft": 1e-2, "fourierft": 1e-1}
"""Learning rates at which the tiny model learns something in a few steps."""
KINDS = [*METHODS]
CASES = {
    **{kind: {"tuner_type": kind} for kind in KINDS},
    **{init: {"init_weights": init} for init in ("pissa", "pissa_niter_4", "olora")},
    "pissa with rslora": {"init_weights": "pissa", "use_rslora": True, "lora_rank": 3},
    "pissa with dora": {"init_weights": "pissa", "use_dora": True},
    "olora with norms and embeddings": {
        "init_weights": "olora", "modules_to_save": ["all-norm"], "target_modules": ["all-linear", "all-embedding"],
    },
}  # fmt: skip


def tuned(tuner_type="lora", seed=0, adapters=(), asked=(), steps=STEPS, variants=None, **options):
    """A tiny model with an adapter of a kind."""
    torch.manual_seed(seed)
    return attach(
        tiny.model(), TunerChoice(tuner_type=tuner_type), TunerOptions(**options), adapters=adapters, asked=asked,
        variants=TunerVariantOptions(**VARIANTS.get(tuner_type, {}) | (variants or {})), run=Run(total_steps=steps),
    )  # fmt: skip


def train(folder, model, kind, **settings):
    return runs.train(
        folder, model=model, train=runs.samples(8), max_steps=STEPS, learning_rate=RATES[kind], **settings
    )


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS_BT).logits[0]


@pytest.mark.parameter("tuner_type")
@pytest.mark.parameter("init_weights")
@pytest.mark.parameter("adapters")
@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parameter("merge_lora")
@pytest.mark.parametrize("name", CASES)
def test_it_learns_and_its_checkpoint_resumes_answers_and_merges(tmp_path, name):
    options = CASES[name]
    kind = options.get("tuner_type", "lora")
    whole = train(tmp_path / "whole", tuned(**options), kind, save_strategy="steps", save_steps=2)
    losses = whole.logged("loss")
    assert losses[-1] < losses[0] - 0.05
    halfway, last = (tmp_path / "whole" / f"checkpoint-{step}" for step in (2, STEPS))

    resumed = train(
        tmp_path / "resumed", tuned(**options, adapters=[str(halfway)]), kind, resume=halfway, save_strategy="no"
    )
    assert resumed.logged("loss") == losses
    assert runs.equal(resumed.weights(), whole.weights())

    expected = logits(whole.trainer.model)
    loaded = logits(load_adapters(tiny.model(), [last]))
    assert relative_errors(expected, loaded).max() < 2e-6
    assert relative_errors(logits(tiny.model()), loaded).max() > 1e-3, "the adapter has an effect"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = PeftModel.from_pretrained(tiny.model(), last)
    torch.testing.assert_close(logits(plain), loaded, rtol=0, atol=0)

    assert relative_errors(loaded, logits(merge(tiny.model(), [last]))).max() < 1e-5

    again = tuned(**options, adapters=[str(last)], seed=3)
    assert relative_errors(expected, logits(again)).max() < 2e-6
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in whole.trainer.model.named_parameters() if p.requires_grad
    }
