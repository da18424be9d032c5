"""This file knows the renderers of a served model: one for texts as they are, and one for each wish to think."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swift.chat.render import Renderer
from swift.engines.vllm_reasoning import ReasoningParser
from swift.options.template import TemplateOptions


class Renderers:
    """Makes renderers when they are first needed, and keeps them.

    make: makes the renderer of the model for some options. options: those of the server.
    parser: what tells thinking from words in replies that are held to no structure; None goes by tags.
    """

    def __init__(
        self, make: Callable[[TemplateOptions], Renderer], options: TemplateOptions, parser: ReasoningParser | None = None
    ) -> None:  # fmt: skip
        self.parser = parser
        self._make = make
        self._options = options
        self._made = {options.enable_thinking: make(options)}
        self.plain = make(options.model_copy(update={"use_chat_template": False, "response_prefix": None}))

    def chat(self, enable_thinking: bool | None = None) -> Renderer:
        """The renderer of chats in which the model thinks or does not; None leaves that to the server."""
        wish = self._wish(enable_thinking)
        if wish not in self._made:
            self._made[wish] = self._make(self._options.model_copy(update={"enable_thinking": wish}))
        return self._made[wish]

    def switches(self, enable_thinking: bool | None = None) -> dict[str, Any]:
        """The variables of the chat template that are set in such a chat."""
        wish = self._wish(enable_thinking)
        return {} if wish is None else {"enable_thinking": wish}

    def _wish(self, enable_thinking: bool | None) -> bool | None:
        return self._options.enable_thinking if enable_thinking is None else enable_thinking
