"""Tiny real trainings for the tests of the trainers: one call makes data, model, session and trainer, and trains."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tiny
from swift.chat.render import Sample
from swift.data.collate import Flattened, Padded
from swift.options.general import GeneralOptions
from swift.options.optimizers import OptimizerOptions
from swift.options.tracking import TrackingOptions
from swift.options.training import TrainingOptions
from swift.trainers.arguments import training_arguments
from swift.trainers.feed import Companions, Feed
from swift.trainers.outputs import Continuation
from swift.trainers.session import Outcome, Session, open_session
from swift.trainers.supervised import SupervisedTrainer

PLAIN = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "max_steps": 4,
    "gradient_checkpointing": False, "dataloader_num_workers": 0, "logging_steps": 1, "save_strategy": "no",
    "eval_strategy": "no", "metric_for_best_model": "loss", "greater_is_better": False, "optim": "adamw_torch",
    "lr_scheduler_type": "constant",
}  # fmt: skip
"""What the tests train with, unless they say otherwise."""


def samples(count: int = 16, weighted: bool = False, seed: int = 0) -> list[Sample]:
    """Samples of ragged lengths that learn the second part of what they hold."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        length = draw.randint(4, 24)
        ids = [draw.randrange(5, 400) for _ in range(length)]
        first = draw.randint(1, length - 1)
        weights = [draw.choice([0.5, 1.0, 2.0]) for _ in ids] if weighted else None
        made.append(Sample(ids, [-100] * first + ids[first:], weights))
    return made


@dataclass
class Run:
    """A training: its parts, and how it ended."""

    trainer: SupervisedTrainer
    session: Session
    outcome: Outcome | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return self.trainer.state.log_history

    def logged(self, name: str) -> list[float]:
        return [entry[name] for entry in self.history if name in entry]

    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters by name, cut off from the model."""
        return {name: value.detach().clone() for name, value in self.trainer.model.named_parameters()}

    def journal(self) -> list[dict[str, Any]]:
        """The lines of logging.jsonl."""
        return [json.loads(line) for line in self.session.journal.file.read_text().splitlines()]


def prepare(folder: Path, *, model: Any = None, train: list[Sample] | None = None, val: list[Sample] | None = None,
            collate: Any = None, mesh: Any = None, extra: dict[str, Any] | None = None, seed: int = 42,
            tracking: Any = None, galore: dict[str, Any] | None = None, lorap_lr_ratio: float | None = None,
            watchers: Sequence[Any] = (), **options: Any) -> Run:  # fmt: skip
    """A trainer on tiny data, ready to train into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    training = TrainingOptions(**{**PLAIN, **options})
    args = training_arguments(
        training, GeneralOptions(seed=seed), output_dir=folder, precision="no",
        extra={"use_cpu": True, **(extra or {})}, galore=OptimizerOptions(**(galore or {})), lorap_lr_ratio=lorap_lr_ratio,
    )  # fmt: skip
    session = open_session(folder, training, tracking or TrackingOptions(report_to=["none"]))
    trainer = SupervisedTrainer(
        model if model is not None else tiny.model(),
        args,
        Feed(
            train or samples(),
            val,
            collate or Padded(0),
            seed,
            training.train_dataloader_shuffle,
            training.group_by_length,
            mesh=mesh,
        ),
        Companions(tiny.tokenizer(), tiny.CHATML, background=training.use_flash_ckpt),
        training,
        [*watchers, *session.callbacks],
    )
    return Run(trainer, session)


def train(folder: Path, *, resume: Path | Continuation | None = None, **settings: Any) -> Run:
    """Prepare and train."""
    run = prepare(folder, **settings)
    run.outcome = run.session.run(run.trainer, Continuation(resume) if isinstance(resume, Path) else resume, {})
    return run


def flattened() -> Flattened:
    return Flattened()


def lora(dropout: float = 0.0, seed: int = 0) -> Any:
    """The tiny model with a LoRA adapter whose matrices both matter from the first step."""
    from peft import LoraConfig, get_peft_model

    base = tiny.model()
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is being renamed
        return get_peft_model(base, config)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are the same to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights."""
    return max(float((first[name] - second[name]).detach().abs().max()) for name in first)
