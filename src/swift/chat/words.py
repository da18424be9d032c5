"""This file knows how texts become token ids word by word, which takes a tenth of the time of a tokenizer's own way.

A byte-level BPE tokenizer cuts a text into words by a regular expression and merges within words alone. The ids of a
text are therefore those of its words end to end, and words repeat. Words of ASCII are found here by `re`, with classes
of Unicode replaced by their ASCII part, and the tokenizer's model is asked for each of them once. Lines with other
characters are left to the tokenizer as a whole: its Unicode need not be of the version of Python's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from tokenizers import Tokenizer, normalizers
from tokenizers.models import BPE

_LIMIT = 100_000
"""Words that are remembered; when there are more, remembering begins anew. They take about 20 MB."""
_LONGEST = 64
"""Characters of a word that is remembered: longer ones seldom come again."""


_PROBE = "It's\tONE (2, 345)...\n\n  def f_x(a):\r\n    return a/b != '' # we'LL see\n \n" + "".join(
    map(chr, range(128))
)
"""A text with all characters of ASCII, and all kinds of words of it."""


class _Cut(NamedTuple):
    """How a tokenizer cuts texts of ASCII.

    words: what matches one word after the other. borders: what matches between two characters where the words on
    either side do not depend on the other side, whatever characters there are.
    """

    words: str
    borders: str


_LINES = r"(?<=\n)(?=[ \t]*[!-.0-~])"
"""In front of a line with something in it, unless that is the slash that may end a word of punctuation."""
_SINGLE_BREAKS = r"(?<=[!-~]\n)(?=[!-~])"
"""The same where one line break stands between characters that are no space: the last of several is a word alone."""
_GPT2 = r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
_ENDING = r"'(?i:s|t|re|ve|m|ll|d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {
    # Qwen 2 to 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACE:
        _Cut(rf"{_ENDING}|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|{_SPACE}", _LINES),
    # Qwen 3.5
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACE:
        _Cut(rf"{_ENDING}|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|{_SPACE}", _LINES),
    # Llama 3, GLM 4
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACE:
        _Cut(rf"{_ENDING}|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{{1,3}}| ?[^\sA-Za-z0-9]+[\r\n]*|{_SPACE}", _LINES),
    # GPT-4o, gpt-oss, Phi 4
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACE:
        _Cut(rf"[^\r\nA-Za-z0-9]?[A-Z]*[a-z]+(?:{_ENDING})?|[^\r\nA-Za-z0-9]?[A-Z]+[a-z]*(?:{_ENDING})?|"
             rf"[0-9]{{1,3}}| ?[^\sA-Za-z0-9]+[\r\n/]*|{_SPACE}", _LINES),
}  # fmt: skip
"""The regular expression of a tokenizer -> what it does to ASCII. GPT-2 has its own without saying it: `_GPT2`."""


class Words:
    """The ids of texts, by the ids of their words."""

    def __init__(self, tokenizer: Tokenizer, cut: _Cut) -> None:
        self._tokenizer = tokenizer
        self._words = re.compile(cut.words, re.ASCII)
        self._borders = re.compile(cut.borders)
        added = {token.content: [number] for number, token in tokenizer.get_added_tokens_decoder().items()}
        self._added: dict[str, list[int]] = added
        # The longest of those that begin at one place is meant; without any, nothing is found.
        longest_first = sorted(added, key=len, reverse=True)
        self._breaks = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._ids = _Ids(tokenizer)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Words | None:
        """None for tokenizers that are of another kind, or cut texts as no other that is known here."""
        cut = _cut_of(tokenizer)
        added = tokenizer.get_added_tokens_decoder().values()
        is_known = (
            isinstance(tokenizer.model, BPE)
            and not tokenizer.model.dropout
            and (tokenizer.normalizer is None or isinstance(tokenizer.normalizer, normalizers.NFC))
            and not any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added)
            and not tokenizer.encode_special_tokens
        )
        if cut is None or not is_known:
            return None
        made = cls(tokenizer, cut)
        # Whatever else a tokenizer may do that is not asked for above shows here.
        return (
            made
            if made.ids([_PROBE], lambda _: [])[0] == tokenizer.encode(_PROBE, add_special_tokens=False).ids
            else None
        )

    def ids(self, texts: Sequence[str], whole: Callable[[list[str]], list[list[int]]]) -> list[list[int]]:
        """The ids of texts; `whole` gives those of texts that are left to the tokenizer."""
        parted = [self._parts(text) for text in texts]
        others = list(dict.fromkeys(part for parts in parted for part in parts if not part.isascii()))
        known = {**dict(zip(others, whole(others) if others else [], strict=True)), **self._added}
        return [self._joined(parts, known) for parts in parted]

    def _parts(self, text: str) -> list[str]:
        """A text cut at added tokens, and into lines as far as characters beyond ASCII are among them."""
        parts = self._breaks.split(text)
        if text.isascii():
            return parts
        return [piece for part in parts for piece in ([part] if part.isascii() else self._borders.split(part))]

    def _joined(self, parts: Sequence[str], known: dict[str, list[int]]) -> list[int]:
        made: list[int] = []
        for part in parts:
            ids = known.get(part)
            made += chain.from_iterable(map(self._ids.__getitem__, self._words.findall(part))) if ids is None else ids
        return made


class _Ids(dict[str, list[int]]):
    """The ids of words of ASCII; of those not met before the tokenizer's model tells them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        ids = [token.id for token in self._tokenizer.model.tokenize(word.translate(_BYTES))]
        if len(word) <= _LONGEST:
            if len(self) >= _LIMIT:
                self.clear()
            self[word] = ids
        return ids


_PRINTABLE = range(ord("!"), ord("~") + 1)
_BYTES = {
    byte: chr(0x100 + number) for number, byte in enumerate(byte for byte in range(0x80) if byte not in _PRINTABLE)
}
"""The characters by which byte-level vocabularies write those bytes of ASCII that cannot be seen (GPT-2)."""


def _cut_of(tokenizer: Tokenizer) -> _Cut | None:
    """How a tokenizer cuts texts of ASCII; None for ways that are not known here."""
    if tokenizer.pre_tokenizer is None:
        return None
    described: dict[str, Any] = json.loads(tokenizer.pre_tokenizer.__getstate__())
    steps = described.get("pretokenizers", [described])
    if not _is_bytes(steps[-1]):
        return None
    if len(steps) == 1 and steps[0]["use_regex"]:
        return _Cut(_GPT2, _SINGLE_BREAKS)
    if len(steps) != 2 or steps[1]["use_regex"] or steps[0]["type"] != "Split":
        return None
    pattern = steps[0]["pattern"].get("Regex", "")
    is_plain = steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]
    return _CUTS.get(pattern) if is_plain else None


def _is_bytes(step: dict[str, Any]) -> bool:
    """Whether a step writes words as bytes, and adds nothing in front of them."""
    return step["type"] == "ByteLevel" and not step["add_prefix_space"]
