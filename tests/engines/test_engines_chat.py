"""A chat answers conversations: what is rendered is continued, and what the prompt already says stands in front."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import tiny
from swift.chat.messages import Conversation, Message
from swift.chat.render import Prompt, Renderer
from swift.core.errors import UsageError
from swift.engines.base import Sampling
from swift.engines.chat import Chat, fitted
from swift.engines.transformers import Transformers
from swift.options.template import TemplateOptions

GREEDY = Sampling(max_new_tokens=12, temperature=0)
HELLO = Conversation((Message("user", "What is two and two?"),))


def chat_with(**options) -> Chat:
    renderer = Renderer(tiny.tokenizer(), TemplateOptions(**options))
    engine = Transformers(tiny.model(), tiny.tokenizer(), stop_token_ids=renderer.stop_token_ids)
    return Chat(renderer, engine)


def test_a_reply_continues_the_rendered_conversation():
    chat = chat_with()
    prompt = chat.prompt(HELLO)
    assert prompt.text == "<|im_start|>user\nWhat is two and two?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.reply([HELLO, HELLO], GREEDY) == chat.engine.generate([prompt, prompt], GREEDY)


@pytest.mark.parameter("response_prefix")
def test_a_response_prefix_is_in_the_prompt_once_and_in_front_of_the_reply():
    plain, chat = chat_with(), chat_with(response_prefix="Four")
    prompt = chat.prompt(HELLO)
    assert prompt.text == plain.prompt(HELLO).text + "Four"
    (completion,) = chat.reply([HELLO], GREEDY)[0]
    assert completion.text == "Four" + chat.engine.generate([prompt], GREEDY)[0][0].text
    deltas = list(chat.stream(prompt, GREEDY))
    assert "".join(delta.text for delta in deltas) == completion.text == deltas[-1].completion.text


@dataclass
class WithStopWord:
    """The renderer of another template, that ends replies with a word."""

    inner: Renderer
    word: str

    @property
    def stop_words(self):
        return (self.word,)

    @property
    def stop_token_ids(self):
        return self.inner.stop_token_ids

    def prompt(self, conversation):
        return self.inner.prompt(conversation)


def test_stop_words_of_the_template_end_a_reply_too():
    chat = chat_with()
    free = chat.reply([HELLO], GREEDY)[0][0]
    word = tiny.tokenizer().decode(free.token_ids[3:5])
    stopping = Chat(WithStopWord(chat.renderer, word), chat.engine)
    (stopped,) = stopping.reply([HELLO], GREEDY)[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text.endswith(word)
    assert list(stopping.stream(chat.prompt(HELLO), GREEDY))[-1].completion == stopped


@pytest.mark.parameter("max_length")
@pytest.mark.parameter("truncation_strategy")
def test_a_long_prompt_is_cut_or_given_up_as_the_strategy_says():
    prompt = Prompt("", list(range(10)))

    def cut(strategy, max_length=None, context=None):
        options = TemplateOptions(max_length=max_length, truncation_strategy=strategy)
        found = fitted(prompt, options, context)
        return None if found is None else found.input_ids

    assert cut("delete", 10) == prompt.input_ids
    assert cut("delete", 9) is None
    assert cut("left", 4) == [6, 7, 8, 9]
    assert cut("right", 4) == [0, 1, 2, 3]
    assert cut("left", None, 8) == [3, 4, 5, 6, 7, 8, 9], "a token of the context is left for the reply"
    assert cut("delete", None, 10) is None
    assert cut("split", 10) == prompt.input_ids
    with pytest.raises(UsageError, match="--truncation_strategy split"):
        cut("split", 9)


def test_a_word_that_ends_the_reply_to_one_prompt_does_not_end_that_to_another():
    chat = chat_with()
    plain = chat.prompt(HELLO)
    text = chat.complete([plain], GREEDY)[0][0].text
    word = text[2:4]
    ended = Prompt(plain.text, plain.input_ids, {**plain.extra, "stop_words": (word,)})
    found = [completions[0].text for completions in chat.complete([plain, ended, plain], GREEDY)]
    assert found[0] == found[2] == text
    assert text.startswith(found[1])
    assert len(found[1]) < len(text)
    assert word in found[1]
    assert list(chat.stream(ended, GREEDY))[-1].completion.text == found[1]
