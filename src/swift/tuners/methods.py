"""This file knows the kinds of adapters that peft keeps, by the name that `--tuner_type` calls them.

A kind is a row of `METHODS`. All of them are made, saved, read, continued and merged by the same few functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from peft import AdaLoraConfig, BOFTConfig, FourierFTConfig, LoraConfig, MissConfig, PeftConfig, PeftType, VeraConfig
from transformers import PreTrainedModel

from swift.tuners.own.longlora import longlora_config
from swift.tuners.peft_configs import (
    adalora_config,
    boft_config,
    bone_config,
    fourierft_config,
    lora_config,
    vera_config,
)
from swift.tuners.request import Request


@dataclass(frozen=True)
class Method:
    """A kind of adapter.

    config: what peft is given to make a new one.
    saved: the class of the config in its adapter_config.json.
    shape: option -> key of that config, for options that an adapter made before has settled already.
    schedule: keys of that config which are of the run and not of the adapter.
    unmergeable: why an adapter with this config cannot become part of the weights; None when it can.
    """

    config: Callable[[PreTrainedModel, Request], PeftConfig]
    saved: type[PeftConfig]
    shape: Mapping[str, str] = field(default_factory=dict)
    schedule: tuple[str, ...] = ()
    unmergeable: Callable[[PeftConfig], str | None] = lambda _: None


def _lora_unmergeable(config: PeftConfig) -> str | None:
    assert isinstance(config, LoraConfig), "rows of LoRA have its config"
    if config.lora_bias:
        return "its matrices B have biases (lora_bias), which layers without a bias have no place for"
    if config.alora_invocation_tokens:
        return "it is an activated LoRA, which is on for some tokens and off for others"
    if config.layer_replication:
        return "it replicates layers (layer_replication), so that one weight would need several values"
    return None


METHODS: dict[str, Method] = {
    "lora": Method(
        config=lora_config,
        saved=LoraConfig,
        shape={
            "lora_rank": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "lora_bias": "bias",
            "use_dora": "use_dora", "use_rslora": "use_rslora",
        },
        unmergeable=_lora_unmergeable,
    ),
    "adalora": Method(
        config=adalora_config,
        saved=AdaLoraConfig,
        shape={
            "adalora_init_r": "init_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "lora_bias": "bias",
        },
        schedule=("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
    ),
    "vera": Method(
        config=vera_config,
        saved=VeraConfig,
        shape={
            "vera_rank": "r", "vera_projection_prng_key": "save_projection", "vera_dropout": "vera_dropout",
            "vera_d_initial": "d_initial",
        },
    ),
    "boft": Method(
        config=boft_config,
        saved=BOFTConfig,
        shape={
            "boft_block_size": "boft_block_size", "boft_block_num": "boft_block_num", "boft_dropout": "boft_dropout",
        },
    ),
    "fourierft": Method(
        config=fourierft_config,
        saved=FourierFTConfig,
        shape={"fourier_n_frequency": "n_frequency", "fourier_scaling": "scaling"},
    ),
    "bone": Method(
        config=bone_config,
        saved=MissConfig,
        shape={"lora_rank": "r", "init_weights": "init_weights"},
    ),
}  # fmt: skip
"""`--tuner_type` -> the kind of adapter."""
METHODS["longlora"] = replace(METHODS["lora"], config=longlora_config)  # it differs in what it trains, not in its form


def method_of(config: PeftConfig) -> tuple[str, Method] | None:
    """The kind of a saved adapter and its name; None when it is none of those here."""
    return next(((name, method) for name, method in METHODS.items() if type(config) is method.saved), None)


def kind_of(config: PeftConfig) -> str:
    """What peft calls the kind of a saved adapter: LORA, VERA, ..."""
    return "unknown" if config.peft_type is None else PeftType(config.peft_type).value
