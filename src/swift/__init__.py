"""Swiftlet: from data to a trained, served and exported language model.

The public names are resolved when they are first asked for, so that `import swift` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

NAMES = {
    "sft_main": "swift.commands.entries:sft_main",
    "pretrain_main": "swift.commands.entries:pretrain_main",
    "infer_main": "swift.commands.entries:infer_main",
    "deploy_main": "swift.commands.entries:deploy_main",
    "run_deploy": "swift.commands.deploy:run_deploy",
    "export_main": "swift.commands.entries:export_main",
    "merge_lora": "swift.commands.entries:merge_lora",
    "SftArguments": "swift.options.commands:Sft",
    "PretrainArguments": "swift.options.commands:Pt",
    "InferArguments": "swift.options.commands:Infer",
    "DeployArguments": "swift.options.commands:Deploy",
    "ExportArguments": "swift.options.commands:Export",
    "Conversation": "swift.chat.messages:Conversation",
    "Message": "swift.chat.messages:Message",
    "Renderer": "swift.chat.render:Renderer",
    "InferEngine": "swift.commands.asking:InferEngine",
    "TransformersEngine": "swift.commands.asking_engines:TransformersEngine",
    "VllmEngine": "swift.commands.asking_engines:VllmEngine",
    "SglangEngine": "swift.commands.asking_engines:SglangEngine",
    "LmdeployEngine": "swift.commands.asking_engines:LmdeployEngine",
    "InferClient": "swift.engines.client:InferClient",
    "InferRequest": "swift.engines.requests:InferRequest",
    "RequestConfig": "swift.engines.requests:RequestConfig",
    "AdapterRequest": "swift.engines.requests:AdapterRequest",
    "InferStats": "swift.engines.responses:InferStats",
    "get_logger": "swift.core.logs:get_logger",
}
"""Public name -> where it lives."""

__all__ = [*NAMES]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]  # names, resolved lazily


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in NAMES:
        raise AttributeError(f"module 'swift' has no attribute {name!r}")
    module, _, attribute = NAMES[name].partition(":")
    return vars(importlib.import_module(module))[attribute]


def __dir__() -> list[str]:
    return sorted(NAMES)
