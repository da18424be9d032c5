"""This file knows the renderers of a served model: one for texts as they are, and one for each wish to think."""

from __future__ import annotations

from collections.abc import Callable

from swift.chat.render import Renderer
from swift.options.template import TemplateOptions


class Renderers:
    """Makes renderers when they are first needed, and keeps them.

    make: makes the renderer of the model for some options. options: those of the server.
    """

    def __init__(self, make: Callable[[TemplateOptions], Renderer], options: TemplateOptions) -> None:
        self._make = make
        self._options = options
        self._made = {options.enable_thinking: make(options)}
        self.plain = make(options.model_copy(update={"use_chat_template": False, "response_prefix": None}))

    def chat(self, enable_thinking: bool | None = None) -> Renderer:
        """The renderer of chats in which the model thinks or does not; None leaves that to the server."""
        wish = self._options.enable_thinking if enable_thinking is None else enable_thinking
        if wish not in self._made:
            self._made[wish] = self._make(self._options.model_copy(update={"enable_thinking": wish}))
        return self._made[wish]
