"""What holds for every chat template: those of real families, and every named layout."""

from __future__ import annotations

from functools import cache

import pytest
from chat_families import ENDS, FAMILIES, chat, learnt_text, prompts_of, tokenizer, with_specials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from swift.catalog.layouts import LAYOUTS
from swift.chat.messages import Conversation
from swift.chat.render import Renderer
from swift.chat.skeletons import Cutter
from swift.chat.template import ChatTemplate
from swift.core.errors import DataError
from swift.options.template import TemplateOptions

SINGLE_ROUND = {name for name in LAYOUTS if LAYOUTS[name].separator is None}
BY_ID = {name for name in LAYOUTS if "{{ID:" in LAYOUTS[name].user}
MANY_ROUNDS = sorted(set(LAYOUTS) - SINGLE_ROUND - BY_ID)
TALK = chat("What is two?", "It is 2.", "你好?", "def f():\n    return 你好", "Bye", "Good-bye.")


def of_family(family: str, **options) -> tuple[object, Renderer]:
    made = tokenizer(family)
    return made, Renderer(made, TemplateOptions(**options))


def of_layout(name: str, **options) -> tuple[object, Renderer]:
    layout = LAYOUTS[name]
    words = {layout.suffix.strip(), (layout.separator or "").strip()} - {"", "{{EOS}}"}
    made = with_specials(None, specials=sorted(w for w in words if "{{" not in w), bos="<s>")
    return made, Renderer(made, TemplateOptions(template=name, **options))


RENDERERS = [
    *(pytest.param(of_family, family, id=family) for family in FAMILIES),
    *(pytest.param(of_layout, name, id=f"layout {name}") for name in MANY_ROUNDS),
]
everywhere = pytest.mark.parametrize(("build", "name"), RENDERERS)


def text_of(made, renderer: Renderer, conversation: Conversation, **given) -> str:
    return made.apply_chat_template(
        [m.as_dict() for m in conversation.messages], chat_template=renderer.chat_template, tokenize=False, **given
    )


@everywhere
@pytest.mark.parameter("template")
@pytest.mark.parameter("template_backend")
def test_a_sample_is_what_apply_chat_template_renders_up_to_the_token_that_ends_it(build, name) -> None:
    made, renderer = build(name, template_backend="jinja")
    text = made.decode(renderer.sample(TALK).input_ids)
    rendered = text_of(made, renderer, TALK)
    ends_openly = name == "glm4" and build is of_family
    assert text == (rendered + "<|user|>" if ends_openly else rendered)


@everywhere
def test_what_is_learnt_is_what_the_assistant_said_and_the_word_that_ends_it(build, name) -> None:
    made, renderer = build(name, add_non_thinking_prefix=False, template_backend="jinja")
    said = [m.content for m in TALK.messages if m.role == "assistant"]
    learnt = learnt_text(made, renderer.sample(TALK))
    stripped = []
    for text in learnt:
        ending = next((stop for stop in renderer.stop_words if text.rstrip().endswith(stop)), "")
        body = text.rstrip().removesuffix(ending).rpartition("</think>")[2].rpartition("<|message|>")[2]
        stripped.append(body.replace("<response>", "").replace("</response>", "").strip())
    assert stripped == said
    assert learnt[-1].rstrip().endswith(renderer.stop_words)


@everywhere
@pytest.mark.parameter("loss_scale")
@pytest.mark.parametrize("loss_scale", ["default", "last_round", "all"])
def test_no_word_of_user_or_system_is_learnt_unless_all_is(build, name, loss_scale) -> None:
    made, renderer = build(name, loss_scale=loss_scale)
    learnt = " ".join(learnt_text(made, renderer.sample(TALK)))
    for message in TALK.messages:
        is_last = message is TALK.messages[-1]
        expected = loss_scale == "all" or (message.role == "assistant" and (loss_scale == "default" or is_last))
        said = message.content
        if message is TALK.messages[0]:
            said = said.partition(" ")[2]  # the first token of a row is never learnt
        assert (said in learnt) == expected


@everywhere
@pytest.mark.parametrize("backend", ["swift", "jinja"])
def test_the_prompt_of_every_turn_begins_the_sample(build, name, backend) -> None:
    _, renderer = build(name, loss_scale="last_round", template_backend=backend)
    thinks = chat("Q1", "<think>\nhm\n</think>\n\nA1", "Q2", "<think>\nwell\n</think>\n\nA2")
    for conversation in (TALK, thinks):
        sample = renderer.sample(conversation)
        prompts = [renderer.prompt(before) for before in prompts_of(conversation)]
        for prompt in prompts[-1:] if conversation is thinks else prompts:
            text, begun = sample_text(renderer, sample), prompt.extra["response_prefix"]
            assert text.startswith(prompt.text.removesuffix(begun))
            if text.startswith(prompt.text):
                assert sample.input_ids[: len(prompt.input_ids)] == prompt.input_ids
            else:
                assert begun.startswith("<think>")  # the prompt opens thinking, and this reply does not think
                assert conversation is TALK


def sample_text(renderer: Renderer, sample) -> str:
    return renderer.show(sample).partition("[INPUT] ")[2].partition("\n[LABELS_IDS]")[0]


@pytest.mark.parametrize("name", sorted(SINGLE_ROUND))
def test_a_layout_of_one_round_takes_one_round_and_refuses_two(name) -> None:
    made, renderer = of_layout(name)
    (learnt,) = learnt_text(made, renderer.sample(chat("Q", "A")))
    assert learnt == "A" + (LAYOUTS[name].suffix.strip().replace("{{EOS}}", "<|im_end|>"))
    with pytest.raises(DataError, match="single round"):
        renderer.sample(TALK)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_word_that_ends_a_turn_is_found_and_its_token_stops_generation(family) -> None:
    made, renderer = of_family(family)
    ends = ENDS.get(family, made.eos_token)
    assert renderer.stop_words[0] == ends
    assert set(renderer.stop_token_ids) == {made.convert_tokens_to_ids(ends), made.eos_token_id}


TEXTS = st.text(alphabet="ab Q\n<>/think|im_end你\t", max_size=12) | st.sampled_from(
    ["", " ", "\nx", "x\n\n", "<think>", "</think>", "<think>\nr\n</think>\n\na", "<think>\n\n</think>\n\na",
     "<think>\n\nr\n</think>\n\na ", "a</think>b", "<think>\nr\n</think>\n\n", "<|im_end|>", "\ue100"]
)  # fmt: skip
SLOWLY = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(
    ("build", "name"),
    [(of_family, f) for f in FAMILIES] + [(of_layout, n) for n in ("chatml", "qwen3", "glm4_5", "deepseek_v3_1")],
)
@SLOWLY
@given(said=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), system=st.none() | TEXTS)
def test_cutting_by_shape_equals_cutting_each_conversation_alone(build, name, said, system) -> None:
    cutter = knowing_cutter(build, name)
    conversation = chat(*(text for pair in said for text in pair), system=system)
    assert _result(cutter.cut, conversation.messages) == _result(cutter.cut_alone, conversation.messages)


@cache
def knowing_cutter(build, name: str) -> Cutter:
    """A cutter to which the usual shapes are known before the words come."""
    template = ChatTemplate(
        build(name)[0], TemplateOptions(template=name if build is of_layout else None), None, ("", "")
    )
    cutter = Cutter(template.training, template.stop_words, template.looks_for, add_generation_prompt=False)
    for front in (None, "S"):
        for rounds in (1, 2, 3):
            for _ in range(6):
                _result(cutter.cut, chat(*["Q", "A"] * rounds, system=front).messages)
    return cutter


def _result(cut, messages):
    try:
        return cut(messages)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("family", FAMILIES)
def test_many_samples_at_once_equal_one_at_a_time(family) -> None:
    made, renderer = of_family(family)
    rows = [chat(*(f"{word} {i}" for word in ("Q1", "A1", "Q2", "A2")[: 2 + 2 * (i % 2)])) for i in range(12)]
    assert renderer.samples(rows) == [Renderer(made, TemplateOptions()).sample(row) for row in rows]


def test_a_row_that_fails_leaves_the_others_alone() -> None:
    renderer = Renderer(tiny.tokenizer(), TemplateOptions())
    good, bad = chat("Q", "A"), chat("Q")
    made = renderer.samples([good, bad, good])
    assert isinstance(made[1], DataError)
    assert made[0] == made[2] == renderer.sample(good)
