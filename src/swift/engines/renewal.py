"""This file knows how a model that answers is given the weights of another checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from swift.core.errors import EngineError
from swift.models.info import read_json
from swift.models.packed import PackedLinear, pack


def renewed(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The same model with the weights of a checkpoint: in the same type and place, laid out in memory in the same way.

    Both are there for a moment. Raises EngineError for a model that is quantized or lies on several devices, and for a
    checkpoint that is of another architecture or other sizes, or lacks weights.
    """
    name = type(model).__name__
    is_quantized = "quantization_config" in model.config.to_dict()
    if is_quantized or len({parameter.device for parameter in model.parameters()}) > 1:
        raise EngineError(f"A {name} that is quantized, or lies on several devices, cannot be given other weights.")
    if not (folder / "config.json").is_file():
        raise EngineError(f"{folder} is no checkpoint: it has no config.json.")
    found = read_json(folder / "config.json").get("architectures") or ["none"]
    if name not in found:
        raise EngineError(f"{folder} holds weights of {', '.join(found)}, and this engine answers by {name}.")
    made: Any = type(model)
    fresh, report = made.from_pretrained(
        folder, dtype=model.dtype, attn_implementation=model.config._attn_implementation, output_loading_info=True
    )  # fmt: skip
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    shapes = {each: value.shape for each, value in model.state_dict().items() if each in fresh.state_dict()}
    wrong += sorted(each for each, shape in shapes.items() if fresh.state_dict()[each].shape != shape)
    if wrong:
        raise EngineError(f"{folder} does not fit the model that answers: {', '.join(wrong[:3])}.")
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        pack(fresh)
    return fresh.to(model.device).eval()
