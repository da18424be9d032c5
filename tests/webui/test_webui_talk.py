"""A conversation on a page: what is asked, how a reply grows, and what is shown of it."""

from __future__ import annotations

import pytest

import tiny
from openai_server import serving
from swift.chat.render import Renderer
from swift.core.errors import EngineError
from swift.engines.asking import Server
from swift.engines.transformers import Transformers
from swift.options.template import TemplateOptions
from swift.webui.chat_page import shown
from swift.webui.talk import Partner, asked, messages, unanswered
from swift.webui.words import PAGE

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho", "reasoning": "Hm", "is_done": True},
]


@pytest.fixture(scope="module")
def engine():
    return Transformers(tiny.model(), tiny.tokenizer())


def said(engine, pieces, *, stream=True, **how):
    renderer = Renderer(tiny.tokenizer(), TemplateOptions())
    with serving(engine, renderer, says=tuple(pieces), **how) as (url, _):
        return list(
            Partner(Server(url), ["tiny"], stream=stream).answer("tiny", "", [{"role": "user", "content": "Hi"}])
        )


def test_what_was_thought_is_not_said_again():
    assert messages("Be brief.", TURNS) == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"},
    ]  # fmt: skip
    assert messages("", TURNS)[0]["role"] == "user"


def test_another_reply_is_asked_for_from_the_last_question_on():
    assert unanswered(TURNS) == TURNS[:1]
    assert unanswered(asked(TURNS, "And?")) == [*TURNS, {"role": "user", "content": "And?"}]
    assert unanswered([]) == []


def test_a_reply_grows_and_ends(engine):
    turns = said(engine, ["He", "llo", "!"])
    assert [turn["content"] for turn in turns] == ["He", "Hello", "Hello!", "Hello!"]
    assert [turn["is_done"] for turn in turns] == [False, False, False, True]


@pytest.mark.parametrize("pieces", [
    [{"reasoning_content": "Well. "}, {"reasoning_content": "Yes."}, {"content": "Four."}],
    ["<thi", "nk>\nWell. Yes.\n</th", "ink>\n\nFour."],
    ["Well. Yes.\n</thi", "nk>\n\nFour."],
])  # fmt: skip
def test_thinking_is_told_from_the_answer_whoever_marks_it(engine, pieces):
    last = said(engine, pieces)[-1]
    assert (last["reasoning"], last["content"]) == ("Well. Yes.", "Four.")


def test_a_whole_reply_is_the_models(engine):
    renderer = Renderer(tiny.tokenizer(), TemplateOptions())
    with serving(engine, renderer) as (url, asked_for):
        settings = {"max_tokens": 3, "temperature": 0}
        turns = list(
            Partner(Server(url), ["tiny"], settings, stream=False).answer(
                "tiny", "S.", [{"role": "user", "content": "Hi"}]
            )
        )
    assert turns[-1]["content"]
    assert asked_for[0][1] == {
        "model": "tiny", "messages": [{"role": "system", "content": "S."}, {"role": "user", "content": "Hi"}],
        "max_tokens": 3, "temperature": 0, "stream": False,
    }  # fmt: skip


def test_a_refusal_says_what_the_server_says(engine):
    with pytest.raises(EngineError, match=r"chat/completions answers 401: .*wrong key"):
        said(engine, ["Hi"], key="secret")


def test_thinking_is_folded_when_it_is_over_and_open_while_it_grows():
    growing = {"role": "assistant", "content": "", "reasoning": "Well", "is_done": False}
    [thought] = shown(growing, PAGE["en"])
    assert thought["metadata"] == {"title": "Thinking ...", "status": "pending"}
    thought, answer = shown({**growing, "content": "Four.", "is_done": True}, PAGE["zh"])
    assert thought["metadata"] == {"title": "思考过程", "status": "done"}
    assert answer == {"role": "assistant", "content": "Four."}


def test_tags_and_stars_mean_themselves_and_code_is_left_alone():
    [turn] = shown({"role": "user", "content": "<b>2 * 3</b> `a<b` and\n```\nx < y * z\n```\n<i>"}, PAGE["en"])
    assert turn["content"] == "&lt;b&gt;2 \\* 3&lt;/b&gt; `a<b` and\n```\nx < y * z\n```\n&lt;i&gt;"
    [turn] = shown({"role": "assistant", "content": "**Yes** <b>"}, PAGE["en"])
    assert turn["content"] == "**Yes** &lt;b&gt;", "a reply may be in Markdown"
