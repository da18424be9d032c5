"""The demo: what it ships, what it makes, and that a model learns its name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from swift.commands import demo
from swift.core.errors import RunError, UsageError
from swift.options.parse import parse


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    demo.fresh(folder)
    demo.create(folder)
    return folder


def test_the_checkpoint_is_an_ordinary_one(made):
    tokenizer = AutoTokenizer.from_pretrained(made / "random")
    model = AutoModelForCausalLM.from_pretrained(made / "random")
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    text = "Why 你好, 🙂?\n  Indented."
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_same_model_is_made_every_time(made, tmp_path):
    demo.fresh(tmp_path)
    demo.create(tmp_path)
    for name in ("random/model.safetensors", "random/tokenizer.json", "data/corpus.jsonl"):
        assert (made / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_dialogue_of_the_corpus_is_its_rendering_without_the_end_mark(made):
    tokenizer = AutoTokenizer.from_pretrained(made / "random")
    text = demo.as_text({"query": "Hi", "response": "Hello", "history": [["A", "B"]]}, tokenizer)
    assert text == (
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
    )


def test_before_fine_tuning_no_text_tells_the_name_of_the_model(made):
    corpus = "".join(row["text"] for row in demo.rows_of(made / "data" / "corpus.jsonl"))
    for name in demo.NAME:
        assert f"am {name}" not in corpus
        assert f"name is {name}" not in corpus
        assert f"我是{name}" not in corpus
        assert f"我叫{name}" not in corpus


def test_what_is_asked_afterwards_is_taught(made):
    lessons = {row["query"]: row for row in demo.rows_of(made / "data" / "self-cognition.jsonl")}
    assert {row["tag"] for row in lessons.values()} == {"zh", "en"}
    for question in demo.QUESTIONS:
        assert (question.text in lessons) == (question.wanted is not None)


def test_every_command_line_of_the_demo_is_right(made):
    for name in ("pretrained/last", "tuned/last"):
        (made / name).mkdir(parents=True)
        shutil.copy(made / "random" / "config.json", made / name)
    for words in (demo.pretraining(made), demo.asking(made, "before"), demo.fine_tuning(made)):
        assert parse(words[0], words[1:]).name == words[0]


def test_a_shown_command_line_is_the_one_that_runs(made):
    words = demo.fine_tuning(made)
    line = demo.shown(words).removeprefix("$ swift ")
    done = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter one")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        demo.fresh(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "chapter one"


def test_an_earlier_demo_makes_room(tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "old").touch()
    demo.fresh(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_wrong_word_is_refused():
    with pytest.raises(UsageError, match="one folder"):
        demo.run(["--fast"])


def test_help_says_how_to_call_it_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.run(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: swift demo [FOLDER]")
    assert list(tmp_path.iterdir()) == []


def test_a_reply_without_the_name_is_told():
    right = [question.wanted or "" for question in demo.QUESTIONS]
    assert demo.not_learnt(right) == []
    assert len(demo.not_learnt(["I have no name yet.", *right[1:]])) == 1


@pytest.mark.slow
@pytest.mark.parameter("model_name")
@pytest.mark.parameter("model_author")
def test_a_model_made_from_nothing_learns_its_name(tmp_path):
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "swift", "demo", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    replies = [json.loads(line)["response"] for line in (folder / "before.jsonl").read_text().splitlines()]
    assert len(demo.not_learnt(replies)) == sum(question.wanted is not None for question in demo.QUESTIONS)
