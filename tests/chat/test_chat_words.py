"""Texts tokenized word by word have the ids that the tokenizer gives them."""

from __future__ import annotations

import pickle
import random
from itertools import product

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

import tiny
from swift.chat import words
from swift.chat.words import Words

PATTERNS = {"GPT-2": None, **dict(zip(("Qwen 2", "Qwen 3.5", "Llama 3", "GPT-4o"), words._CUTS, strict=True))}
PLAIN = "aZ0'/! \t\n\r\x0b\x1cs\x7f"
"""A character of every kind that a pattern tells apart, of ASCII."""
BEYOND = ["\xa0", "\x85", "\u2028", "\u3000", "\u0301", "\u0345", "é", "e\u0301", "ſ", "\u212a", "½", "٣", "Ⅷ", "ǅ",
          "ʰ", "你", "😀", "\u200d", "\ufeff"]  # fmt: skip
"""And others: spaces, marks that join what is before them, letters that are s or k when case does not count, ..."""


def trained(pattern: str | None, normalizer=None) -> Tokenizer:
    """A byte-level tokenizer that cuts by this pattern."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizer
    if pattern is None:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    corpus = [*tiny.CORPUS, "\n\n", "!!\n\n", "it's   we'LL", "a\r\n\r\n\t b 1234 //", "\n \n", "  \n//", "aaZZ00"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*tiny.SPECIALS, "<|im|>", "<|im|>s"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(corpus * 4, trainer)
    return made


def whole(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """What the tokenizer itself says."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def check_same(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Compare, and name the first text that differs."""
    by_words = Words.of(tokenizer)
    assert by_words is not None
    found = by_words.ids(texts, lambda others: whole(tokenizer, others))
    for text, ours, theirs in zip(texts, found, whole(tokenizer, texts), strict=True):
        assert ours == theirs, repr(text)


@pytest.mark.parametrize("name", PATTERNS)
def test_all_short_texts_have_the_ids_of_the_tokenizer(name):
    texts = ["".join(letters) for count in range(5) for letters in product(PLAIN[:11], repeat=count)]
    texts += ["".join(letters) for letters in product(map(chr, range(128)), repeat=2)]
    check_same(trained(PATTERNS[name]), texts)


@pytest.mark.parametrize("name", PATTERNS)
def test_mixed_texts_have_the_ids_of_the_tokenizer(name):
    draw = random.Random(5)
    parts = [
        *PLAIN,
        *BEYOND,
        *tiny.SPECIALS,
        "<|im|>",
        "<|im|>s",
        "<|im_",
        "'s",
        "'LL",
        "the",
        " dog",
        "\n\n",
        "\n",
        "\n",
    ]
    texts = ["".join(draw.choices(parts, k=draw.randrange(1, 24))) for _ in range(20_000)]
    check_same(trained(PATTERNS[name], normalizers.NFC()), texts)


def test_what_is_no_ascii_is_left_to_the_tokenizer_line_by_line():
    tokenizer, asked = trained(PATTERNS["Qwen 2"]), []
    by_words = Words.of(tokenizer)
    assert by_words is not None
    by_words.ids(
        ["one\ntwo é\nthree<|im_end|>", "four"], lambda others: asked.extend(others) or whole(tokenizer, others)
    )
    assert asked == ["two é\n"]


def test_words_are_forgotten_before_they_take_much_memory(monkeypatch):
    monkeypatch.setattr(words, "_LIMIT", 50)
    tokenizer = trained(PATTERNS["Llama 3"])
    by_words = Words.of(tokenizer)
    assert by_words is not None
    texts = [f"{number} word{'x' * number}" for number in range(300)]
    assert by_words.ids(texts, lambda others: whole(tokenizer, others)) == whole(tokenizer, texts)
    assert 0 < len(by_words._ids) <= 50
    assert max(map(len, by_words._ids)) <= words._LONGEST


def test_it_travels_to_other_processes():
    tokenizer = trained(PATTERNS["Qwen 2"])
    by_words = Words.of(tokenizer)
    assert by_words is not None
    text = ["What it's worth\n\nis 2."]
    assert pickle.loads(pickle.dumps(by_words)).ids(text, None) == by_words.ids(text, None) == whole(tokenizer, text)


def unknown_pattern(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\w+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


def no_bytes(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.Whitespace()


def no_cut(made: Tokenizer) -> None:
    made.pre_tokenizer = None


def a_space_in_front(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def lower_case(made: Tokenizer) -> None:
    made.normalizer = normalizers.Lowercase()


def another_model(made: Tokenizer) -> None:
    made.model = models.WordLevel({"a": 0}, "a")


def chance(made: Tokenizer) -> None:
    made.model.dropout = 0.5


def a_greedy_token(made: Tokenizer) -> None:
    made.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])


def a_token_of_words(made: Tokenizer) -> None:
    made.add_tokens([AddedToken("tok", normalized=True)])


def cut_short(made: Tokenizer) -> None:
    made.enable_truncation(5)


def spelt_out(made: Tokenizer) -> None:
    made.encode_special_tokens = True


@pytest.mark.parametrize("change", [unknown_pattern, no_bytes, no_cut, a_space_in_front, lower_case, another_model,
                                    chance, a_greedy_token, a_token_of_words, cut_short,
                                    spelt_out])  # fmt: skip
def test_tokenizers_of_another_kind_are_asked_themselves(change):
    tokenizer = trained(None)
    assert Words.of(tokenizer) is not None
    change(tokenizer)
    assert Words.of(tokenizer) is None
