"""This file knows what LMDeploy's engines are called with: our options in its words, checked against the version installed.

It has two engines. TurboMind is the faster one; PyTorch's knows more models, adapters, and the log-probabilities of the model
itself. Each has a config of its own, and further arguments that only one of them has choose it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from swift.core.errors import EngineError, UsageError
from swift.core.extras import need
from swift.core.logs import get_logger
from swift.engines.others import Served, check_adapter, check_devices, check_gpu, check_known, first_words
from swift.options.engines import LmdeployOptions

WHY = "--infer_backend lmdeploy"
NAMES = {
    "lmdeploy_tp": "tp",
    "lmdeploy_session_len": "session_len",
    "lmdeploy_cache_max_entry_count": "cache_max_entry_count",
    "lmdeploy_quant_policy": "quant_policy",
}
"""Option -> argument of both configs. Those that are None are left to LMDeploy."""
DTYPES = ("auto", "float16", "bfloat16")
"""Types in which it computes."""
TURBOMIND, PYTORCH = "turbomind", "pytorch"


@dataclass(frozen=True)
class Configs:
    """The names that LMDeploy's two configs know, and whether TurboMind reads the model."""

    turbomind: frozenset[str]
    pytorch: frozenset[str]
    is_supported: bool


def chosen_engine(served: Served, options: LmdeployOptions, configs: Configs, *, tells: bool) -> tuple[str, str]:
    """Which of the two engines serves a model, and why.

    tells: whether log-probabilities are asked for.
    Raises UsageError for further arguments that no engine has, or of which each has some.
    """
    more = options.lmdeploy_engine_kwargs or {}
    known = dict.fromkeys(configs.turbomind | configs.pytorch)
    check_known("lmdeploy_engine_kwargs", more, known, "LMDeploy")
    only = {
        TURBOMIND: [name for name in more if name not in configs.pytorch],
        PYTORCH: [name for name in more if name not in configs.turbomind],
    }
    why_pytorch = _why_pytorch(served, configs, tells=tells, named=only[PYTORCH])
    if not only[TURBOMIND]:
        return (PYTORCH, why_pytorch) if why_pytorch else (TURBOMIND, "the faster one")
    if why_pytorch:
        raise UsageError(
            f"--lmdeploy_engine_kwargs: only the TurboMind engine has {', '.join(only[TURBOMIND])}, and the PyTorch engine "
            f"is needed: {why_pytorch}. Drop one of them."
        )
    return TURBOMIND, f"only it has {', '.join(only[TURBOMIND])}"


def _why_pytorch(served: Served, configs: Configs, *, tells: bool, named: list[str]) -> str:
    if served.all_adapters:
        return "only it reads adapters"
    if tells:
        return "only it tells the log-probabilities of the model itself"
    if named:
        return f"only it has {', '.join(named)}"
    return "" if configs.is_supported else "TurboMind does not know the model"


def engine_arguments(
    served: Served, options: LmdeployOptions, engine: str, devices: int | None = None
) -> dict[str, Any]:
    """The arguments of `TurbomindEngineConfig` or `PytorchEngineConfig`; `--lmdeploy_engine_kwargs` is merged last.

    engine: which of the two. devices: how many GPUs there are; None does not count them.
    Raises EngineError for what LMDeploy cannot serve.
    """
    if served.dtype not in DTYPES:
        raise EngineError(
            f"--infer_backend lmdeploy computes in float16 or bfloat16, and the model is to be loaded in {served.dtype}. "
            "Give --torch_dtype bfloat16."
        )
    values = options.model_dump()
    arguments: dict[str, Any] = {
        "dtype": served.dtype,
        "session_len": served.context_length,
        "hf_overrides": dict(served.overrides) or None,
        "enable_metrics": False,  # the server has metrics of its own
    }
    arguments |= {name: values[option] for option, name in NAMES.items() if values[option] is not None}
    check_devices({"lmdeploy_tp": options.lmdeploy_tp}, devices)
    arguments |= _of_turbomind(served) if engine == TURBOMIND else _of_pytorch(served)
    arguments |= options.lmdeploy_engine_kwargs or {}
    return {name: value for name, value in arguments.items() if value is not None}


def _of_turbomind(served: Served) -> dict[str, Any]:
    return {"devices": list(served.devices) or None}


def _of_pytorch(served: Served) -> dict[str, Any]:
    if served.devices and served.devices[0] > 0:
        raise EngineError(
            "NPROC_PER_NODE with LMDeploy's PyTorch engine: it takes the first GPUs it sees, so processes cannot share the "
            "rows. Use one process and --lmdeploy_tp, or merge the adapter (--merge_lora true)."
        )
    for folder in served.all_adapters.values():
        check_adapter(folder, "lmdeploy")
    adapters = {name: str(folder) for name, folder in served.all_adapters.items()}
    return {"adapters": adapters or None, "logprobs_mode": "raw_logprobs"}


def known_configs(messages: Any, *, is_supported: bool) -> Configs:
    """What the configs in `lmdeploy.messages` know."""
    turbomind, pytorch = (
        frozenset(each.name for each in fields(kind))
        for kind in (messages.TurbomindEngineConfig, messages.PytorchEngineConfig)
    )
    return Configs(turbomind, pytorch, is_supported)


def config_of(messages: Any, arguments: Mapping[str, Any], engine: str) -> Any:
    """The config of an engine. Raises EngineError for a value that it refuses."""
    kind = messages.TurbomindEngineConfig if engine == TURBOMIND else messages.PytorchEngineConfig
    try:
        return kind(**arguments)
    except (ValueError, TypeError, AssertionError) as error:
        raise EngineError(f"LMDeploy's {kind.__name__} refuses its arguments: {first_words(error)}") from error


def made_engine(served: Served, options: LmdeployOptions, *, tells: bool) -> Any:
    """LMDeploy's AsyncEngine, which waits for its event loop.

    Raises MissingPackage without LMDeploy, EngineError without a GPU and when it cannot be started.
    """
    need("lmdeploy", WHY)
    check_gpu("lmdeploy")
    messages: Any = need("lmdeploy.messages", WHY)
    backend = need("lmdeploy.archs", WHY).autoget_backend(str(served.folder), trust_remote_code=served.trusts_code)
    configs = known_configs(messages, is_supported=backend == TURBOMIND)
    engine, why = chosen_engine(served, options, configs, tells=tells)
    get_logger().info("LMDeploy serves with its %s engine: %s", engine, why)
    devices = torch.cuda.device_count() if torch.cuda.is_available() else None
    config = config_of(messages, engine_arguments(served, options, engine, devices), engine)
    made: Any = need("lmdeploy.serve.core.async_engine", WHY).AsyncEngine
    try:
        return made(
            str(served.folder), backend=engine, backend_config=config, trust_remote_code=served.trusts_code
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AssertionError, OSError) as error:
        raise EngineError(f"LMDeploy cannot serve {served.folder}: {first_words(error)}") from error
