"""This file knows the options of the memory-saving optimizers: GaLore and LISA."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from swift.options.conditions import given
from swift.options.declare import Options, option
from swift.options.tuner import FULL

GALORE = given("use_galore")
QUANTIZED_GALORE = GALORE & given("galore_quantization")


class OptimizerOptions(Options):
    """GaLore and LISA."""

    use_galore: bool = option(False, important=True, later="GaLore")
    """Whether gradients are projected to a low rank (GaLore)."""
    galore_target_modules: list[str] | None = option(None, when=GALORE)
    """Modules GaLore applies to; attention and MLP when not given."""
    galore_rank: PositiveInt = option(128, when=GALORE)
    """Rank of the projection."""
    galore_update_proj_gap: PositiveInt = option(50, when=GALORE)
    """Steps between two computations of the projection."""
    galore_scale: float = option(1.0, when=GALORE)
    """Factor on the projected update."""
    galore_proj_type: str = option("std", when=GALORE)
    """Kind of projection, as the galore library names it."""
    galore_optim_per_parameter: bool = option(False, when=GALORE)
    """Whether each GaLore parameter has an optimizer of its own."""
    galore_with_embedding: bool = option(False, when=GALORE)
    """Whether embeddings are projected too."""
    galore_quantization: bool = option(False, when=GALORE)
    """Whether to use Q-GaLore, with quantized weights."""
    galore_proj_quant: bool = option(False, when=QUANTIZED_GALORE)
    """Q-GaLore: whether the projection is quantized."""
    galore_proj_bits: PositiveInt = option(4, when=QUANTIZED_GALORE)
    """Q-GaLore: bits of the quantized projection."""
    galore_proj_group_size: PositiveInt = option(256, when=QUANTIZED_GALORE)
    """Q-GaLore: group size of the quantized projection."""
    galore_cos_threshold: float = option(0.4, when=QUANTIZED_GALORE)
    """Q-GaLore: cosine similarity of successive projections above which they are computed less often."""
    galore_gamma_proj: NonNegativeFloat = option(2.0, when=QUANTIZED_GALORE)
    """Q-GaLore: factor by which the gap between projections grows once they are similar."""
    galore_queue_size: PositiveInt = option(5, when=QUANTIZED_GALORE)
    """Q-GaLore: number of projections whose similarity is looked at."""
    lisa_activated_layers: NonNegativeInt = option(0, important=True, when=FULL, later="LISA")
    """Number of layers that are trained at a time, drawn at random (LISA); 0 trains all, 2 or 8 is advised."""
    lisa_step_interval: PositiveInt = option(20, when=FULL & given("lisa_activated_layers"))
    """Steps after which LISA draws other layers."""
