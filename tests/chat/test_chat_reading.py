"""Texts that are read: the same tokens as elsewhere, none of them a label, closed where nobody replies."""

from __future__ import annotations

import tiny
from swift.chat.messages import Conversation, Message
from swift.chat.reading import Readings
from swift.chat.render import Renderer
from swift.core.errors import DataError
from swift.options.template import TemplateOptions

ASKED = Conversation((Message("user", "lazy dog"),))
TOLD = Conversation((Message("user", "lazy dog"), Message("assistant", "brown fox", loss=False)), label=1)


def readings(**options):
    renderer = Renderer(tiny.tokenizer(), TemplateOptions(**options))
    return renderer, Readings(renderer)


def texts(made):
    return [tiny.tokenizer().decode(sample.input_ids) for sample in made]


def test_what_the_user_ends_is_read_as_the_model_is_asked_and_what_is_answered_as_a_whole():
    renderer, read = readings()
    asked, told = read.samples([ASKED, TOLD])
    assert asked.input_ids == renderer.prompt(ASKED).input_ids
    assert texts([told]) == ["<|im_start|>user\nlazy dog<|im_end|>\n<|im_start|>assistant\nbrown fox<|im_end|>\n"]
    assert not asked.learnt
    assert not told.learnt


def test_a_layout_that_opens_replies_with_nothing_closes_the_text():
    _, read = readings(template="qwen3_emb")
    system = Conversation((Message("system", "Find it."), *ASKED.messages))
    assert texts(read.samples([ASKED, system])) == ["lazy dog<|endoftext|>", "Find it. lazy dog<|endoftext|>"]
    _, plain = readings(use_chat_template=False)
    assert texts(plain.samples([ASKED])) == ["lazy dog<|im_end|>"]


def test_the_reranker_of_qwen3_judges_query_and_document_behind_an_empty_thought():
    _, read = readings(template="qwen3_reranker")
    [text] = texts(read.samples([TOLD]))
    assert "\n<Query>: lazy dog\n<Document>: brown fox<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_row_that_cannot_be_rendered_stays_an_error_in_its_place():
    _, read = readings()
    wrong = Conversation((Message("assistant", "a"), Message("assistant", "b")))
    made = read.samples([ASKED, wrong, TOLD])
    assert [isinstance(each, DataError) for each in made] == [False, True, False]
    assert read.identity()["reads"]
