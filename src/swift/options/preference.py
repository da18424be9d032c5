"""This file knows the options of learning from preferences: DPO, ORPO, CPO, SimPO, KTO, reward models."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from swift.options.conditions import contains, equals, given
from swift.options.declare import Fraction, Options, option
from swift.options.tuner import FULL

REFERENCED = equals("rlhf_type", "dpo", "kto", "ppo", "grpo")
DPO = equals("rlhf_type", "dpo")
CPO = equals("rlhf_type", "cpo", "simpo")
KTO = equals("rlhf_type", "kto")
GENERATING = equals("rlhf_type", "ppo", "grpo", "gkd")


class PreferenceOptions(Options):
    """Learning from preferences: DPO, ORPO, CPO, SimPO, KTO, reward models."""

    rlhf_type: Literal["dpo", "orpo", "simpo", "kto", "cpo", "rm", "ppo", "grpo", "gkd"] = option("dpo", important=True)
    """Method of learning from preferences, rewards or a teacher."""
    ref_model: str | None = option(None, when=REFERENCED & FULL, rule="model")
    """Reference model of full training with DPO, KTO, PPO or GRPO. An adapter's reference is the model without it."""
    ref_adapters: list[str] = option([], when=REFERENCED & equals("tuner_type", "lora", "longlora", "adalora"))
    """Adapter of the reference. To go on from an adapter that was trained by sft, give it as `--adapters` and here;
    when resuming, as `--resume_from_checkpoint` the new one and here the old one."""
    ref_model_type: str | None = option(None, when=given("ref_model"))
    """`--model_type` of the reference model."""
    ref_model_revision: str | None = option(None, when=given("ref_model"))
    """`--model_revision` of the reference model."""
    beta: NonNegativeFloat | None = option(
        None,
        important=True,
        when=equals("rlhf_type", "dpo", "orpo", "simpo", "kto", "cpo", "grpo", "gkd"),
        rule="2.0 simpo, 0.04 grpo, 0.5 gkd, else 0.1",
    )
    """How strongly the policy is held near the reference: larger is nearer. With 0, GRPO needs no reference. For GKD
    the place between forward and reverse divergence."""
    label_smoothing: Fraction = option(0.0, when=DPO | CPO)
    """Share of preference labels taken to be wrong."""
    max_completion_length: PositiveInt = option(512, when=GENERATING)
    """Most tokens of a completion in GRPO, PPO and GKD."""
    rpo_alpha: NonNegativeFloat | None = option(None, important=True, when=DPO)
    """Weight of the supervised loss on the chosen reply that is added to DPO's (RPO, arXiv 2404.19733; the paper
    takes 1). None is added when not given."""
    ld_alpha: Fraction | None = option(None, when=DPO)
    """Weight of log-probabilities beyond the length both replies share, against a taste for length (LD-DPO, arXiv
    2409.06411)."""
    discopop_tau: PositiveFloat = option(0.05, when=contains("loss_type", "discopop"))
    """Temperature of the log-ratio in the loss discopop (arXiv 2406.08414)."""
    loss_type: list[str] | None = option(
        None,
        when=equals("rlhf_type", "dpo", "cpo", "simpo", "kto", "grpo"),
        rule="sigmoid for dpo, grpo for grpo, none otherwise",
    )
    """Form of the loss. DPO knows many (sigmoid, hinge, ipo, ...) and mixes several by `--loss_weights`; GRPO knows
    grpo, bnpo, dr_grpo, dapo, cispo, sapo."""
    loss_weights: list[float] | None = option(None, when=DPO)
    """Weight of each loss when `--loss_type` names several."""
    cpo_alpha: float = option(1.0, when=CPO)
    """Weight of the supervised loss on the chosen reply in CPO and SimPO; 0 makes SimPO that of its paper."""
    simpo_gamma: float = option(1.0, when=CPO)
    """Reward margin of SimPO; the paper advises 0.5 to 1.5."""
    desirable_weight: NonNegativeFloat = option(1.0, when=KTO)
    """Weight of desirable replies, against unequal numbers."""
    undesirable_weight: NonNegativeFloat = option(1.0, when=KTO)
    """Weight of undesirable replies, against unequal numbers."""
    center_rewards_coefficient: NonNegativeFloat | None = option(None, when=equals("rlhf_type", "rm"))
    """Weight of the penalty that keeps the mean reward of a reward model at zero (arXiv 2312.09244); 0.01 is
    advised."""
