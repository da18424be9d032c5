"""This file knows the options of rewards and teachers: functions, models, and the functions' parameters."""

from pydantic import PositiveInt

from swift.options.conditions import contains, equals, given
from swift.options.declare import JsonOrName, Options, option
from swift.options.distill import GKD

GRPO = equals("rlhf_type", "grpo")
REWARDED = equals("rlhf_type", "ppo", "grpo")
PLUGIN = given("external_plugins")
COSINE = contains("reward_funcs", "cosine") | PLUGIN
REPETITION = contains("reward_funcs", "repetition") | PLUGIN
SOFT_OVERLONG = contains("reward_funcs", "soft_overlong") | PLUGIN


class RewardOptions(Options):
    """Reward functions, reward models and teachers."""

    reward_model: str | None = option(None, when=REWARDED)
    """Model that scores completions, in PPO and GRPO."""
    reward_adapters: list[str] = option([], when=given("reward_model"))
    """Adapters of the reward model."""
    reward_model_type: str | None = option(None, when=given("reward_model"))
    """`--model_type` of the reward model."""
    reward_model_revision: str | None = option(None, when=given("reward_model"))
    """`--model_revision` of the reward model."""
    teacher_model: str | None = option(None, when=GKD)
    """Model to distill from; GKD needs it."""
    teacher_adapters: list[str] = option([], when=given("teacher_model"))
    """Adapters of the teacher."""
    teacher_model_type: str | None = option(None, when=given("teacher_model"))
    """`--model_type` of the teacher."""
    teacher_model_revision: str | None = option(None, when=given("teacher_model"))
    """`--model_revision` of the teacher."""
    teacher_deepspeed: JsonOrName | None = option(None, when=given("teacher_model"), rule="deepspeed")
    """Configuration of DeepSpeed for the teacher."""
    reward_funcs: list[str] = option([], when=GRPO)
    """Reward functions of GRPO: accuracy, format, cosine, repetition, soft_overlong, or those of a plugin."""
    reward_weights: list[float] | None = option(None, when=GRPO, rule="1.0 each")
    """One weight per reward function and, last, the reward model."""
    reward_model_plugin: str = option("orm", when=given("reward_model") & GRPO)
    """How the reward model's verdict becomes a number: orm takes its output, a plugin may do otherwise."""
    cosine_min_len_value_wrong: float = option(-0.5, when=COSINE)
    """Cosine reward: value of the shortest wrong answer."""
    cosine_max_len_value_wrong: float = option(0.0, when=COSINE)
    """Cosine reward: value of the longest wrong answer."""
    cosine_min_len_value_correct: float = option(1.0, when=COSINE)
    """Cosine reward: value of the shortest right answer."""
    cosine_max_len_value_correct: float = option(0.5, when=COSINE)
    """Cosine reward: value of the longest right answer."""
    cosine_max_len: PositiveInt | None = option(None, when=COSINE, rule="max_completion_length")
    """Cosine reward: length, in tokens, at which an answer is the longest."""
    repetition_n_grams: PositiveInt = option(3, when=REPETITION)
    """Repetition reward: number of words that are compared at a time."""
    repetition_max_penalty: float = option(-1.0, when=REPETITION)
    """Repetition reward: value of a text that only repeats itself."""
    soft_max_length: PositiveInt | None = option(None, when=SOFT_OVERLONG, rule="max_completion_length")
    """Soft overlong reward: length, in tokens, from which the penalty is whole (L_max of the paper)."""
    soft_cache_length: PositiveInt | None = option(None, when=SOFT_OVERLONG)
    """Soft overlong reward: how many tokens before soft_max_length the penalty begins (L_cache of the paper)."""
