"""This file knows the words on the pages, in Chinese and English."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PageWords:
    """The words of the chat page."""

    model: str
    system: str
    set_system: str
    question: str
    send: str
    stop: str
    again: str
    clear: str
    thinking: str
    thought: str


PAGE: dict[str, PageWords] = {
    "en": PageWords(
        "Model", "System", "Set system and clear history", "Type a message ...", "Send", "Stop", "Regenerate", "Clear history",
        "Thinking ...", "Thought",
    ),
    "zh": PageWords("模型", "System", "设置 system 并清空历史", "请输入 ...", "发送", "停止", "重新生成", "清空历史", "思考中 ……", "思考过程"),
}  # fmt: skip
