"""This file knows the rules between options of how a model is loaded."""

from __future__ import annotations

from typing import Any

from swift.options.case import Case, Rules, exclusive
from swift.options.conditions import TRAINING, Words
from swift.options.model import QUANT_BITS

rule = Rules()
EXPORTING = ("export", "merge-lora")


@rule()
def quantization_has_its_bits(case: Case) -> Words | None:
    """Every method has its own numbers of bits; only fp8 has one that goes without saying."""
    method, bits = case["quant_method"], case["quant_bits"]
    if method is None or case.command in EXPORTING:
        return None
    known = [str(number) for number in QUANT_BITS[method]]
    shown, shown_zh = " or ".join(known), " 或 ".join(known)
    if bits is None and method != "fp8":
        return Words(
            f"--quant_method {method} needs --quant_bits: {shown}.",
            f"--quant_method {method} 需要 --quant_bits：{shown_zh}。",
        )
    if bits is None or str(bits) in known:
        return None
    return Words(
        f"--quant_method {method} has no --quant_bits {bits}, but {shown}.",
        f"--quant_method {method} 不支持 --quant_bits {bits}，可选：{shown_zh}。",
    )


@rule(*TRAINING)
def quantized_weights_are_not_trained(case: Case) -> Words | None:
    """A few bits have no room for the small steps of an optimizer."""
    if not case["quant_method"] or case["tuner_type"] != "full":
        return None
    return Words(
        f"--quant_method {case['quant_method']} and --tuner_type full cannot be used together: quantized weights are not "
        "trained, only adapters beside them. Use --tuner_type lora, or drop --quant_method.",
        f"--quant_method {case['quant_method']} 与 --tuner_type full 不能同时使用：量化权重无法训练，只能训练 adapter。"
        "请使用 --tuner_type lora，或去掉 --quant_method。",
    )


@rule()
def missing_weights_come_before_quantization(case: Case) -> Words | None:
    """Weights are quantized while they are read, and those to fill are not read."""
    return exclusive(
        case, "init_strategy", "quant_method", "weights that are filled in are not quantized", "填充的权重无法被量化"
    )


@rule()
def hqq_fits_one_device(case: Case) -> Words | None:
    """Its layers replace those of a model that is loaded."""
    if case["quant_method"] != "hqq" or not isinstance(case["device_map"], dict):
        return None
    return exclusive(
        case, "quant_method", "device_map", "hqq quantizes a model on one device", "hqq 只支持单设备上的模型"
    )


@rule()
def knobs_are_named_and_set(case: Case) -> Words | None:
    """Each becomes an environment variable."""
    wrong = [name for name, value in (case["model_kwargs"] or {}).items() if not _is_knob(name, value)]
    if not wrong:
        return None
    return Words(
        f"--model_kwargs: {', '.join(map(repr, wrong))} cannot become an environment variable: a name of letters, digits "
        "and _ and a value that is not null are needed.",
        f"--model_kwargs：{', '.join(map(repr, wrong))} 无法作为环境变量：名称只能含字母、数字和下划线，且值不能为 null。",
    )


def _is_knob(name: Any, value: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and name.isascii() and value is not None
