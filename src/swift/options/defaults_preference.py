"""This file knows the defaults of `swift rlhf` that follow from other options: preferences, rewards, a teacher."""

from __future__ import annotations

from swift.options.conditions import Values
from swift.options.derivations import Derivations, Derived, processes

derives = Derivations()


@derives("beta")
def beta(values: Values) -> Derived:
    """Each method has its own scale."""
    if values["rlhf_type"] in {"ppo", "rm"}:
        return None
    value = {"simpo": 2.0, "grpo": 0.04, "gkd": 0.5}.get(values["rlhf_type"], 0.1)
    return value, f"what {values['rlhf_type']} usually takes"


@derives("ref_model")
def ref_model(values: Values) -> Derived:
    """Full training measures against the model it began with; an adapter's reference is the model without it."""
    refers = values["rlhf_type"] in {"dpo", "kto", "ppo"} or (values["rlhf_type"] == "grpo" and values["beta"] != 0)
    if values["tuner_type"] != "full" or not refers or not values["model"]:
        return None
    return values["model"], "the reference is the model before training"


@derives("teacher_deepspeed")
def teacher_deepspeed(values: Values) -> Derived:
    """The teacher is sharded like the student."""
    if not values["teacher_model"] or not values["deepspeed"]:
        return None
    return values["deepspeed"], "follows deepspeed"


@derives("remove_unused_columns")
def remove_unused_columns(values: Values) -> Derived:
    """Reward functions of GRPO read the other columns."""
    return (False, "reward functions read the other columns") if values.get("rlhf_type") == "grpo" else None


@derives("steps_per_generation")
def steps_per_generation(values: Values) -> Derived:
    """One generation lasts for one optimizer step, or for as long as the given batch does."""
    if values["rlhf_type"] != "grpo":
        return None
    if values["generation_batch_size"]:
        return max(1, values["generation_batch_size"] // _rows_per_pass(values)), "follows generation_batch_size"
    return values["gradient_accumulation_steps"], "follows gradient_accumulation_steps"


@derives("generation_batch_size")
def generation_batch_size(values: Values) -> Derived:
    """As many completions as are learnt from before the next generation."""
    if values["rlhf_type"] != "grpo":
        return None
    size = _rows_per_pass(values) * values["steps_per_generation"]
    return size, "per_device_train_batch_size * steps_per_generation * number of processes"


@derives("num_generations_eval")
def num_generations_eval(values: Values) -> Derived:
    """Groups in evaluation are as large as in training."""
    return (values["num_generations"], "follows num_generations") if values["rlhf_type"] == "grpo" else None


@derives("epsilon_high")
def epsilon_high(values: Values) -> Derived:
    """The clip range is symmetric."""
    return (values["epsilon"], "follows epsilon") if values["rlhf_type"] == "grpo" else None


@derives("kl_in_reward")
def kl_in_reward(values: Values) -> Derived:
    """As the papers of the estimators do; scaling each reward by itself leaves no place for it in the reward."""
    if values["rlhf_type"] != "grpo":
        return None
    if values["scale_rewards"] == "gdpo":
        return False, "gdpo scales each reward by itself"
    return values["advantage_estimator"] != "grpo", f"as {values['advantage_estimator']} does"


@derives("scale_rewards")
def scale_rewards(values: Values) -> Derived:
    """As the papers of the estimators do."""
    if values["rlhf_type"] != "grpo":
        return None
    name = {"grpo": "group", "rloo": "none", "reinforce_plus_plus": "batch"}[values["advantage_estimator"]]
    return name, f"as {values['advantage_estimator']} does"


@derives("cosine_max_len")
def cosine_max_len(values: Values) -> Derived:
    """The longest answer is the longest completion."""
    return _completion_length(values, "cosine")


@derives("soft_max_length")
def soft_max_length(values: Values) -> Derived:
    """The longest answer is the longest completion."""
    return _completion_length(values, "soft_overlong")


def _completion_length(values: Values, reward: str) -> Derived:
    used = reward in values["reward_funcs"] or (values["reward_funcs"] and values["external_plugins"])
    return (values["max_completion_length"], "follows max_completion_length") if used else None


def _rows_per_pass(values: Values) -> int:
    return values["per_device_train_batch_size"] * processes()
