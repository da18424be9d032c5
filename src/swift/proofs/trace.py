"""This file knows what is written down of a training so that it can be held against another, number by number.

Beside the trace of each process, the first process writes tensors: the trained parameters before and after, the
gradient of the first step, the state of the optimizer. Only parameters that are trained are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from swift.models.evaluating import evaluating

BEGIN, END, GRADIENT, OPTIMIZER, LOGITS = (
    f"{name}.safetensors" for name in ("begin", "end", "gradient", "optimizer", "logits")
)
ROWS_KEPT = 4
"""Rows of the first step that are kept, so that the trained model can be asked again."""


@dataclass
class Trace:
    """One training, step by step, as one of its processes saw it.

    first: the step that came first, 1 unless the training went on from a checkpoint.
    losses, norms, rates: the loss, the norm of the gradient before clipping and the learning rate of each step.
    gradients: of each step, the norm of the gradient of each trained parameter, after clipping.
    tokens: of each step, the token ids that went through the model, in their order, without padding.
    rows: the first rows that went through the model.
    """

    first: int = 1
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    gradients: list[dict[str, float]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)

    @staticmethod
    def read(file: Path) -> Trace:
        """A trace that was written; numbers come back to the last bit."""
        return Trace(**json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path) -> None:
        """Write the trace as JSON."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    def order(self) -> list[str]:
        """A short name for the tokens of each step in their order."""
        return [hashlib.sha256(repr(step).encode()).hexdigest()[:16] for step in self.tokens]


@dataclass(frozen=True)
class Wish:
    """What a tracer does besides writing down.

    stop_after: the step after which the training is interrupted, with a checkpoint; None lets it run to its end.
    logits: whether the trained model is asked for the logits of its first rows.
    """

    stop_after: int | None = None
    logits: bool = False


NOTHING = Wish()


class Tracer(TrainerCallback):
    """Writes the trace of a training into `folder`."""

    def __init__(self, folder: Path, wish: Wish = NOTHING) -> None:
        self.folder = folder
        self.wish = wish
        self.trace = Trace()
        self._step: list[int] = []
        self._hook: Any = None
        self._names: set[str] = set()

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                       *, model: nn.Module, **_: Any) -> None:  # fmt: skip
        """Keep what is trained as it is now, and look at every batch from now on."""
        self.trace.first = state.global_step + 1
        self._hook = model.register_forward_pre_hook(self._see, with_kwargs=True)
        self._names = {name for name, _ in trained(model)}
        if args.process_index == 0:
            save_file(_copies(trained(model)), self.folder / BEGIN)

    @override
    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                              *, model: nn.Module, **_: Any) -> None:  # fmt: skip
        """Measure the gradient, and keep that of the first step."""
        gradients = {name: value.grad for name, value in trained(model) if value.grad is not None}
        self.trace.gradients.append({name: float(value.double().norm()) for name, value in gradients.items()})
        self.trace.tokens.append(self._step)
        self._step = []
        if len(self.trace.gradients) == 1 and args.process_index == 0:
            save_file(_copies(gradients.items()), self.folder / GRADIENT)

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Interrupt the training where it is to be interrupted."""
        if state.global_step == self.wish.stop_after:
            control.should_save = control.should_training_stop = True

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               *, logs: dict[str, Any], **_: Any) -> None:  # fmt: skip
        """Note the numbers of a step."""
        if "loss" in logs and "learning_rate" in logs:
            self.trace.losses.append(float(logs["loss"]))
            self.trace.norms.append(float(logs.get("grad_norm", float("nan"))))
            self.trace.rates.append(float(logs["learning_rate"]))

    @override
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                     *, model: nn.Module, optimizer: Any, **_: Any) -> None:  # fmt: skip
        """Write everything."""
        self._hook.remove()
        self.trace.write(self.folder / f"trace-{args.process_index}.json")
        if args.process_index:
            return
        names = self._names | {name for name, _ in trained(model)}  # LISA trains other layers at other times
        ended = ((name, value) for name, value in model.named_parameters() if name in names)
        save_file(_copies(ended), self.folder / END)
        save_file(_copies(optimizer_state(model, optimizer)), self.folder / OPTIMIZER)
        if self.wish.logits:
            save_file({"logits": row_logits(model, self.trace.rows)}, self.folder / LOGITS)

    def _see(self, model: nn.Module, _: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not model.training or "input_ids" not in kwargs:
            return
        ids_BT, mask_BT = kwargs["input_ids"], kwargs.get("attention_mask")
        rows = [
            row[mask_BT[index].bool()] if mask_BT is not None and mask_BT.shape == ids_BT.shape else row
            for index, row in enumerate(ids_BT)
        ]
        self._step += [token for row in rows for token in row.tolist()]
        self.trace.rows += [row.tolist() for row in rows[: max(ROWS_KEPT - len(self.trace.rows), 0)]]


def trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters that are trained, by name; a shared one comes once."""
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)


def optimizer_state(model: nn.Module, optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors an optimizer keeps of each parameter: `<parameter>/<name in the optimizer>`."""
    for name, value in trained(model):
        for key, kept in optimizer.state.get(value, {}).items():
            if isinstance(kept, Tensor):
                yield f"{name}/{key}", kept


@torch.no_grad()
def row_logits(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """The logits of some rows without dropout, one below the other, in float32: [T, V].

    Each row goes through the model by itself.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        logits = [model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0] for row in rows]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in logits]).float().cpu()


def _copies(tensors: Any) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors}
