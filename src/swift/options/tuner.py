"""This file knows the options of tuning: what is trained, which modules are adapted or frozen, and LoRA."""

import re
from typing import Annotated, Any, Literal

from pydantic import PlainValidator, PositiveFloat, PositiveInt

from swift.catalog.tuners import BUILT_IN
from swift.options.conditions import absent, equals
from swift.options.declare import Choices, DTypeName, Fraction, Options, Unfit, option
from swift.options.model import MULTIMODAL

FULL = equals("tuner_type", "full")
LORA = equals("tuner_type", "lora", "longlora")
LORA_KIN = equals("tuner_type", "lora", "longlora", "adalora")
WITH_MODULES = equals(
    "tuner_type", "lora", "longlora", "adalora", "vera", "boft", "fourierft", "llamapro", "adapter", "reft", "bone"
)
TARGETED = equals("tuner_type", "lora", "longlora", "adalora", "vera", "boft", "fourierft", "bone")
BEGUN = equals("tuner_type", "lora", "longlora", "adalora", "bone")
RANKED = equals("tuner_type", "lora", "longlora", "bone")

INITIALISATIONS = ("true", "false", "gaussian", "pissa", "olora", "loftq", "lora-ga", "bat")


def _initialisation(value: Any) -> str:
    name = str(value).lower() if isinstance(value, bool) else value
    if name in INITIALISATIONS or (isinstance(name, str) and re.fullmatch(r"pissa_niter_\d+", name)):
        return name
    names = ", ".join(INITIALISATIONS)
    raise Unfit(
        f"must be one of {names}, or pissa_niter_ and a number of iterations",
        f"必须为以下之一：{names}，或 pissa_niter_ 加迭代次数",
    )


Initialisation = Annotated[str, PlainValidator(_initialisation)]
"""A name of an initialisation; a configuration file may say true and false unquoted."""


class TunerChoice(Options):
    """Which parameters are trained, in one word."""

    tuner_backend: Literal["peft", "unsloth"] = option("peft", important=True)
    """Library that builds the adapter. unsloth also loads the model, for full and lora."""
    tuner_type: Annotated[str, Choices(dict.fromkeys(BUILT_IN), is_open=True)] = option("lora", important=True)
    """What is trained: an adapter of this kind, or with `full` the model's own parameters. A tuner of your own goes by
    the name that a file of `--external_plugins` registered it under."""


class TunerOptions(Options):
    """Which modules are adapted or frozen, and LoRA."""

    freeze_llm: bool = option(False, important=True, later=MULTIMODAL)
    """Whether the language model of a multimodal model stays as it is: frozen in full training, without adapter when
    `--target_modules` is all-linear."""
    freeze_vit: bool = option(True, important=True, later=MULTIMODAL)
    """Whether the vision and audio towers of a multimodal model stay as they are: frozen in full training, without
    adapter when `--target_modules` is all-linear."""
    freeze_aligner: bool = option(True, important=True, later=MULTIMODAL)
    """Whether the aligner (projector) of a multimodal model stays as it is: frozen in full training, without adapter
    when `--target_modules` is all-linear."""
    target_modules: list[str] = option(["all-linear"], important=True, when=TARGETED & absent("target_regex"))
    """Modules that get an adapter: endings of their names, or all-linear for every linear layer but the head (of a
    multimodal model: where `--freeze_llm`, `--freeze_vit` and `--freeze_aligner` allow)."""
    target_regex: str | None = option(None, important=True, when=TARGETED)
    """Regular expression of the full names of modules that get an adapter, instead of `--target_modules`."""
    target_parameters: list[str] | None = option(None, when=LORA)
    """Parameters that get LoRA by name, for weights that sit in no linear layer, such as fused experts."""
    init_weights: Initialisation = option("true", when=BEGUN)
    """How adapter weights begin: true (the adapter does nothing at first), false (random), gaussian, pissa,
    pissa_niter_N, olora, loftq (of quantized weights), lora-ga; true, false or bat for Bone."""
    modules_to_save: list[str] = option([], important=True, when=WITH_MODULES)
    """Modules of the model that are trained and saved in full beside the adapter, e.g. embed_tokens lm_head."""
    freeze_parameters: list[str] = option([], when=FULL)
    """Prefixes of names of parameters to freeze."""
    freeze_parameters_regex: str | None = option(None, when=FULL)
    """Regular expression of names of parameters to freeze."""
    freeze_parameters_ratio: Fraction = option(0.0, when=FULL)
    """Share of all parameters to freeze, counted from the bottom of the model. 1 freezes all, for use with
    `--trainable_parameters`."""
    trainable_parameters: list[str] = option([], when=FULL)
    """Prefixes of names of parameters to train although the freezing options name them."""
    trainable_parameters_regex: str | None = option(None, when=FULL)
    """Regular expression of names of parameters to train although the freezing options name them."""
    lora_rank: PositiveInt = option(8, important=True, when=RANKED)
    """Rank of the two matrices of LoRA; rows of the matrix of Bone."""
    lora_alpha: PositiveInt = option(32, important=True, when=LORA_KIN)
    """Scale of LoRA: its output counts `lora_alpha / lora_rank` times."""
    lora_dropout: Fraction = option(0.05, when=LORA_KIN)
    """Dropout on the input of LoRA."""
    lora_bias: Literal["none", "all"] = option("none", when=LORA_KIN)
    """Whether the biases of the model are trained along."""
    lora_dtype: DTypeName | None = option(None, when=LORA)
    """Type of the LoRA weights; peft decides when not given."""
    use_dora: bool = option(False, important=True, when=LORA)
    """Whether to use DoRA, which trains the magnitude of weights beside their direction."""
    use_rslora: bool = option(False, when=LORA)
    """Whether to use rank-stabilised LoRA, which scales by `lora_alpha / sqrt(lora_rank)`."""
    lorap_lr_ratio: PositiveFloat | None = option(None, important=True, when=LORA_KIN)
    """LoRA+: how many times faster the B matrices learn than the A matrices; 10 to 16 is advised."""
