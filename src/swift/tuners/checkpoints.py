"""This file knows what a checkpoint of an adapter holds beside what peft writes, and how training goes on from it.

A saved adapter is for everybody: it belongs to the original model, and any tool that reads peft's format can use it.
Some adapters are another thing while they are trained. A row here says how the one becomes the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from swift.tuners import adalora, residual
from swift.tuners.own.folder import tuning_of
from swift.tuners.plugin import plugged_of


@dataclass(frozen=True)
class Form:
    """A form of training that is not the saved one.

    holds: whether the adapter of a model is of this form.
    complete: make what peft has saved in a folder whole.
    resume: bring the model to where it was when that was saved, to the last bit.
    """

    holds: Callable[[nn.Module], bool]
    complete: Callable[[PeftModel, Path], None]
    resume: Callable[[PeftModel, Path], None]


FORMS = (
    Form(residual.is_residual, residual.write_as_change, residual.resume),
    Form(adalora.is_adalora, adalora.save_state, adalora.resume),
)


def complete(model: nn.Module, folder: Path) -> None:
    """Make the adapter that was just saved in a folder whole; nothing to do for most."""
    for form in FORMS:
        if form.holds(model):
            assert isinstance(model, PeftModel), "only adapters have other forms"
            form.complete(model, folder)


def is_read_while_written(model: nn.Module) -> bool:
    """Whether a checkpoint is made from the model itself, and not from a copy of its weights alone."""
    return plugged_of(model) is not None or any(form.holds(model) for form in FORMS)


def write(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None) -> bool:
    """Write what a method of ours, or a tuner of one's own, has trained; False when transformers and peft write it.

    state: the weights of the model, where they had to be gathered from several devices.
    """
    plugged = plugged_of(model)
    if plugged is not None:
        plugged.save(model, folder, state)
        return True
    tuning = tuning_of(model)
    if tuning is None:
        return False
    assert isinstance(model, PreTrainedModel), "our own methods change models and put nothing around them"
    tuning.save(model, folder, state)
    return True


def resume(model: nn.Module, folder: Path) -> bool:
    """Bring a model to where it was when its checkpoint was saved; False when its adapter is trained as it is saved."""
    plugged = plugged_of(model)
    if plugged is not None:
        plugged.resume(folder)
        return True
    tuning = tuning_of(model)
    if tuning is not None:
        tuning.load(model, folder)
        return True
    form = next((form for form in FORMS if form.holds(model)), None)
    if form is None:
        return False
    assert isinstance(model, PeftModel), "only adapters have other forms"
    form.resume(model, folder)
    return True
