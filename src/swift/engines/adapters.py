"""This file knows how rows with different adapters share a model: side by side in one batch, or one adapter at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from swift.core.errors import EngineError

if TYPE_CHECKING:
    from peft import PeftModel  # seconds to import, and needed for its name only

MIXING = frozenset({"Linear", "Embedding", "Linear4bit", "Linear8bitLt"})
"""peft's LoRA layers that take rows of different adapters."""
BASE = "__base__"
"""What peft calls a row without an adapter."""


class Adapters:
    """The adapters of a model that are chosen by name, row by row; without any the model is left as it is.

    mix: whether rows of different adapters can be in one batch. peft can do it with plain LoRA.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, names: Sequence[str]) -> None:
        self.names: tuple[str, ...] = ()
        self.mix = True
        self._model: Any = model
        self._active: str | None = ""  # none of them yet, and not the base either
        if names:
            self.add(model, names)

    def add(self, model: PreTrainedModel | PeftModel, names: Sequence[str]) -> None:
        """More of them, which the model has by now."""
        known = [] if isinstance(model, PreTrainedModel) else list(model.peft_config)
        missing = [name for name in names if name not in known]
        if missing:
            raise EngineError(f"The model has no adapter {', '.join(missing)}; it has {', '.join(known) or 'none'}.")
        self.names = (*self.names, *names)
        self._model, self._active = model, ""
        self.mix = _mixes(model, self.names)

    def check(self, name: str | None) -> None:
        """Refuse a name that the model does not have."""
        if name is not None and name not in self.names:
            known = ", ".join(self.names) or "none"
            raise EngineError(f"There is no adapter {name!r}; there is {known}.")

    def use(self, wanted: Sequence[str | None]) -> dict[str, Any]:
        """Make the model ready for rows with these adapters; returns what its forward pass has to be told."""
        if not self.names:
            return {}
        if len(set(wanted)) > 1:
            assert self.mix, "rows of different adapters came into one batch"
            if self._active is None or self._active == "":
                self._activate(next(name for name in wanted if name is not None))
            return {"adapter_names": [BASE if name is None else name for name in wanted]}
        self._activate(wanted[0])
        return {}

    def release(self) -> None:
        """Let go of the model."""
        self._model = None

    def _activate(self, name: str | None) -> None:
        if name == self._active:
            return
        if name is None:
            self._model.base_model.disable_adapter_layers()
        else:
            self._model.base_model.enable_adapter_layers()
            self._model.set_adapter(name, inference_mode=True)
        self._active = name


def _mixes(model: Any, names: Sequence[str]) -> bool:
    """Whether peft can apply these adapters to some rows of a batch only: LoRA as it was first published, on layers that
    know of `adapter_names`."""
    if any(model.peft_config[name].peft_type != "LORA" for name in names):
        return False
    adapted = [module for module in model.modules() if hasattr(module, "lora_variant")]
    return all(
        type(module).__name__ in MIXING and not any(name in module.lora_variant for name in names) for module in adapted
    )
