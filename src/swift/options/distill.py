"""This file knows the options of distillation: generalised knowledge distillation (GKD) from a teacher."""

from swift.options.conditions import equals
from swift.options.declare import Fraction, Options, option

GKD = equals("rlhf_type", "gkd")


class DistillOptions(Options):
    """Generalised knowledge distillation."""

    lmbda: Fraction = option(0.5, when=GKD)
    """Share of steps in which the student's own completions are learnt from; 0 uses none."""
    sft_alpha: float = option(0.0, when=GKD)
    """Weight of the supervised loss: the loss is gkd_loss + sft_alpha * sft_loss."""
    seq_kd: bool = option(False, when=GKD)
    """Whether the teacher's own completions are learnt from where the student's are not. Generating them beforehand
    is faster; generating them here gives new ones in each epoch."""
    offload_teacher_model: bool = option(False, when=GKD)
    """Whether the teacher is kept in main memory while it is not needed."""
    log_completions: bool = option(False, when=equals("rlhf_type", "grpo", "gkd"))
    """Whether completions are recorded, by wandb or swanlab when `--report_to` names them and in completions.jsonl
    otherwise. In GKD only those sampled by vLLM."""
