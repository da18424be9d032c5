"""This file knows which optional packages there are and what installs them."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

from swift.core.errors import MissingPackage

EXTRAS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "lmdeploy": "lmdeploy",
    "deepspeed": "deepspeed",
    "ray": "ray",
    "bitsandbytes": "quant",
    "hqq": "quant",
    "optimum": "quant",
    "evalscope": "eval",
    "gradio": "ui",
    "modelscope_hub": "modelscope",
    "swanlab": "swanlab",
    "liger_kernel": "liger",
    "wandb": "wandb",
}
"""Module -> the extra of Swiftlet that brings it."""


def need(module: str, why: str) -> ModuleType:
    """Import an optional module, or raise MissingPackage with the line that installs it.

    `why` completes the sentence "... needs the package": `--infer_backend vllm`.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise  # the package is there; something it needs itself is not
        raise _missing(root, why) from None


def need_installed(package: str, why: str) -> None:
    """As `need`, without importing the package: what uses it is another process."""
    if find_spec(package) is None:
        raise _missing(package, why)


def _missing(package: str, why: str) -> MissingPackage:
    extra = EXTRAS.get(package)
    line = f"pip install 'swiftlet[{extra}]'" if extra else f"pip install {package}"
    return MissingPackage(f"{why} needs the package {package}, which is not installed. Run: {line}")
