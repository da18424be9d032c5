"""This file knows how token ids become text while they arrive, without ever showing half a character."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no character (yet)."""
LONGEST = 4
"""Bytes of the longest character in UTF-8."""
WINDOW = 24
"""Tokens decoded at a time, so that a long reply costs the same per token as a short one; only senseless bytes, which
have no end to cut at, make it more."""
CONTEXT = 6
"""Tokens kept in front of the new ones: some decoders drop the blank of the first token they see."""


class Detokenizer:
    """Turns the ids of one reply into pieces of text; joined, the pieces are the text of the whole.

    A character has up to four bytes and may be spread over as many tokens. The decoder writes U+FFFD for what is
    incomplete: such an end is held back until it makes sense. After four tokens it never will, and is shown, but for
    what may still begin a character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self._window: list[int] = []
        self._shown = 0
        self._senseless = 0

    def add(self, token_id: int) -> str:
        """The text that this token completes; "" while a character is incomplete."""
        self._window.append(token_id)
        decoded = decode(self.tokenizer, self._window)
        end = len(decoded.rstrip(REPLACEMENT))
        self._senseless = 0 if end == len(decoded) else self._senseless + 1
        if self._senseless >= LONGEST:
            end = max(end, len(decoded) - LONGEST + 1)
        piece = decoded[self._shown : end]
        self._shown = max(self._shown, end)
        self.text += piece
        if len(self._window) >= WINDOW and end == len(decoded):
            self._shorten()
        return piece

    def finish(self) -> str:
        """What was held back, as the decoder writes it; nothing follows."""
        piece = decode(self.tokenizer, self._window)[self._shown :]
        self._window, self._shown = [], 0
        self.text += piece
        return piece

    def _shorten(self) -> None:
        """Forget all but the last tokens, beginning with a whole character where there is one."""
        for count in range(CONTEXT, CONTEXT + LONGEST):
            if REPLACEMENT not in decode(self.tokenizer, self._window[-count:]):
                break
        else:
            count = CONTEXT
        self._window = self._window[-count:]
        self._shown = len(decode(self.tokenizer, self._window))


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """The text of ids with nothing hidden: special tokens are written out, blanks are left as they are."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str), "one sequence of ids decodes to one text"
    return text


def text_of(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """The text of a whole reply, exactly as a Detokenizer would have shown it."""
    whole = decode(tokenizer, token_ids)
    if REPLACEMENT not in whole:
        return whole  # every character is complete: the pieces can only be pieces of this
    pieces = Detokenizer(tokenizer)
    for token_id in token_ids:
        pieces.add(token_id)
    pieces.finish()
    return pieces.text
