"""This file knows how a reply ends where a stop word begins, while it is still being written."""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """Lets through the text of one reply up to the first of some words; what may be the beginning of one is held back."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(word for word in words if word)
        self._held = ""
        self._is_over = False

    def feed(self, piece: str) -> str:
        """What is certain to stand in front of the first word."""
        if not self._words:
            return piece
        if self._is_over:
            return ""
        text = self._held + piece
        places = [place for word in self._words if (place := text.find(word)) >= 0]
        if places:
            self._is_over, self._held = True, ""
            return text[: min(places)]
        end = min(_beginning(text, word) for word in self._words)
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _beginning(text: str, word: str) -> int:
    """Where a word may begin at the end of a text; the length of the text when it does not."""
    for place in range(max(0, len(text) - len(word) + 1), len(text)):
        if word.startswith(text[place:]):
            return place
    return len(text)
