from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
from chat_families import THINKS_ALWAYS, chat, learnt_text, tokenizer, with_specials

import tiny
from swift.catalog.layouts import LAYOUTS
from swift.chat.messages import Conversation, Message
from swift.chat.render import Renderer
from swift.core.errors import DataError, ModelError, UsageError
from swift.options.template import TemplateOptions

EMPTY = "<think>\n\n</think>\n\n"
THINKING = chat("Q1", "<think>\nhm\n</think>\n\nA1", "Q2", "<think>\nwell\n</think>\n\nA2")
PLAIN = chat("Q1", "A1", "Q2", "A2")


def made(family: str | None = None, **options) -> tuple[object, Renderer]:
    tok = tokenizer(family) if family else tiny.tokenizer()
    return tok, Renderer(tok, TemplateOptions(**options))


def learnt(conversation, family: str | None = None, **options) -> list[str]:
    tok, renderer = made(family, **options)
    return learnt_text(tok, renderer.sample(conversation))


# ------------------------------------------------------------------------------------------------ what is learnt


@pytest.mark.parameter("loss_scale")
def test_the_base_strategies_learn_every_reply_the_last_round_or_every_token() -> None:
    assert learnt(PLAIN) == ["A1<|im_end|>", "A2<|im_end|>"]
    assert learnt(PLAIN, loss_scale="last_round") == ["A2<|im_end|>"]
    _, renderer = made(loss_scale="all")
    sample = renderer.sample(PLAIN)
    assert sample.labels == [-100, *sample.input_ids[1:]]


def test_the_loss_flag_of_a_message_decides_for_its_reply_alone() -> None:
    def flagged(*flags) -> Conversation:
        flags = iter(flags)
        return Conversation(tuple(replace(m, loss=next(flags)) if m.role == "assistant" else m for m in PLAIN.messages))

    assert learnt(flagged(False, None)) == ["A2<|im_end|>"]
    assert learnt(flagged(True, False), loss_scale="last_round") == ["A1<|im_end|>"]
    everything = learnt(flagged(False, None), loss_scale="all")
    assert [("A1" in text, "A2" in text) for text in everything] == [(False, False), (False, True)]
    with pytest.raises(DataError, match="Nothing of the conversation is learnt"):
        learnt(flagged(False, False))


@pytest.mark.parameter("loss_scale")
def test_empty_thinking_is_not_learnt_when_it_is_ignored() -> None:
    options = {"template": "qwen3", "loss_scale": "default+ignore_empty_think"}
    assert learnt(PLAIN, template="qwen3") == [EMPTY + "A1<|im_end|>", EMPTY + "A2<|im_end|>"]
    assert learnt(PLAIN, **options) == ["A1<|im_end|>", "A2<|im_end|>"]
    assert "hm" in learnt(THINKING, **options)[0]
    assert learnt(chat("Q", EMPTY + "A"), "qwen3", loss_scale="ignore_empty_think") == ["A<|im_end|>"]
    assert "</think>" in learnt(chat("Q", "A"), "qwen3")[0]


def test_labels_are_the_ids_or_are_not_learnt_and_the_first_never_is() -> None:
    for options in ({}, {"loss_scale": "all"}, {"use_chat_template": False, "loss_scale": "all"}):
        sample = made(**options)[1].sample(PLAIN)
        assert sample.labels[0] == -100
        assert all(label in (-100, token) for label, token in zip(sample.labels, sample.input_ids, strict=True))
        assert sample.learnt == sum(label != -100 for label in sample.labels)
        assert sample.weights is None


def test_the_columns_that_are_kept_of_a_row_travel_with_it() -> None:
    row = replace(PLAIN, extra={"channel": "math", "solution": "4"})
    assert made()[1].sample(row).extra == {"channel": "math", "solution": "4"}


def test_a_reply_that_the_template_does_not_end_is_ended_with_the_word_after_other_replies() -> None:
    assert learnt(PLAIN, "glm4") == ["A1<|user|>", "A2<|user|>"]
    endless = with_specials("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", eos="</s>")
    sample = Renderer(endless, TemplateOptions()).sample(chat("Q", "A"))
    assert learnt_text(endless, sample)[-1].endswith("A</s>")


# -------------------------------------------------------------------------------------------------- the system text


@pytest.mark.parameter("system")
def test_the_system_of_the_row_comes_before_the_option_and_the_option_before_the_layout() -> None:
    def system_of(conversation, **options) -> str:
        text = made(**options)[1].prompt(conversation).text
        return text.partition("system\n")[2].partition("<|im_end|>")[0] if "system\n" in text else "none"

    row, bare, empty = chat("Q", system="from the row"), chat("Q"), chat("Q", system="")
    for template in ("qwen", None):
        given = {"template": template, "system": "from the option"}
        assert system_of(row, **given) == "from the row"
        assert system_of(bare, **given) == "from the option"
        assert system_of(empty, **given) == "none"
    assert system_of(bare, template="qwen") == LAYOUTS["qwen"].default_system
    assert system_of(bare, template="qwen", system="") == "none"
    assert system_of(empty, template="qwen") == "none"
    assert system_of(bare) == system_of(empty) == "none"


@pytest.mark.parameter("system")
def test_the_system_is_a_text_with_newlines_or_a_text_file(tmp_path) -> None:
    file = tmp_path / "system.txt"
    file.write_text("One.\nTwo.\n", encoding="utf-8")
    texts = [made(system=given)[1].prompt(chat("Q")).text for given in ("One.\\nTwo.", str(file))]
    assert texts[0] == texts[1]
    assert "system\nOne.\nTwo.<|im_end|>" in texts[0]
    with pytest.raises(UsageError, match="no such file"):
        made(system=str(tmp_path / "absent.txt"))


@pytest.mark.parameter("system")
def test_the_saved_template_renders_the_default_system_for_everybody() -> None:
    for family in (None, "qwen2.5", "llama3", "mistral"):
        tok, renderer = made(family, system='It\'s "so"\\\\.\n{{ 1 }} 你')
        elsewhere = copy.deepcopy(tok)
        elsewhere.chat_template = renderer.saved_chat_template()
        for conversation in (chat("Q"), chat("Q", system="mine"), chat("Q", system="")):
            asked = [m.as_dict() for m in conversation.messages]
            text = elsewhere.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            assert text == renderer.prompt(conversation).text
            assert ('It\'s "so"\\\\.\n{{ 1 }} 你' in text) == (conversation.system is None)


def test_a_template_with_a_system_of_its_own_is_shown_an_empty_one() -> None:
    _, renderer = made("qwen2.5")
    assert "You are Qwen." in renderer.prompt(chat("Q")).text
    assert "You are Qwen." not in renderer.prompt(chat("Q", system="")).text
    assert "You are Qwen." not in made("qwen2.5", system="")[1].prompt(chat("Q")).text
    assert renderer.sample(chat("Q", "A", system="")).learnt == renderer.sample(chat("Q", "A")).learnt


@pytest.mark.parameter("system")
def test_a_template_that_takes_no_system_refuses_the_option_and_the_row() -> None:
    for build in (lambda **o: made("gemma", **o), lambda **o: made(template="dummy", **o)):
        with pytest.raises(UsageError, match="--system"):
            build(system="S")
        with pytest.raises(DataError, match=r"(?i)system"):
            build()[1].sample(chat("Q", "A", system="S"))


def test_an_empty_system_message_does_not_shift_what_is_learnt() -> None:
    for options in ({}, {"template": "qwen"}):
        assert learnt(chat("Q1", "A1", "Q2", "A2", system=""), **options) == ["A1<|im_end|>", "A2<|im_end|>"]


# --------------------------------------------------------------------------------------------------------- thinking


@pytest.mark.parameter("add_non_thinking_prefix")
def test_replies_that_do_not_think_are_learnt_with_the_prefix_in_the_rounds_the_strategy_learns() -> None:
    assert learnt(PLAIN, template="qwen3") == [EMPTY + "A1<|im_end|>", EMPTY + "A2<|im_end|>"]
    tok, renderer = made(template="qwen3", loss_scale="last_round")
    assert tok.decode(renderer.sample(PLAIN).input_ids).count(EMPTY) == 1
    assert learnt(PLAIN, template="qwen3", add_non_thinking_prefix=False) == ["A1<|im_end|>", "A2<|im_end|>"]
    assert learnt(PLAIN, template="qwen3_nothinking") == ["A1<|im_end|>", "A2<|im_end|>"]


@pytest.mark.parameter("add_non_thinking_prefix")
def test_where_the_prefix_cannot_be_left_out_is_said_once(caplog) -> None:
    writes = THINKS_ALWAYS.replace("{{- content }}", "{{- '<think>\n\n</think>\n\n' + content }}")
    for tok, options in (
        (tiny.tokenizer(), {}),
        (with_specials(writes), {}),
        (tiny.tokenizer(), {"template": "qwen3"}),
    ):
        with _heard(caplog):
            renderer = Renderer(tok, TemplateOptions(add_non_thinking_prefix=False, **options))
            renderer.samples([PLAIN, PLAIN])
        assert caplog.text.count("--add_non_thinking_prefix false has no effect") == (not options)
        caplog.clear()


def test_past_thinking_is_kept_by_the_default_strategy_and_dropped_by_the_last_round() -> None:
    tok, renderer = made(template="qwen3")
    assert "hm" in tok.decode(renderer.sample(THINKING).input_ids)
    tok, renderer = made(template="qwen3", loss_scale="last_round")
    text = tok.decode(renderer.sample(THINKING).input_ids)
    assert "hm" not in text
    assert "well" in text
    assert "hm" not in renderer.prompt(Conversation(THINKING.messages[:3])).text


@pytest.mark.parameter("loss_scale")
def test_a_checkpoint_that_drops_past_thinking_can_learn_the_last_round_and_says_so() -> None:
    with pytest.raises(DataError, match=r"Message 2 .*leaves out what it thinks.*--loss_scale last_round.*--template"):
        made("qwen3")[1].sample(THINKING)
    assert learnt(THINKING, "qwen3", loss_scale="last_round") == ["<think>\nwell\n</think>\n\nA2<|im_end|>"]


@pytest.mark.parameter("enable_thinking")
def test_thinking_is_turned_on_and_off_at_inference() -> None:
    own = {"own": "qwen3", "always": "thinks always"}

    def opened(name: str, **options) -> str:
        family, template = own.get(name), None if name in own else name
        prompt = made(family, template=template, **options)[1].prompt(chat("Q"))
        opening = prompt.text.rpartition("assistant\n")[2]
        assert prompt.extra["response_prefix"] == opening
        return opening

    for hybrid in ("qwen3", "own"):
        assert opened(hybrid) == opened(hybrid, enable_thinking=True) == ""
        assert opened(hybrid, enable_thinking=False) == EMPTY
    for always in ("qwen3_thinking", "always"):
        assert opened(always) == opened(always, enable_thinking=True) == "<think>\n"
        assert opened(always, enable_thinking=False) == ""
    assert opened("qwen3_nothinking", enable_thinking=False) == ""


BUDGETED = "{% if thinking_budget is defined %}<|im_start|>system\nThink in {{ thinking_budget }} tokens.<|im_end|>\n{% endif %}"


def test_a_thinking_budget_reaches_the_template_in_steps_it_was_taught(monkeypatch) -> None:
    def texts() -> list[str]:
        tok = tiny.tokenizer(BUDGETED + tiny.CHATML)
        renderer = Renderer(tok, TemplateOptions())
        return [tok.decode(renderer.sample(PLAIN).input_ids), renderer.prompt(chat("Q")).text]

    monkeypatch.delenv("THINKING_BUDGET", raising=False)
    assert not any("Think in" in text for text in texts())
    for given, meant in ((0, 0), (1, 512), (600, 1024), (10**6, 16384)):
        monkeypatch.setenv("THINKING_BUDGET", str(given))
        assert all(text.startswith(f"<|im_start|>system\nThink in {meant} tokens.") for text in texts())


def test_a_thinking_budget_that_the_template_does_not_read_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("THINKING_BUDGET", "512")
    with pytest.raises(UsageError, match="THINKING_BUDGET=512 has no effect"):
        made()


def test_a_template_that_cannot_think_says_so_when_asked_to(caplog) -> None:
    with _heard(caplog):
        made(enable_thinking=True)
    assert "--enable_thinking true" in caplog.text


@pytest.mark.parameter("response_prefix")
@pytest.mark.parametrize("backend", ["swift", "jinja"])
def test_the_response_prefix_stands_in_place_of_any_thinking_and_comes_back_with_the_prompt(backend) -> None:
    for family, template in ((None, "qwen3_thinking"), ("thinks always", None), ("qwen3", None)):
        tok, renderer = made(
            family, template=template, response_prefix="So:\\n", enable_thinking=False, template_backend=backend
        )
        prompt = renderer.prompt(chat("Q"))
        assert prompt.text.endswith("<|im_start|>assistant\nSo:\n")
        assert prompt.extra["response_prefix"] == "So:\n"
        assert tok.decode(prompt.input_ids) == prompt.text
    assert learnt(PLAIN, response_prefix="So:") == learnt(PLAIN)


@pytest.mark.parameter("template_backend")
def test_the_jinja_backend_gives_messages_to_the_template_untouched() -> None:
    options = {"template": "qwen3", "loss_scale": "last_round"}
    assert learnt(PLAIN, **options) == [EMPTY + "A2<|im_end|>"]
    assert learnt(PLAIN, **options, template_backend="jinja") == ["A2<|im_end|>"]


def test_the_prompt_without_thinking_begins_the_sample_without_thinking() -> None:
    for options in ({"template": "qwen3"}, {"template": "glm4_5"}, {"template": "deepseek_v3_1"}, {"family": "qwen3"}):
        _, renderer = made(**options, loss_scale="last_round", enable_thinking=False)
        for reply in ("A", " A", "\nA"):
            sample, prompt = renderer.sample(chat("Q", reply)), renderer.prompt(chat("Q"))
            if prompt.text.endswith("\n") and reply[0] == "\n":
                continue  # the newlines of prefix and reply cannot be told apart
            assert sample.input_ids[: len(prompt.input_ids)] == prompt.input_ids


def test_learning_without_thinking_what_is_always_asked_with_thinking_is_warned_of_once(caplog) -> None:
    _, renderer = made(template="qwen3_thinking")
    with _heard(caplog):
        renderer.samples([PLAIN, PLAIN])
    assert caplog.text.count("Replies without thinking") == 1


# ------------------------------------------------------------------------------------------------------- plain text


@pytest.mark.parameter("use_chat_template")
def test_plain_text_is_all_that_is_said_and_an_end() -> None:
    options = {"use_chat_template": False}
    tok, renderer = made(**options, loss_scale="all")
    assert tok.decode(renderer.sample(PLAIN).input_ids) == "Q1A1Q2A2<|im_end|>"
    assert learnt(PLAIN, **options) == ["A1", "A2<|im_end|>"]
    assert learnt(PLAIN, **options, loss_scale="last_round") == ["A2<|im_end|>"]
    assert renderer.prompt(chat("Once upon")).text == "Once upon"
    assert renderer.saved_chat_template() is None
    alone = Conversation((Message("assistant", "A text."),))
    assert learnt(alone, **options, loss_scale="all")[0].endswith(" text.<|im_end|>")
    with pytest.raises(DataError, match="system message"):
        renderer.sample(chat("Q", "A", system="S"))


def with_bos(chat_template: str | None):
    """A tokenizer that puts a BOS in front of every text."""
    from tokenizers.processors import TemplateProcessing

    tok = with_specials(chat_template, bos="<s>")
    bos = ("<s>", tok.convert_tokens_to_ids("<s>"))
    tok.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return tok


@pytest.mark.parameter("use_chat_template")
def test_a_bos_that_the_tokenizer_adds_stands_in_front_once() -> None:
    for options in ({"use_chat_template": False}, {"template": "chatml"}):
        tok = with_bos(None)
        renderer = Renderer(tok, TemplateOptions(**options))
        for ids in (renderer.sample(PLAIN).input_ids, renderer.prompt(chat("Q")).input_ids):
            assert ids[0] == tok.bos_token_id
            assert ids.count(tok.bos_token_id) == 1
    tok = with_bos(tiny.CHATML)  # this template writes no BOS, and its word is final
    assert tok.bos_token_id not in Renderer(tok, TemplateOptions()).sample(PLAIN).input_ids
    tok = with_bos("{{ bos_token }}" + tiny.CHATML)
    assert Renderer(tok, TemplateOptions()).sample(PLAIN).input_ids.count(tok.bos_token_id) == 1


def test_a_tokenizer_that_begins_texts_with_a_space_does_not_put_one_before_replies() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "</s>", "<u>", "<a>"]
    raw.train_from_iterator(tiny.CORPUS, trainers.BpeTrainer(special_tokens=special, show_progress=False))
    template = "{% for m in messages %}{{ '<u>' + m.content if m.role == 'user' else '<a>' + m.content + eos_token }}"
    tok = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", extra_special_tokens=["<u>", "<a>"])
    tok.chat_template = template + "{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
    talk = chat("over the", "lazy dog", "A model", "says")
    sample = Renderer(tok, TemplateOptions()).sample(talk)
    asked = [m.as_dict() for m in talk.messages]
    assert sample.input_ids == tok.apply_chat_template(asked, tokenize=True, return_dict=False)


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ("assistant", "Message 1 is the assistant's; in front comes the user"),
        ("user user assistant", "Message 2 is the user's; after the user comes the assistant"),
        ("user assistant assistant", "Message 3 is the assistant's"),
        ("user assistant user", "Message 3, the last, is the user's: there is no reply to learn"),
        ("system", "Message 1, the last, is the system's"),
        ("user system assistant", "Message 2 is the system's"),
    ],
)
def test_an_order_no_chat_has_is_refused_by_the_message_that_is_wrong(roles, words) -> None:
    conversation = Conversation(tuple(Message(role, "text") for role in roles.split()))
    with pytest.raises(DataError, match=words):
        made()[1].sample(conversation)


def test_what_cannot_be_rendered_yet_is_refused() -> None:
    with pytest.raises(DataError, match="not available yet"):
        made()[1].sample(replace(PLAIN, images=("a.png",)))
    with pytest.raises(DataError, match="no messages"):
        made()[1].sample(Conversation(()))


def test_a_reply_cannot_be_continued() -> None:
    with pytest.raises(DataError, match="nothing to reply to"):
        made()[1].prompt(PLAIN)


@pytest.mark.parameter("template")
def test_a_checkpoint_without_template_needs_a_name_or_takes_the_layout_of_its_family() -> None:
    bare = tiny.tokenizer(None)
    with pytest.raises(ModelError, match="--template"):
        Renderer(bare, TemplateOptions())
    by_family = Renderer(bare, TemplateOptions(), layout=LAYOUTS["qwen"])
    assert by_family.prompt(chat("Q")) == Renderer(bare, TemplateOptions(template="qwen")).prompt(chat("Q"))
    own = Renderer(tiny.tokenizer(), TemplateOptions(), layout=LAYOUTS["qwen"])
    assert own.chat_template == tiny.CHATML
    with pytest.raises(UsageError, match=r"Did you mean qwen3\?"):
        Renderer(bare, TemplateOptions(template="qwen_3"))


def test_a_template_that_cannot_be_proven_is_refused() -> None:
    shouting = tiny.tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content | upper }}<|im_end|>{% endfor %}")
    with pytest.raises(DataError, match=r"Message 2 .*changes what it says"):
        Renderer(shouting, TemplateOptions()).sample(chat("question", "answer"))
    broken = tiny.tokenizer("{% for m in messages %}")
    with pytest.raises(ModelError, match="no valid Jinja"):
        Renderer(broken, TemplateOptions())


# ----------------------------------------------------------------------------------------------------------- shown


def test_a_sample_is_shown_as_ids_and_text_with_what_is_learnt() -> None:
    _, renderer = made()
    sample = renderer.sample(chat("Q", "A"))
    shown = renderer.show(sample)
    lines = shown.splitlines()
    assert [line.split("]")[0] + "]" for line in lines if line.startswith("[")] == [
        "[INPUT_IDS]", "[INPUT]", "[LABELS_IDS]", "[LABELS]",
    ]  # fmt: skip
    read = sample.labels.index(next(label for label in sample.labels if label != -100))
    assert f"[LABELS] [-100 * {read}]A<|im_end|>[-100 * 1]" in shown
    assert f"[LABELS_IDS] [-100 * {read}, " in shown
    assert "\033[32mA<|im_end|>\033[0m" in renderer.show(sample, colours=True)
    assert "\033" not in shown


def test_a_renderer_travels_to_worker_processes() -> None:
    for options in ({}, {"template": "qwen3"}, {"use_chat_template": False}):
        _, renderer = made(**options)
        sample = renderer.sample(PLAIN)
        assert pickle.loads(pickle.dumps(renderer)).sample(PLAIN) == sample


class _heard:  # noqa: N801 (used as a function)
    """Lets `caplog` hear the logger of Swiftlet, which does not pass on what it says."""

    def __init__(self, caplog) -> None:
        import logging

        self.caplog, self.logger = caplog, logging.getLogger("swift")

    def __enter__(self) -> None:
        self.logger.addHandler(self.caplog.handler)

    def __exit__(self, *_) -> None:
        self.logger.removeHandler(self.caplog.handler)


def test_a_template_that_goes_by_the_length_of_words_is_found_out_and_its_rows_are_not_guessed() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if m.content | length < 9 else '-' }}"
    tok = tiny.tokenizer(template + "<|im_end|>\n{% endfor %}")
    renderer = Renderer(tok, TemplateOptions())
    rows = [chat("Q", "A")] * 3 + [chat("Q", "a long reply")] * 80
    refused = [isinstance(made, DataError) for made in renderer.samples(rows)]
    assert refused[:3] == [False] * 3
    assert any(refused[3:])


def test_that_a_word_is_put_after_the_last_reply_is_told_once(caplog) -> None:
    _, renderer = made("glm4")
    with _heard(caplog):
        renderer.samples([PLAIN, PLAIN])
    assert caplog.text.count("does not end the last reply") == 1


def test_what_opens_a_reply_at_inference_only_does_not_merge_with_the_prompt() -> None:
    row = replace(LAYOUTS["qwen3"], assistant="<|im_start|>assistant The q", non_thinking_prefix="uick</think>")
    bare = tiny.tokenizer(None)
    assert len(bare.tokenize("The q") + bare.tokenize("uick")) > len(bare.tokenize("The quick"))
    renderer = Renderer(bare, TemplateOptions(enable_thinking=False), layout=row)
    prompt = renderer.prompt(chat("Q"))
    assert prompt.text.endswith("The quick</think>")
    assert renderer.sample(chat("Q", "A")).input_ids[: len(prompt.input_ids)] == prompt.input_ids
