"""This file knows the options of the policy objective: GRPO and its kin, clipping, advantages, corrections."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from swift.options.conditions import contains, equals, given
from swift.options.declare import Fraction, Options, option

GRPO = equals("rlhf_type", "grpo")
SAPO = GRPO & contains("loss_type", "sapo")
SYNCED = GRPO & given("sync_ref_model")


class PolicyOptions(Options):
    """The objective of GRPO and its kin."""

    num_iterations: PositiveInt = option(1, when=GRPO)
    """How many times each completion is learnt from (mu of the GRPO paper, arXiv 2402.03300)."""
    epsilon: NonNegativeFloat = option(0.2, when=GRPO)
    """How far the probability ratio may fall below 1 before it is clipped; above 1 too unless `--epsilon_high`."""
    epsilon_high: NonNegativeFloat | None = option(None, when=GRPO, rule="epsilon")
    """How far the ratio may rise above 1. With `--loss_type cispo` the cap of the ratio itself."""
    tau_pos: PositiveFloat = option(1.0, when=SAPO)
    """SAPO (arXiv 2511.20347): sharpness of the soft gate for positive advantages; larger is nearer to hard clipping."""
    tau_neg: PositiveFloat = option(1.05, when=SAPO)
    """SAPO: sharpness of the soft gate for negative advantages, usually above tau_pos."""
    overlong_filter: bool = option(False, when=GRPO)
    """Whether completions that were cut off are left out of the loss."""
    delta: PositiveFloat | None = option(None, when=GRPO)
    """Upper bound of the ratio for negative advantages too (two-sided clipping, INTELLECT-2); above 1 + epsilon."""
    importance_sampling_level: Literal["token", "sequence"] = option("token", when=GRPO)
    """Whether the ratio is taken per token, or as the mean over a completion (GSPO, arXiv 2507.18071)."""
    advantage_estimator: Literal["grpo", "rloo", "reinforce_plus_plus"] = option("grpo", when=GRPO)
    """How rewards become advantages: relative to the group, to the rest of the group, or REINFORCE++."""
    kl_in_reward: bool | None = option(None, when=GRPO, rule="false for grpo, true for rloo and reinforce_plus_plus")
    """Whether the divergence from the reference is taken off the reward, instead of being a term of the loss."""
    scale_rewards: Literal["group", "batch", "none", "gdpo"] | None = option(
        None, when=GRPO, rule="group for grpo, none for rloo, batch for reinforce_plus_plus"
    )
    """By which standard deviation advantages are divided: of the group, of the batch, none; or gdpo (arXiv
    2601.05242), which scales each reward function within its group before they are added."""
    sync_ref_model: bool = option(False, when=GRPO)
    """Whether the reference follows the policy at intervals."""
    ref_model_mixup_alpha: Fraction = option(0.6, when=SYNCED)
    """Share of the policy in the new reference; the rest is the old reference."""
    ref_model_sync_steps: PositiveInt = option(512, when=SYNCED)
    """Steps after which the reference follows."""
    top_entropy_quantile: Fraction = option(1.0, when=GRPO)
    """Share of tokens, those of highest entropy, that take part in the loss; 1 is all."""
    log_entropy: bool = option(False, when=GRPO)
    """Whether the entropy of tokens is logged."""
    rollout_importance_sampling_mode: (
        Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] | None
    ) = option(None, when=GRPO)
    """How the difference between the probabilities of sampler and trainer is corrected: weights per token or
    sequence, cut or masked beyond the threshold."""
    rollout_importance_sampling_threshold: PositiveFloat = option(
        2.0, when=GRPO & given("rollout_importance_sampling_mode")
    )
    """Weight from which that correction cuts or masks."""
    log_rollout_offpolicy_metrics: bool = option(False, when=GRPO)
    """Whether the difference between sampler and trainer is measured and logged even without correcting it."""
    off_policy_sequence_mask_delta: float | None = option(None, when=GRPO)
    """Completions of negative advantage whose mean log-probability has fallen by more than this are left out of the
    loss (DeepSeek-V3.2, arXiv 2512.02556)."""
