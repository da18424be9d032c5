"""Text that arrives in pieces is the text of the whole, and no piece holds half a character."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from swift.engines.detokenizer import WINDOW, Detokenizer, decode, text_of

TOKENIZER = tiny.tokenizer()


def pieces_of(token_ids: list[int], tokenizer=TOKENIZER) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token_id) for token_id in token_ids]
    return [*pieces, detokenizer.finish()]


@settings(deadline=None)
@given(st.text(max_size=80))
def test_pieces_of_any_text_join_to_it_without_half_a_character(text):
    pieces = pieces_of(TOKENIZER.encode(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=3 * WINDOW))
def test_pieces_of_any_ids_join_to_what_the_tokenizer_decodes(token_ids):
    joined = "".join(pieces_of(token_ids))
    assert joined == decode(TOKENIZER, token_ids) == text_of(TOKENIZER, token_ids)


def test_a_character_of_several_tokens_is_shown_when_its_last_one_comes():
    token_ids = TOKENIZER.encode("🦊")
    assert len(token_ids) == 4
    assert pieces_of(token_ids) == ["", "", "", "🦊", ""]


def test_half_a_character_at_the_very_end_is_told_once():
    pieces = pieces_of(TOKENIZER.encode("fox 🦊")[:-1])
    assert "".join(pieces) == decode(TOKENIZER, TOKENIZER.encode("fox 🦊")[:-1]) == "fox \ufffd"
    assert pieces[-1] == "\ufffd"


def test_the_cost_of_a_token_does_not_grow_with_the_reply():
    longest = []

    class Watched:
        def decode(self, token_ids, **options):
            longest.append(len(token_ids))
            return TOKENIZER.decode(token_ids, **options)

    pieces_of(TOKENIZER.encode("The quick brown fox. " * 40), Watched())
    assert max(longest) <= WINDOW


def test_blanks_between_words_survive_a_decoder_that_drops_the_first_one():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"▁the": 0, "▁quick": 1, "▁fox": 2, "es": 3}
    raw = Tokenizer(models.WordLevel(words, unk_token="▁the"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    token_ids = [0, 1, 2, 3] * WINDOW
    assert "".join(pieces_of(token_ids, tokenizer)) == decode(tokenizer, token_ids)


def test_characters_written_as_single_bytes_arrive_whole():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁a": 256}
    raw = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    text = "你é好🦊" * WINDOW
    pieces = pieces_of([256, *text.encode(), 256], tokenizer)
    assert "".join(pieces) == f" a{text} a"
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_right_behind_senseless_bytes_arrives_whole():
    fox = TOKENIZER.encode("🦊")
    pieces = pieces_of([fox[0]] * 6 + fox)
    assert "".join(pieces) == "\ufffd" * 6 + "🦊"
    assert pieces[:4] == ["", "", "", "\ufffd"], "after four tokens it is said that there is no sense in them"
