"""This file knows the options of the rarer tuners: LoRA-GA, FourierFT, BOFT, VeRA, LLaMA-Pro, adapters, AdaLoRA, ReFT."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from swift.options.conditions import equals
from swift.options.declare import Fraction, Json, Options, option

LORA_GA = equals("init_weights", "lora-ga")
FOURIERFT = equals("tuner_type", "fourierft")
BOFT = equals("tuner_type", "boft")
VERA = equals("tuner_type", "vera")
LLAMAPRO = equals("tuner_type", "llamapro")
ADALORA = equals("tuner_type", "adalora")
REFT = equals("tuner_type", "reft")
BOTTLENECK = equals("tuner_type", "adapter")


class TunerVariantOptions(Options):
    """The other adapters: LoRA-GA, FourierFT, BOFT, VeRA, LLaMA-Pro, bottlenecks, AdaLoRA, ReFT."""

    lora_ga_batch_size: PositiveInt = option(2, when=LORA_GA)
    """LoRA-GA: rows per batch when gradients are estimated for initialisation."""
    lora_ga_iters: PositiveInt = option(2, when=LORA_GA)
    """LoRA-GA: batches over which gradients are estimated."""
    lora_ga_max_length: PositiveInt = option(1024, when=LORA_GA)
    """LoRA-GA: longest input, in tokens, when gradients are estimated."""
    lora_ga_direction: Literal["ArBr", "A2rBr", "ArB2r", "random"] = option("ArB2r", when=LORA_GA)
    """LoRA-GA: which singular vectors of the gradient A and B begin with."""
    lora_ga_scale: Literal["gd", "unit", "stable", "weightS"] = option("stable", when=LORA_GA)
    """LoRA-GA: how the initial matrices are scaled."""
    lora_ga_stable_gamma: PositiveInt = option(16, when=LORA_GA & equals("lora_ga_scale", "stable"))
    """LoRA-GA: gamma of the stable scaling."""
    fourier_n_frequency: PositiveInt = option(2000, when=FOURIERFT)
    """FourierFT: number of frequencies learnt per weight matrix; what the rank is to LoRA."""
    fourier_scaling: float = option(300.0, when=FOURIERFT)
    """FourierFT: scale of the learnt change of weights; what alpha is to LoRA."""
    boft_block_size: PositiveInt = option(4, when=BOFT)
    """BOFT: size of the orthogonal blocks. Not together with `--boft_block_num`."""
    boft_block_num: PositiveInt | None = option(None, when=BOFT)
    """BOFT: number of orthogonal blocks, instead of their size."""
    boft_dropout: Fraction = option(0.0, when=BOFT)
    """BOFT: share of blocks that are left out at random in training."""
    vera_rank: PositiveInt = option(256, when=VERA)
    """VeRA: rank of the shared random matrices."""
    vera_projection_prng_key: bool = option(True, when=VERA)
    """VeRA: whether the shared random matrices are saved with the adapter."""
    vera_dropout: Fraction = option(0.0, when=VERA)
    """VeRA: dropout on the input of the adapter."""
    vera_d_initial: float = option(0.1, when=VERA)
    """VeRA: initial value of the learnt vector d."""
    llamapro_num_new_blocks: PositiveInt = option(4, important=True, when=LLAMAPRO)
    """LLaMA-Pro: number of new layers."""
    llamapro_num_groups: PositiveInt | None = option(None, when=LLAMAPRO, rule="llamapro_num_new_blocks")
    """LLaMA-Pro: number of places where new layers go; by default each goes to a place of its own."""
    adapter_length: PositiveInt = option(128, when=BOTTLENECK)
    """Bottleneck adapters: channels of the bottleneck."""
    adapter_act: str = option("gelu", when=BOTTLENECK)
    """Bottleneck adapters: activation in the bottleneck, as transformers names it."""
    adalora_target_r: PositiveInt = option(8, when=ADALORA)
    """AdaLoRA: average rank at the end."""
    adalora_init_r: PositiveInt = option(12, when=ADALORA)
    """AdaLoRA: rank of every matrix at the start."""
    adalora_tinit: NonNegativeInt = option(0, when=ADALORA)
    """AdaLoRA: steps before ranks begin to shrink."""
    adalora_tfinal: NonNegativeInt = option(0, when=ADALORA)
    """AdaLoRA: steps at the end in which ranks stay as they are."""
    adalora_deltaT: PositiveInt = option(1, when=ADALORA)  # noqa: N815 (the name of the manual)
    """AdaLoRA: steps between two changes of ranks."""
    adalora_beta1: Fraction = option(0.85, when=ADALORA, gt=0, lt=1)
    """AdaLoRA: smoothing of the sensitivity of weights."""
    adalora_beta2: Fraction = option(0.85, when=ADALORA, gt=0, lt=1)
    """AdaLoRA: smoothing of the uncertainty of that sensitivity."""
    adalora_orth_reg_weight: NonNegativeFloat = option(0.5, when=ADALORA)
    """AdaLoRA: weight of the penalty that keeps the matrices orthogonal."""
    reft_layers: list[NonNegativeInt] | None = option(None, important=True, when=REFT)
    """ReFT: numbers of the layers that are intervened on; all when not given."""
    reft_rank: PositiveInt = option(4, important=True, when=REFT)
    """ReFT: rank of the intervention."""
    reft_intervention_type: Literal[
        "NoreftIntervention", "LoreftIntervention", "ConsreftIntervention", "LobireftIntervention",
        "DireftIntervention", "NodireftIntervention",
    ] = option("LoreftIntervention", when=REFT)  # fmt: skip
    """ReFT: kind of the intervention."""
    reft_args: Json | None = option(None, when=REFT)
    """ReFT: further arguments of the intervention: dropout, act_fn (of W h + b), add_bias (of NoReFT's projection)."""
