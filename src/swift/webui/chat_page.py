"""This file knows the chat page: what is on it, and what its buttons do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swift.core.errors import SwiftError
from swift.core.extras import need
from swift.webui.talk import Partner, Turn, asked, unanswered
from swift.webui.words import PAGE, PageWords

VISITORS = 16
"""Replies that are written at a time."""
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
_TAGS = str.maketrans({"<": "&lt;", ">": "&gt;"})
_TAGS_AND_STARS = str.maketrans({"<": "&lt;", ">": "&gt;", "*": "\\*"})
_FORMULAS = [
    {"left": left, "right": right, "display": is_block}
    for left, right, is_block in (("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False))
]


@dataclass(frozen=True)
class ChatPage:
    """The chat page of one model. system: the text that its box begins with. language: `en` or `zh`."""

    partner: Partner
    title: str
    system: str = ""
    language: str = "en"

    def build(self) -> Any:
        """The page, a `gradio.Blocks` that is ready to be launched. Raises MissingPackage without gradio."""
        gr = need("gradio", "swift app")
        words = PAGE[self.language]
        with gr.Blocks(title=self.title, analytics_enabled=False, fill_height=True) as page:
            turns, system = gr.State([]), gr.State(self.system)
            model = self._choice(gr, words)
            gr.Markdown(f"<h1 style='text-align: center'>{_escaped(self.title, _TAGS_AND_STARS)}</h1>")
            with gr.Row():
                box = gr.Textbox(self.system, label=words.system, lines=1, max_lines=8, scale=4)
                set_system = gr.Button(words.set_system, scale=1, min_width=300)
            chat = gr.Chatbot(
                label=self.title, show_label=False, scale=1, buttons=["copy"], feedback_options=None,
                latex_delimiters=_FORMULAS,
            )  # fmt: skip
            query = gr.Textbox(placeholder=words.question, show_label=False, lines=1, max_lines=16, autofocus=True)
            with gr.Row():
                send = gr.Button(words.send, variant="primary")
                stop, again, clear = (gr.Button(word) for word in (words.stop, words.again, words.clear))
            shown = [turns, chat]
            running = [
                gr.on(
                    [send.click, query.submit],
                    self._send,
                    [query, turns, system, model],
                    [query, *shown],
                    api_name="send",
                ),
                again.click(self._again, [turns, system, model], shown, api_name="regenerate"),
            ]
            stop.click(None, cancels=running, api_name=False)
            clear.click(self._clear, None, shown, cancels=running, api_name="clear")
            chat.clear(self._clear, None, shown, cancels=running, api_name=False)
            set_system.click(self._set_system, [box], [system, *shown], cancels=running, api_name="set_system")
        page.queue(default_concurrency_limit=VISITORS)
        return page

    def _choice(self, gr: Any, words: PageWords) -> Any:
        """What says which model is asked: a menu where there are several."""
        models = list(self.partner.models)
        return gr.Dropdown(models, value=models[0], label=words.model) if len(models) > 1 else gr.State(models[0])

    def _send(
        self, query: str, turns: list[Turn], system: str, model: str
    ) -> Iterator[tuple[str, list[Turn], list[Any]]]:
        """Ask, and show the reply as it grows; the box is emptied."""
        if not query.strip():
            yield query, turns, self._shown(turns)
            return
        for grown in self._answered(asked(turns, query), system, model):
            yield "", grown, self._shown(grown)

    def _again(self, turns: list[Turn], system: str, model: str) -> Iterator[tuple[list[Turn], list[Any]]]:
        """Ask the last question once more."""
        question = unanswered(turns)
        if not question:
            yield turns, self._shown(turns)
            return
        for grown in self._answered(question, system, model):
            yield grown, self._shown(grown)

    def _answered(self, turns: list[Turn], system: str, model: str) -> Iterator[list[Turn]]:
        """The conversation with its reply as it grows."""
        gr = need("gradio", "swift app")
        yield turns
        try:
            for turn in self.partner.answer(model, system, turns):
                yield [*turns, turn]
        except SwiftError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def _clear(self) -> tuple[list[Turn], list[Any]]:
        return [], []

    def _set_system(self, text: str) -> tuple[str, list[Turn], list[Any]]:
        """Begin anew with another system text."""
        return text, [], []

    def _shown(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        return [each for turn in turns for each in shown(turn, PAGE[self.language])]


def shown(turn: Turn, words: PageWords) -> Iterator[dict[str, Any]]:
    """A turn as the page shows it: what was thought is folded, and open while it grows."""
    if turn.get("reasoning"):
        is_thought = turn["is_done"] or bool(turn["content"])
        title, status = (words.thought, "done") if is_thought else (words.thinking, "pending")
        about = {"title": title, "status": status}
        yield {"role": "assistant", "content": _escaped(turn["reasoning"], _TAGS), "metadata": about}
    if turn["content"] or not turn.get("reasoning"):
        meant = _TAGS if turn["role"] == "assistant" else _TAGS_AND_STARS
        yield {"role": turn["role"], "content": _escaped(turn["content"], meant)}


def _escaped(text: str, characters: Mapping[int, str]) -> str:
    """A text in which some characters mean themselves; code is left alone, in which they do anyway."""
    parts = _CODE.split(text)
    return "".join(part if place % 2 else part.translate(characters) for place, part in enumerate(parts))
