"""Templates of plugins, declared in chunks, and the files of examples/plugins that show how."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from chat_families import chat, learnt_text, with_specials

import tiny
from swift.catalog.layouts import LAYOUTS
from swift.chat.declared import TemplateMeta, layout_of, register_template
from swift.chat.render import Renderer
from swift.chat.weights import LOSS_SCALES
from swift.commands.begin import begin
from swift.core.errors import UsageError
from swift.options.parse import parse
from swift.options.template import TemplateOptions

PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"


def rendered(meta: TemplateMeta, conversation, tok=None) -> str:
    return Renderer(tok or tiny.tokenizer(None), TemplateOptions(), layout=layout_of(meta)).prompt(conversation).text


def learning_with(tmp_path, *words: str):
    """The command of a training run, begun, so that its plugins are loaded."""
    data = tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(2))
    model = tmp_path / "model"
    model.mkdir()
    command = parse("sft", ["--model", str(model), "--dataset", str(data), *words])
    return begin(command, command.general)


def test_chunks_become_the_text_they_describe() -> None:
    meta = TemplateMeta(
        "x",
        prefix=[["bos_token_id"], "pre "],
        system_prefix=["<{{SYSTEM}}>"],
        prompt=["{{ROUND0}}/{{ROUND1}} {{QUERY}}", [["eos_token_id"]][0], " A: "],
        chat_sep=["|"],
    )
    tok = with_specials(None, bos="<s>")
    assert rendered(meta, chat("Q", "A", "R"), tok) == "<s>pre 0/1 Q<|im_end|> A: A|1/2 R<|im_end|> A: "
    assert rendered(meta, chat("Q", system="S"), tok) == "<S>0/1 Q<|im_end|> A: "


def test_a_prefix_with_a_system_is_the_system_prefix_and_without_it_the_prefix() -> None:
    meta = TemplateMeta("x", prefix=["<a>{{SYSTEM}}</a>"], prompt=["{{QUERY}}:"], chat_sep=[" "])
    assert rendered(meta, chat("Q")) == "<a></a>Q:"
    assert rendered(meta, chat("Q", system="S")) == "<a>S</a>Q:"


def test_a_prompt_with_a_system_carries_it_in_the_last_turn() -> None:
    meta = TemplateMeta("x", prefix=["^"], prompt=["{{SYSTEM}}\n", "{{QUERY}}:"], chat_sep=[" "])
    assert rendered(meta, chat("Q", "A", "R", system="S")) == "^Q:A S\nR:"
    assert rendered(meta, chat("Q", "A", "R")) == "^Q:A R:"


def test_token_ids_stand_for_tokens_and_names_for_ids_of_the_tokenizer() -> None:
    tok = with_specials(None, specials=["<|u|>"])
    number = tok.convert_tokens_to_ids("<|u|>")
    meta = TemplateMeta("x", prefix=[], prompt=[[number], "{{QUERY}}", ["pad_token_id"]], chat_sep=None)
    assert rendered(meta, chat("Q"), tok) == "<|u|>Q<|endoftext|>"
    for chunk, words in (([4999], "token 4999"), (["bot_token_id"], "bot_token_id")):
        with pytest.raises(Exception, match=words):
            rendered(TemplateMeta("x", prefix=[], prompt=["{{QUERY}}", chunk], chat_sep=None), chat("Q"), tok)


@pytest.mark.parameter("response_prefix")
def test_replies_begin_with_the_prefix_of_the_template_unless_an_option_says_otherwise() -> None:
    meta = TemplateMeta("x", prefix=[], prompt=["{{QUERY}}:"], chat_sep=[" "], response_prefix="So ")

    def begun(**options) -> str:
        renderer = Renderer(tiny.tokenizer(None), TemplateOptions(**options), layout=layout_of(meta))
        return renderer.prompt(chat("Q")).text.removeprefix("Q:")

    assert begun() == "So "
    assert begun(response_prefix="Well ") == "Well "
    assert begun(response_prefix="") == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ["Q"]}, "no {{QUERY}}"),
        ({"system_prefix": ["S"]}, "no {{SYSTEM}}"),
        ({"prompt": ["{{SYSTEM}} {{QUERY}}"]}, "one chunk"),
        ({"default_system": "S"}, "no place for it"),
    ],
)
def test_a_template_that_cannot_work_is_refused_with_the_reason(changes, words) -> None:
    with pytest.raises(UsageError, match="The template 'x'") as caught:
        layout_of(
            TemplateMeta(**{"template_type": "x", "prefix": [], "prompt": ["{{QUERY}}"], "chat_sep": []} | changes)
        )
    assert words in str(caught.value)


def test_a_name_is_taken_once_unless_it_may_be_taken_again() -> None:
    meta = TemplateMeta("of this test", prefix=[], prompt=["{{QUERY}}"], chat_sep=[])
    register_template(meta)
    with pytest.raises(UsageError, match="registered already"):
        register_template(meta)
    register_template(TemplateMeta("of this test", prefix=["!"], prompt=["{{QUERY}}"], chat_sep=[]), exist_ok=True)
    assert LAYOUTS["of this test"].prefix == "!"


@pytest.mark.parameter("external_plugins")
@pytest.mark.parameter("template")
def test_the_template_of_the_example_is_used_by_name(tmp_path) -> None:
    command = learning_with(
        tmp_path, "--external_plugins", str(PLUGINS / "template.py"), "--template", "tale"
    )  # fmt: skip
    tok = tiny.tokenizer(None)
    renderer = Renderer(tok, command.template)
    sample = renderer.sample(chat("who?", "A fox.", "why?", "Nobody knows."))
    text = tok.decode(sample.input_ids)
    assert text == (
        "A tale in turns. Once upon a time. Child: Please: who?\nNarrator: A fox.\n"
        "Child: why?\nNarrator: Nobody knows.<|im_end|>"
    )
    assert learnt_text(tok, sample) == ["A fox.", "Nobody knows.<|im_end|>"]
    assert renderer.prompt(chat("who?", system="S")).text == "S Once upon a time. Child: Please: who?\nNarrator: "
    assert renderer.stop_words == ("<|im_end|>", "The end.")
    assert pickle.loads(pickle.dumps(renderer)).sample(chat("Q", "A")) == renderer.sample(chat("Q", "A"))


@pytest.mark.parameter("external_plugins")
@pytest.mark.parameter("loss_scale")
def test_the_loss_weights_of_the_example_are_used_by_name(tmp_path) -> None:
    command = learning_with(
        tmp_path, "--external_plugins", str(PLUGINS / "loss_scale.py"), "--loss_scale", "last_round+sums+short"
    )  # fmt: skip
    assert {"sums", "short"} <= set(LOSS_SCALES)
    tok = tiny.tokenizer()
    renderer = Renderer(tok, command.template)
    for asked, scale in (("Two?", 0.5), ("What is two and two, please?", 1.0)):
        sample = renderer.sample(chat("Q", "0", asked, "It is 4."))
        assert sample.weights is not None or scale == 1.0
        weights = dict(zip(sample.input_ids, sample.weights or [], strict=False))
        assert weights[tok.convert_tokens_to_ids("4")] == 3 * scale
        assert sample.weights[sample.input_ids.index(tok.convert_tokens_to_ids("0"))] == 0
