"""This file knows the options of proximal policy optimisation (PPO)."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from swift.options.conditions import equals
from swift.options.declare import Fraction, Options, option

PPO = equals("rlhf_type", "ppo")


class PpoOptions(Options):
    """Proximal policy optimisation."""

    num_ppo_epochs: PositiveInt = option(4, when=PPO)
    """How many times each batch of completions is learnt from."""
    whiten_rewards: bool = option(False, when=PPO)
    """Whether rewards are brought to mean 0 and variance 1."""
    kl_coef: float = option(0.05, when=PPO)
    """Weight of the divergence from the reference, taken off the reward at each token."""
    cliprange: NonNegativeFloat = option(0.2, when=PPO)
    """How far the probability ratio may leave 1 before it is clipped."""
    vf_coef: float = option(0.1, when=PPO)
    """Weight of the value loss."""
    cliprange_value: NonNegativeFloat = option(0.2, when=PPO)
    """How far the value may leave its old estimate before it is clipped."""
    gamma: Fraction = option(1.0, when=PPO)
    """Discount of later rewards."""
    lam: Fraction = option(0.95, when=PPO)
    """Lambda of generalised advantage estimation."""
    num_mini_batches: PositiveInt = option(1, when=PPO)
    """Parts into which a batch is cut for the updates."""
    local_rollout_forward_batch_size: PositiveInt = option(64, when=PPO)
    """Rows per forward pass while completions are generated and scored."""
    num_sample_generations: NonNegativeInt = option(10, when=PPO)
    """How many times in a run sample completions are shown; 0 never."""
    missing_eos_penalty: NonNegativeFloat | None = option(None, when=PPO)
    """What is taken off the reward of a completion that does not end."""
