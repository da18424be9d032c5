"""A dialogue at the terminal: its commands, its history, and how it ends."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

import tiny
from swift.chat.messages import Message
from swift.chat.render import Renderer
from swift.commands import infer
from swift.commands.dialogue import Dialogue
from swift.engines.base import Sampling
from swift.engines.chat import Chat, fitted
from swift.engines.transformers import Transformers
from swift.options.parse import parse
from swift.options.template import TemplateOptions


class Keyboard:
    """Lines that are typed, and the prompts they were typed at; then the end of the input."""

    def __init__(self, *lines):
        self.lines = list(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line


def dialogue(*lines, model=None, options=None, **more) -> tuple[Dialogue, Keyboard, list[tuple[Message, ...]]]:
    """A dialogue that was held to its end, its keyboard, and the messages of every exchange."""
    template = options or TemplateOptions()
    renderer = Renderer(tiny.tokenizer(), template)
    chat = Chat(renderer, Transformers(model or tiny.model(seed=3), tiny.tokenizer()))
    keyboard, heard = Keyboard(*lines), []
    talk = Dialogue(
        chat,
        more.pop("sampling", Sampling(max_new_tokens=5, temperature=0)),
        fitted=lambda prompt: fitted(prompt, template, 512),
        heard=lambda exchange: heard.append(
            (*exchange.conversation.messages, Message("assistant", exchange.completion.text))
        ),
        read=keyboard,
        **more,
    )
    talk.run()
    return talk, keyboard, heard


def asked(heard) -> list[list[tuple[str, str]]]:
    return [
        [(message.role, message.content) for message in messages if message.role != "assistant"] for messages in heard
    ]


def test_history_grows_with_every_exchange():
    _, keyboard, heard = dialogue("one", "two", "", "   ", "exit", "never read")
    assert asked(heard) == [[("user", "one")], [("user", "one"), ("user", "two")]]
    assert [message.role for message in heard[1]] == ["user", "assistant", "user", "assistant"]
    assert keyboard.lines == ["never read"]
    assert set(keyboard.prompts) == {"<<< "}


@pytest.mark.parametrize("word", ["exit", "quit", " EXIT "])
def test_exit_and_quit_leave(word):
    _, keyboard, heard = dialogue(word, "after")
    assert heard == []
    assert keyboard.lines == ["after"]


def test_the_end_of_the_input_leaves(capsys):
    _, _, heard = dialogue("one")
    assert len(heard) == 1


def test_clear_forgets():
    _, _, heard = dialogue("one", "clear", "two")
    assert asked(heard) == [[("user", "one")], [("user", "two")]]


def test_several_lines_end_with_a_mark_that_is_removed():
    _, keyboard, heard = dialogue("multi-line", "one", "", "# two", "three #", "clear", "single-line", "four#", "clear")
    assert asked(heard) == [[("user", "one\n\n# two\nthree")], [("user", "four#")]]
    assert keyboard.prompts == ["<<< ", "<<<[M] ", "", "", "", "<<<[M] ", "<<<[M] ", "<<< ", "<<< ", "<<< "]


def test_a_system_is_set_emptied_and_restored_and_clears_the_history():
    template = TemplateOptions(system="The default.")
    talk, keyboard, heard = dialogue(
        "one", "reset-system", "You sing.", "two", "reset-system", "", "three", "reset-system", "default-system", "four",
        options=template,
    )  # fmt: skip
    assert asked(heard) == [
        [("user", "one")],
        [("system", "You sing."), ("user", "two")],
        [("system", ""), ("user", "three")],
        [("user", "four")],
    ]
    assert keyboard.prompts.count("<<<[S] ") == 3
    assert talk.system is None


def test_a_system_may_have_several_lines():
    talk, keyboard, _ = dialogue("multi-line", "reset-system", "You sing", "and dance.#")
    assert talk.system == "You sing\nand dance."
    assert "<<<[MS] " in keyboard.prompts


def test_a_conversation_that_has_become_too_long_is_said_and_can_be_cleared(caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("swift"), "propagate", True)
    _, _, heard = dialogue("one", "two " * 30, "three", options=TemplateOptions(max_length=40))
    assert [messages[0].content for messages in heard] == ["one", "one"]
    assert "--max_length" in caplog.text
    assert "clear" in caplog.text


def test_a_model_that_only_continues_text_has_no_history():
    _, _, heard = dialogue("one", "two", options=TemplateOptions(use_chat_template=False), keeps_history=False)
    assert asked(heard) == [[("user", "one")], [("user", "two")]]


@pytest.mark.parameter("stream")
def test_streamed_and_whole_replies_read_the_same(capsys):
    dialogue("one", "two", stream=True)
    streamed = capsys.readouterr().out
    dialogue("one", "two", stream=False)
    assert capsys.readouterr().out == streamed


def interrupting(after: int, *, words: bool = True):
    """A model during whose work Ctrl-C is pressed, once: at a word, or at whatever it does."""
    model, calls = tiny.model(seed=3), []

    def press(module, args, kwargs):
        if not words or kwargs["input_ids"].shape == (1, 1):
            calls.append(1)
            if len(calls) == after:
                raise KeyboardInterrupt

    model.register_forward_pre_hook(press, with_kwargs=True)
    return model


def test_ctrl_c_during_a_reply_stops_the_reply_and_keeps_what_was_said(capsys):
    whole = dialogue("one")[2][0][-1].content
    capsys.readouterr()
    _, _, heard = dialogue("one", "two", model=interrupting(after=3))
    assert "[stopped]" in capsys.readouterr().out
    said = heard[0][-1].content
    assert said
    assert whole.startswith(said)
    assert said != whole
    assert len(heard) == 2


def test_ctrl_c_before_the_first_word_takes_the_question_back(capsys):
    _, _, heard = dialogue("one", "two", model=interrupting(after=1, words=False))
    assert asked(heard) == [[("user", "two")]]


def test_ctrl_c_at_the_prompt_leaves():
    _, keyboard, heard = dialogue("one", KeyboardInterrupt(), "two")
    assert len(heard) == 1
    assert keyboard.lines == ["two"]


def test_a_sampled_session_repeats_but_its_turns_differ():
    hot = Sampling(max_new_tokens=12, temperature=1.0, seed=42)
    replies = [
        [messages[-1].content for messages in dialogue("one", "clear", "one", sampling=hot)[2]] for _ in range(2)
    ]
    assert replies[0] == replies[1]
    assert replies[0][0] != replies[0][1]


@pytest.mark.parameter("result_path")
def test_a_dialogue_is_written_when_a_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\nexit\n"))
    model = tiny.checkpoint(tmp_path / "tiny", seed=3)
    argv = ["--model", str(model), "--max_new_tokens", "3", "--result_path", str(tmp_path / "talk.jsonl")]
    path = infer.run(parse("infer", argv))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [len(line["messages"]) for line in lines] == [2, 4]
    assert [line["messages"][-1]["content"] for line in lines] == [line["response"] for line in lines]
    assert infer.run(parse("infer", argv[:4])) is None


@pytest.mark.slow
def test_questions_can_come_through_a_pipe(tmp_path):
    model = tiny.checkpoint(tmp_path / "tiny", seed=3)
    command = [sys.executable, "-m", "swift", "infer", "--model", str(model), "--max_new_tokens", "4", "--top_k", "1",
               "--temperature", "1"]  # fmt: skip
    done = subprocess.run(
        command, input="hello\nclear\nhello\nexit\n", capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Traceback") == 0
    replies = done.stdout.partition("<<< ")[2].split("<<< ")
    assert replies[0].strip("\n") or replies[0].count("\n") > 1
    assert replies[0] == replies[2]
