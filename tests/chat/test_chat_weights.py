from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
from chat_families import chat, learnt_text
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from swift.chat.render import Renderer
from swift.chat.skeletons import TextPiece
from swift.chat.weighing import mixed, runs_of, token_weights, weigh, window
from swift.chat.weights import LOSS_SCALES, LossScale, is_learnt, parse_loss_scale
from swift.core.errors import DataError, UsageError
from swift.options.template import TemplateOptions

REACT = "Thought: well\nAction: look\nAction Input: {}\nObservation: seen\nFinal Answer: 4"
QWEN = "✿FUNCTION✿: f\n✿ARGS✿: {}\n✿RESULT✿: 4\n✿RETURN✿: It is 4."
HERMES = "Let me see.\n<tool_call>\n{}\n</tool_call>\n<tool_call>\n{1}\n</tool_call> done"
CONFIGS = ["hermes", "react", "qwen", "agentflan", "alpha_umi", "ignore_empty_think", "ignore_think_prefix"]


def weighed(name: str, text: str, query: str | None = None) -> list[tuple[str, float]]:
    """The pieces of a text and their weights."""
    runs = weigh(text, query, parse_loss_scale(name).refinements)
    starts = [0, *(run.end for run in runs)]
    return [(text[start : run.end], run.weight) for start, run in zip(starts, runs, strict=False)]


def rendered(reply: str, loss_scale: str, **options):
    tok = tiny.tokenizer()
    sample = Renderer(tok, TemplateOptions(loss_scale=loss_scale, **options)).sample(chat("Q", reply))
    return tok, sample


# ------------------------------------------------------------------------------------------------- reading the option


@pytest.mark.parametrize(
    ("text", "base", "count"),
    [
        ("default", "default", 0),
        ("last_round", "last_round", 0),
        ("all", "all", 0),
        ("base", "default", 0),
        ("all+base", "all", 0),
        ("ignore_empty_think", "default", 1),
        ("last_round+ignore_empty_think", "last_round", 1),
        ("last_round+hermes+ignore_empty_think", "last_round", 2),
        ('all+hermes+{"x": [2]}', "all", 2),
        ('{"a+b": [2, 1]}', "default", 1),
    ],
)
def test_a_base_strategy_and_refinements_are_read(text, base, count) -> None:
    plan = parse_loss_scale(text)
    assert (plan.base, len(plan.refinements)) == (base, count)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("last_rund", "Did you mean last_round?"),
        ("default+reakt", "Did you mean react?"),
        ("ignore_empty_think+all", "stands in front"),
        ("ignore_empty_think+ignore_empty_think", "twice"),
        ("", "unknown strategy ''"),
        ("nowhere.json", "no such file"),
        ("{", "no valid JSON"),
        ("default+[1]", "unknown strategy"),
        ('{"x": [1, 2, 3]}', "one or two numbers"),
        ('{"x": -1}', "none below 0"),
        ('{"x": true}', "one or two numbers"),
        ('{"x": ["1"]}', "one or two numbers"),
        ('{"": [1]}', "one or two numbers"),
        ('{"x": [1], "y": [1, 2]}', "all delimiters"),
        ('{"(": [1]}', "no regular expression"),
        ('{"query": {"x": [1, 2]}}', "takes one number"),
    ],
)
def test_every_other_value_is_refused_with_a_way_out(text, words) -> None:
    with pytest.raises(UsageError, match=r"--loss_scale") as caught:
        parse_loss_scale(text)
    assert words in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_loss_scale("default+reakt+nonsense")
    assert len(caught.value.problems) == 2


def test_a_message_that_says_whether_it_is_learnt_comes_before_the_strategy() -> None:
    talk = chat("Q", "A", "Q", "A", "Q", "A", system="S").messages
    asked = [replace(talk[0]), *talk[1:2], replace(talk[2], loss=True), *talk[3:6], replace(talk[6], loss=False)]
    assert is_learnt(talk, "default") == [False, False, True, False, True, False, True]
    assert is_learnt(talk, "last_round") == [False, False, False, False, False, False, True]
    assert is_learnt(talk, "all") == [True] * 7
    assert is_learnt(asked, "last_round") == [False, False, True, False, False, False, False]
    assert is_learnt(asked, "all") == [True] * 6 + [False]


# ----------------------------------------------------------------------------------------------------- what weighs what


def test_delimiters_weigh_themselves_and_what_follows_up_to_the_next() -> None:
    assert weighed("react", REACT) == [
        ("Thought: well\n", 1),
        ("Action: look\nAction Input: {}\nObservation:", 2),
        (" seen\n", 0),
        ("Final Answer: 4", 1),
    ]
    assert weighed("qwen", QWEN) == [
        ("✿FUNCTION✿: f\n✿ARGS✿: {}\n✿RESULT✿:", 2),
        (" 4\n", 0),
        ("✿RETURN✿: It is 4.", 1),
    ]
    assert weighed("alpha_umi", "so Next: f")[-1] == ("Next: f", 2)
    assert weighed("react", "so Next: f") == [("so Next: f", 1)]


def test_a_delimiter_that_begins_another_one_does_not_hide_it() -> None:
    for scale in ('{"Act": [2, 2], "Act now:": [3, 3]}', '{"Act now:": [3, 3], "Act": [2, 2]}'):
        assert weighed(scale, "Act: a Act now: b") == [("Act: a ", 2), ("Act now: b", 3)]


def test_a_delimiter_is_literal_and_an_expression_matches_over_lines() -> None:
    assert weighed('{"a.": [2, 3]}', "ab a. c") == [("ab ", 1), ("a.", 2), (" c", 3)]
    assert weighed('{"a.": [2]}', "ab a\n c") == [("ab", 2), (" ", 1), ("a\n", 2), (" c", 1)]
    assert weighed("hermes", HERMES) == [
        ("Let me see.\n", 1),
        ("<tool_call>\n{}\n</tool_call>", 2),
        ("\n", 1),
        ("<tool_call>\n{1}\n</tool_call>", 2),
        (" done", 1),
    ]


def test_of_several_expressions_the_first_to_match_counts_and_of_equals_the_first_named() -> None:
    assert weighed('{"bc": [2], "abc": [3], "a(b)": [4]}', "abc") == [("abc", 3)]
    assert weighed('{"x*": [2]}', "aa") == [("aa", 1)]  # nothing matched is no match


def test_what_was_asked_can_weigh_the_whole_reply() -> None:
    asked = "What is the tool you want to use?"
    assert weighed("agentflan", "Tool: search", asked) == [("Tool: search", 3)]
    assert weighed("agentflan", "Tool: search", "Hello") == [("Tool:", 1), (" search", 3)]


@pytest.mark.parametrize(
    "block",
    ["<think>\n\n</think>\n\n", "<think></think>", "</think>\n\n", "\n<think> </think>\n", "</mm:think>\n",
     "<|channel>thought\n<channel|>"],
)  # fmt: skip
def test_empty_thinking_at_the_beginning_alone_weighs_nothing(block) -> None:
    assert weighed("ignore_empty_think", block + "A") == [(block, 0), ("A", 1)]
    assert weighed("ignore_empty_think", "A" + block) == [("A" + block, 1)]
    assert weighed("ignore_empty_think", "<think>\nhm\n</think>\n\nA") == [("<think>\nhm\n</think>\n\nA", 1)]


def test_the_prefix_of_thinking_can_be_left_to_the_prompt() -> None:
    assert weighed("ignore_think_prefix", "<think>\nhm</think>A") == [("<think>\n", 0), ("hm</think>A", 1)]


def test_refinements_follow_one_another_and_multiply() -> None:
    text = "<think>\n\n</think>\n\n<tool_call>x</tool_call>"
    assert weighed("ignore_empty_think+hermes", text) == [(text[:19], 0), (text[19:], 2)]
    assert weighed('hermes+{"x": [3]}', text)[1:] == [
        ("<tool_call>", 2), ("x", 6), ("</tool_call>", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_binary_is_what_labels_alone_can_say(name) -> None:
    is_binary = parse_loss_scale(name).is_binary
    assert is_binary == name.startswith("ignore")
    weights = {w for text in (REACT, QWEN, HERMES, "</think>a", "Next: b Tool: c") for _, w in weighed(name, text)}
    assert (weights <= {0, 1}) == is_binary


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.sampled_from(["Action:", "Thought:", "a", " ", "<tool_call>", "</tool_call>", "✿ARGS✿:"])),
       st.sampled_from(CONFIGS))  # fmt: skip
def test_pieces_joined_are_the_text_whatever_it_is(parts, name) -> None:
    text = "".join(parts)
    assert "".join(piece for piece, _ in weighed(name, text)) == text


@settings(max_examples=60, deadline=None, database=None)
@given(st.data())
def test_windows_of_runs_weigh_every_character_as_the_whole_does(data) -> None:
    text = data.draw(st.text(alphabet="ab Action:Thought", min_size=1, max_size=40))
    runs = weigh(text, None, parse_loss_scale("react").refinements)
    cut = data.draw(st.integers(0, len(text)))
    everywhere = token_weights(runs, range(len(text)))
    halves = [(window(runs, 0, cut), cut), (window(runs, cut, len(text)), len(text) - cut)]
    assert everywhere == [w for half, size in halves for w in (token_weights(half, range(size)) if size else [])]


# ------------------------------------------------------------------------------------------------------------- in tokens


@pytest.mark.parameter("loss_scale")
@pytest.mark.parametrize("name", ["react", "qwen", "hermes", "agentflan"])
def test_weights_are_those_of_each_tokens_first_character_and_change_no_token(name) -> None:
    reply = f"{REACT}\n{QWEN}\n{HERMES}\nTool: 你好 \U0001f600 x"
    tok, sample = rendered(reply, name)
    _, plain = rendered(reply, "default")
    assert sample.input_ids == plain.input_ids
    assert sample.weights is not None
    assert sample.weights[0] == 0
    begin = plain.labels.index(next(label for label in plain.labels if label != -100))
    characters = [w for piece, weight in weighed(name, reply) for w in [weight] * len(piece)]
    bytes_each = [w for character, w in zip(reply, characters, strict=True) for w in [w] * len(character.encode())]
    at = 0
    for i in range(begin, len(plain.labels)):
        token = tok.convert_ids_to_tokens(sample.input_ids[i])
        expected = bytes_each[at] if at < len(bytes_each) else float(plain.labels[i] != -100)
        assert sample.weights[i] == expected, (token, at)
        assert (sample.labels[i] == -100) == (expected == 0)
        at += len(token) if token not in tiny.SPECIALS else len(token.encode())


@pytest.mark.parameter("loss_scale")
def test_a_token_over_a_border_takes_the_weight_of_its_first_character() -> None:
    tok = tiny.tokenizer()
    word = max((tok.decode([i]) for i in range(5, 400)), key=lambda w: len(w) if w.isascii() and w.isalpha() else 0)
    assert len(tok.tokenize(word)) == 1
    config = json.dumps({word[:2]: [3, 5]})
    _, sample = rendered(word, config)
    learnt = [w for w, label in zip(sample.weights, sample.labels, strict=True) if label != -100]
    assert learnt[0] == 3
    assert learnt[-1] == 1  # what ends the reply


def test_what_ends_a_reply_is_learnt_in_every_round_whatever_stands_before_it() -> None:
    tok = tiny.tokenizer()
    renderer = Renderer(tok, TemplateOptions(loss_scale="react"))
    sample = renderer.sample(chat("Q", "Observation: none", "Q", "Action: go"))
    ends = [i for i, token in enumerate(sample.input_ids) if token == tok.eos_token_id and sample.labels[i] != -100]
    assert [sample.weights[i] for i in ends] == [1, 1]


@pytest.mark.parameter("loss_scale")
def test_binary_strategies_are_in_the_labels_and_samples_carry_no_weights() -> None:
    tok, sample = rendered("<think>\n\n</think>\n\nA", "ignore_empty_think")
    assert sample.weights is None
    assert learnt_text(tok, sample) == ["A<|im_end|>"]
    assert rendered("plain", "react")[1].weights is None
    tok, sample = rendered("<think>\nhm</think>A", "ignore_think_prefix")
    assert learnt_text(tok, sample) == ["hm</think>A<|im_end|>"]


def test_the_base_strategy_and_the_flag_of_a_message_decide_what_is_weighed() -> None:
    tok = tiny.tokenizer()
    talk = chat("Action: Q", "Action: go", "Q", "Action: go")
    unlearnt = replace(talk, messages=(*talk.messages[:3], replace(talk.messages[3], loss=False)))

    def weights(conversation, loss_scale: str) -> list[float]:
        return Renderer(tok, TemplateOptions(loss_scale=loss_scale)).sample(conversation).weights or []

    default, last, everything = (weights(talk, f"{base}+react") for base in ("default", "last_round", "all"))
    assert last.count(2) * 2 == default.count(2) == everything.count(2) == weights(unlearnt, "react").count(2) * 2
    assert 0 not in everything[1:]
    assert 0 in default


@pytest.mark.parameter("loss_scale")
def test_a_config_file_of_ones_own_is_read(tmp_path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"answer": [4]}), encoding="utf-8")
    assert weighed(f"last_round+{file}", "the answer") == [("the ", 1), ("answer", 4)]


def test_a_strategy_that_loses_text_is_refused() -> None:
    class Losing(LossScale):
        def get_loss_scale(self, context, **_):
            return [context[1:]], [1.0]

    with pytest.raises(DataError, match="Losing are not the text"):
        weigh("ab", None, [Losing()])


def test_a_renderer_with_weights_travels_to_worker_processes() -> None:
    renderer = Renderer(tiny.tokenizer(), TemplateOptions(loss_scale="last_round+react+ignore_empty_think"))
    sample = renderer.sample(chat("Q", REACT))
    assert pickle.loads(pickle.dumps(renderer)).sample(chat("Q", REACT)) == sample


def test_every_named_strategy_can_be_made() -> None:
    assert all(LOSS_SCALES[name]("all").base_strategy == "all" for name in LOSS_SCALES)


def test_replies_of_one_weight_are_not_asked_twice_for_their_tokens() -> None:
    plan, stops = parse_loss_scale("react"), ("<|im_end|>",)
    pieces = [TextPiece("Q"), TextPiece("A<|im_end|>", 1), TextPiece("Action: go<|im_end|>", 3)]
    messages = chat("Q", "A", "Q", "Action: go").messages
    runs = runs_of(pieces, [False, True, False, True], messages, plan, stops)
    assert runs == [((1, 0.0),), ((11, 1.0),), ((10, 2.0), (20, 1.0))]
    assert mixed(pieces, runs) == [("Action: go<|im_end|>", True)]
