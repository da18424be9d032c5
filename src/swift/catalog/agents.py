"""This file knows the agent templates: how tools are told to a model and called by it, by name."""

from __future__ import annotations

from typing import Any

from swift.core.registry import Registry

AGENT_TEMPLATES: Registry[Any] = Registry(
    "agent template",
    {
        "react_en": "swift.chat.tools_legacy:REACT_EN",
        "react_zh": "swift.chat.tools_legacy:REACT_ZH",
        "react_grpo": "swift.chat.tools_legacy:REACT_GRPO",
        "qwen_en": "swift.chat.tools_legacy:QWEN_EN",
        "qwen_zh": "swift.chat.tools_legacy:QWEN_ZH",
        "qwen_en_parallel": "swift.chat.tools_legacy:QWEN_EN_PARALLEL",
        "qwen_zh_parallel": "swift.chat.tools_legacy:QWEN_ZH_PARALLEL",
        "toolbench": "swift.chat.tools_legacy:TOOLBENCH",
        "hermes": "swift.chat.tools_json:HERMES",
        "hunyuan_hermes": "swift.chat.tools_json:HUNYUAN_HERMES",
        "youtu": "swift.chat.tools_json:YOUTU",
        "glm4": "swift.chat.tools_json:GLM4",
        "chatglm4": "swift.chat.tools_json:CHATGLM4",
        "llama3": "swift.chat.tools_json:LLAMA3",
        "llama4": "swift.chat.tools_json:LLAMA4",
        "mistral": "swift.chat.tools_json:MISTRAL",
        "deepseek_v3_1": "swift.chat.tools_json:DEEPSEEK_V3_1",
        "qwen3_coder": "swift.chat.tools_xml:QWEN3_CODER",
        "qwen3_5": "swift.chat.tools_xml:QWEN3_5",
        "glm4_5": "swift.chat.tools_xml:GLM4_5",
        "glm4_7": "swift.chat.tools_xml:GLM4_7",
        "seed_oss": "swift.chat.tools_xml:SEED_OSS",
        "minimax_m2": "swift.chat.tools_xml:MINIMAX_M2",
    },
)
"""`--agent_template` -> a ToolFormat of `chat/tools.py`, or a class like `BaseAgentTemplate` of plugins."""

CHECKPOINTS_ONLY = (
    "deepseek_v4", "gemma4", "glm5_1", "hy_v3", "hy_v3_preview", "kimi_k25", "kimi_k3", "minicpm5", "minimax_m3",
)  # fmt: skip
"""Agent templates whose exact wording only the chat templates of their checkpoints have; those are used as they are."""
