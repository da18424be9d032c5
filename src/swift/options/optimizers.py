"""This file knows the options of the memory-saving optimizers: GaLore and LISA."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from swift.options.conditions import given
from swift.options.declare import Fraction, Options, option
from swift.options.tuner import FULL

GALORE = given("use_galore")
QUANTIZED_GALORE = GALORE & given("galore_quantization")
QUANTIZED_PROJECTION = QUANTIZED_GALORE & given("galore_proj_quant")


class OptimizerOptions(Options):
    """GaLore and LISA."""

    use_galore: bool = option(False, important=True, when=FULL)
    """Whether the optimizer works on gradients of low rank (GaLore), which makes its states much smaller."""
    galore_target_modules: list[str] | None = option(None, when=GALORE)
    """Words in the names of linear layers that GaLore applies to; all of attention and MLP when not given."""
    galore_rank: PositiveInt = option(128, when=GALORE)
    """Rank of the projection."""
    galore_update_proj_gap: PositiveInt = option(50, when=GALORE)
    """Steps between two computations of the projection."""
    galore_scale: PositiveFloat = option(1.0, when=GALORE)
    """Factor on the projected update."""
    galore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] = option("std", when=GALORE)
    """Sides of the gradient that are projected: std leaves the shorter one, reverse_std the longer one, full none."""
    galore_optim_per_parameter: bool = option(False, when=GALORE)
    """Whether each GaLore parameter has an optimizer of its own, and its gradient is freed once it is used."""
    galore_with_embedding: bool = option(False, when=GALORE)
    """Whether embeddings are projected too."""
    galore_quantization: bool = option(False, when=GALORE)
    """Whether projections are computed less and less often once they hardly turn (Q-GaLore)."""
    galore_proj_quant: bool = option(False, when=QUANTIZED_GALORE)
    """Q-GaLore: whether the projection is quantized."""
    galore_proj_bits: Literal[2, 4, 8] = option(4, when=QUANTIZED_PROJECTION)
    """Q-GaLore: bits of the quantized projection."""
    galore_proj_group_size: PositiveInt = option(256, when=QUANTIZED_PROJECTION)
    """Q-GaLore: group size of the quantized projection."""
    galore_cos_threshold: Fraction = option(0.4, when=QUANTIZED_GALORE)
    """Q-GaLore: cosine similarity of successive projections above which they are computed less often."""
    galore_gamma_proj: PositiveFloat = option(2.0, when=QUANTIZED_GALORE)
    """Q-GaLore: factor by which the gap between projections grows once they are similar."""
    galore_queue_size: PositiveInt = option(5, when=QUANTIZED_GALORE)
    """Q-GaLore: number of projections whose similarity is looked at."""
    lisa_activated_layers: NonNegativeInt = option(0, important=True, when=FULL)
    """Number of layers that are trained at a time, drawn at random (LISA); 0 trains all, 2 or 8 is advised."""
    lisa_step_interval: PositiveInt = option(20, when=FULL & given("lisa_activated_layers"))
    """Steps after which LISA draws other layers."""
