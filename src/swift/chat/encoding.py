"""This file knows how pieces of text become token ids, many at once, and what a tokenizer adds to a text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from swift.chat.words import Words
from swift.core.errors import UsageError


class Encoder:
    """Texts into token ids, piece by piece and without adding tokens.

    prefix_ids, suffix_ids: what the tokenizer puts before and after a text by itself: BOS, [CLS], [SEP], ...

    Tokenizers of the SentencePiece kind begin every text with a space of their own. Pieces that go on from a piece
    are therefore given to them behind a special token, which is taken off again.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.prefix_ids, self.suffix_ids = _added(tokenizer)
        self._anchor = _anchor(tokenizer)
        self._is_bare = _is_bare(tokenizer)
        self._words = Words.of(tokenizer.backend_tokenizer) if self._is_bare else None

    @property
    def added(self) -> tuple[str, str]:
        """The texts of `prefix_ids` and `suffix_ids`."""
        before, after = (self._tokenizer.convert_ids_to_tokens(ids) for ids in (self.prefix_ids, self.suffix_ids))
        return "".join(before), "".join(after)

    def encode(self, rows: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """The ids of each piece of each row, from one call of the tokenizer for all texts that differ."""
        numbers: dict[str, int] = {}
        anchor = self._anchor
        keys = [
            [numbers.setdefault(anchor + text if i and text else text, len(numbers)) for i, text in enumerate(row)]
            for row in rows
        ]
        if not numbers:
            return [[] for _ in rows]
        ids = self._ids(list(numbers))
        if anchor:
            return [[ids[key][1:] if i and ids[key] else ids[key] for i, key in enumerate(row)] for row in keys]
        return [[ids[key] for key in row] for row in keys]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts, without what transformers makes besides, where nothing but ids comes of it."""
        if self._words is not None:
            return self._words.ids(texts, self._whole)
        return self._whole(texts) if self._is_bare else _called(self._tokenizer, texts)

    def _whole(self, texts: list[str]) -> list[list[int]]:
        backend = self._tokenizer.backend_tokenizer
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def starts(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """The first character of each token of some texts; with each, whether it goes on from another piece.

        Raises UsageError for tokenizers that cannot tell: those not of the tokenizers library.
        """
        if not texts:
            return []
        if not self._tokenizer.is_fast:
            raise UsageError(
                "--loss_scale: weights that change within a reply need a tokenizer that knows its characters, and "
                f"{type(self._tokenizer).__name__} does not. Convert it to a tokenizer.json first."
            )
        before = [len(self._anchor) if goes_on and text else 0 for text, goes_on in texts]
        offsets = self._tokenizer(
            [self._anchor + text if skip else text for (text, _), skip in zip(texts, before, strict=True)],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            verbose=False,
        )["offset_mapping"]
        return [_starts(spans[1:] if skip else spans, skip) for spans, skip in zip(offsets, before, strict=True)]

    @property
    def name(self) -> str:
        """The folder or repository the tokenizer is from."""
        return self._tokenizer.name_or_path

    def fingerprint(self) -> str:
        """A hash of the tokenizer: of all that decides which ids a text becomes."""
        tokenizer = self._tokenizer
        if tokenizer.is_fast:
            text = tokenizer.backend_tokenizer.to_str()
        else:
            text = repr([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs])
        special = repr(sorted(tokenizer.special_tokens_map.items()))
        return hashlib.blake2b((text + special).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def single_ids(self, words: Sequence[str]) -> tuple[int, ...]:
        """The ids of those words that are one token each."""
        ids = [pieces[0] for pieces in self.encode([[word] for word in words])]
        return tuple(dict.fromkeys(word_ids[0] for word_ids in ids if len(word_ids) == 1))


def _starts(spans: Sequence[tuple[int, int]], skip: int) -> list[int]:
    """Where tokens begin: where the one before ends, unless several share a character.

    Some tokenizers leave the space in front of a word out of its token's span.
    """
    starts: list[int] = []
    end = skip
    for begin, until in spans:
        starts.append(min(begin, end) - skip)
        end = until
    return starts


def _called(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]


def _is_bare(tokenizer: Any) -> bool:
    """Whether the tokenizer gives what the Rust tokenizer in it gives, which is quicker to be asked.

    A class of its own may change texts on their way; so it is tried with a text that has all that classes change.
    """
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return False
    texts = [f" Ab\n\n  c\t1234 é e\u0301 你好 {token} x" for token in ("", *tokenizer.all_special_tokens)]
    found = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in found] == _called(tokenizer, texts)


def _added(tokenizer: Any) -> tuple[list[int], list[int]]:
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return full[:at], full[at + len(bare) :]


def _anchor(tokenizer: Any) -> str:
    """A special token behind which a text is tokenized as it goes on, where that differs; else ""."""
    anchor = tokenizer.eos_token
    if not anchor:
        return ""
    behind = tokenizer(anchor + "a", add_special_tokens=False)["input_ids"]
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    return anchor if behind[0] == tokenizer.eos_token_id and behind[1:] != alone else ""
