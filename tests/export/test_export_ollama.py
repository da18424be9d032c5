"""What Ollama would send to a model is what the model was trained with, or there is no Modelfile."""

from __future__ import annotations

import json
import re

import pytest

import tiny
from made_adapters import trained
from swift.catalog.layouts import LAYOUTS
from swift.chat.messages import Conversation, Message
from swift.chat.render import Renderer
from swift.commands import export
from swift.core.errors import RunError, UsageError
from swift.export.go_template import Action, render, write
from swift.export.ollama import Modelfile, sent, values_for
from swift.options.parse import parse
from swift.options.template import TemplateOptions

REFUSED = {
    "qwen3_reranker": "single round", "skywork": "single round", "dummy": "single round", "yuan": "single round",
    "chatglm2": "would send", "longchat": "would send",
}  # fmt: skip
"""Layouts that Ollama cannot be told: those of one round, and those that count rounds."""
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and '</think>' in m['content'] %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LAST_ONLY = (
    "{% for m in messages %}{% if loop.last %}LAST {% endif %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def base(folder, chat_template=tiny.CHATML, **tokenizer_config):
    tiny.checkpoint(folder, chat_template=chat_template)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **tokenizer_config}))
    return folder


def run(*words, name="export"):
    return read((export.run(parse(name, [*map(str, words), "--to_ollama", "true"])) / "Modelfile").read_text())


def read(text):
    """A Modelfile as Ollama reads it: a word and a value, which may be quoted and then has no escapes."""
    found = {"PARAMETER": {}}
    value = r'("""(?P<long>.*?)"""|"(?P<quoted>[^"\n]*)"|(?P<plain>[^\n]*))\n'
    for match in re.finditer(
        rf"(?:#[^\n]*|(?P<word>FROM|TEMPLATE|SYSTEM|PARAMETER (?P<name>\w+)) {value})", text, re.DOTALL
    ):
        if match["word"]:
            said = next(match[group] for group in ("long", "quoted", "plain") if match[group] is not None)
            if match["name"]:
                found["PARAMETER"].setdefault(match["name"], []).append(said)
            else:
                found[match["word"]] = said
    return found


def talk(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    said = tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))
    return Conversation(said if system is None else (Message("system", system), *said))


@pytest.mark.parameter("to_ollama", "template")
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "baichuan"])  # which needs ids of its tokenizer
def test_ollama_sends_what_every_layout_writes(tmp_path, name):
    folder = base(tmp_path / "base", None, bos_token="<s>")
    if name in REFUSED:
        with pytest.raises((UsageError, RunError), match=REFUSED[name]):
            run("--model", folder, "--template", name)
        assert [path.name for path in tmp_path.iterdir()] == ["base"]
        return
    file = run("--model", folder, "--template", name)
    tokenizer = tiny.tokenizer(None)
    tokenizer.bos_token = "<s>"
    renderer = Renderer(tokenizer, TemplateOptions(template=name))
    asked = talk("How are you?", "Fine.", "And today?", "Fine too.", "Good-bye.")
    for conversation in (asked, Conversation(asked.messages[:1])):
        assert sent(file["TEMPLATE"], file.get("SYSTEM", ""), conversation) == renderer.prompt(conversation).text
    assert file["PARAMETER"]["stop"] == list(renderer.stop_words)


def test_a_chat_template_of_the_checkpoint_is_taken_over_too(tmp_path):
    file = run("--model", base(tmp_path / "base"))
    assert file["FROM"] == str(tmp_path / "base")
    expected = Renderer(tiny.tokenizer(), TemplateOptions()).prompt(talk("Hi", "Ho", "He", system="S.")).text
    assert sent(file["TEMPLATE"], "", talk("Hi", "Ho", "He", system="S.")) == expected
    assert "SYSTEM" not in file


def test_a_template_that_treats_turns_otherwise_is_refused_with_the_place(tmp_path):
    with pytest.raises((RunError, UsageError), match=r"in another way than that of a short one|would send"):
        run("--model", base(tmp_path / "base", LAST_ONLY))
    assert not (tmp_path / "base-ollama").exists()


@pytest.mark.parameter("enable_thinking")
def test_thinking_is_turned_on_and_off_by_the_caller(tmp_path):
    file = run("--model", base(tmp_path / "base", THINKING))
    for think in (None, True, False):
        renderer = Renderer(tiny.tokenizer(THINKING), TemplateOptions(enable_thinking=think))
        assert sent(file["TEMPLATE"], "", talk("Hi"), think) == renderer.prompt(talk("Hi")).text
    assert sent(file["TEMPLATE"], "", talk("Hi"), think=False).endswith("<think>\n\n</think>\n\n")
    silent = run("--model", tmp_path / "base", "--enable_thinking", "false", "--output_dir", tmp_path / "silent")
    assert sent(silent["TEMPLATE"], "", talk("Hi")).endswith("<think>\n\n</think>\n\n")
    assert not sent(silent["TEMPLATE"], "", talk("Hi"), think=True).endswith("<think>\n\n</think>\n\n")


def test_past_thinking_is_not_sent_again_and_that_of_this_turn_is(tmp_path):
    template = run("--model", base(tmp_path / "base", THINKING))["TEMPLATE"]
    values = values_for("", talk("Hi", "Ho", "He", "Ha"))
    for message in values["Messages"]:
        message["Thinking"] = "Hm." if message["Role"] == "assistant" else ""
    text = render(template, values)
    assert text.count("<think>\nHm.\n</think>\n\n") == 1
    assert text.endswith("<think>\nHm.\n</think>\n\nHa")


@pytest.mark.parameter("system")
def test_the_system_text_stands_in_the_modelfile_and_gives_way_to_a_message(tmp_path):
    file = run("--model", base(tmp_path / "base"), "--template", "qwen2_5", "--system", "You are a ship.")
    assert file["SYSTEM"] == "You are a ship."
    assert "system\nYou are a ship.<|im_end|>" in sent(file["TEMPLATE"], file["SYSTEM"], talk("Hi"))
    assert "ship" not in sent(file["TEMPLATE"], file["SYSTEM"], talk("Hi", system="You are a boat."))
    assert sent(file["TEMPLATE"], file["SYSTEM"], talk("Hi", system="")).startswith("<|im_start|>user")


@pytest.mark.parameter("response_prefix")
def test_replies_begin_as_they_are_told_to(tmp_path):
    file = run("--model", base(tmp_path / "base"), "--response_prefix", "Well, ")
    assert sent(file["TEMPLATE"], "", talk("Hi")).endswith("assistant\nWell, ")


@pytest.mark.parameter("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "stop_words")
@pytest.mark.parameter("max_model_len")
def test_sampling_is_that_of_the_options_and_else_of_the_generation_config(tmp_path):
    folder = base(tmp_path / "base")
    plain = run("--model", folder)["PARAMETER"]
    assert plain == {"stop": ["<|im_end|>"], "temperature": ["0"], "repeat_penalty": ["1.0"]}
    saved = {"do_sample": True, "temperature": 0.6, "top_k": 20, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(saved))
    sampled = run("--model", folder, "--exist_ok", "true")["PARAMETER"]
    assert (sampled["temperature"], sampled["top_k"], sampled["top_p"]) == (["0.6"], ["20"], ["1.0"])
    asked = run(
        "--model", folder, "--exist_ok", "true", "--temperature", "0.9", "--top_k", "5", "--top_p", "0.7",
        "--repetition_penalty", "1.1", "--max_new_tokens", "99", "--max_model_len", "256", "--stop_words", "END\n", 'say "x"',
    )["PARAMETER"]  # fmt: skip
    assert asked == {
        "stop": ["<|im_end|>", "END\n", 'say "x"'], "temperature": ["0.9"], "top_k": ["5"], "top_p": ["0.7"],
        "repeat_penalty": ["1.1"], "num_predict": ["99"], "num_ctx": ["256"],
    }  # fmt: skip


def test_a_beginning_that_ollama_writes_itself_is_left_to_it(tmp_path):
    folder = base(tmp_path / "base", None, bos_token="<s>", add_bos_token=True)
    template = run("--model", folder, "--template", "llama")["TEMPLATE"]
    assert sent(template, "", talk("Hi")) == "[INST] Hi [/INST]"
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace('"add_bos_token": true', '"add_bos_token": false')
    )
    template = run("--model", folder, "--template", "llama", "--exist_ok", "true")["TEMPLATE"]
    assert sent(template, "", talk("Hi")) == "<s>[INST] Hi [/INST]"


@pytest.mark.parameter("merge_lora", "to_ollama")
def test_an_adapter_is_merged_by_the_same_command_and_the_folder_is_moved_whole(tmp_path):
    folder = base(tmp_path / "base")
    adapter = trained(folder, tmp_path / "run" / "last")
    file = run("--adapters", adapter, "--model", folder, "--merge_lora", "true")
    output = adapter.with_name("last-ollama")
    assert file["FROM"] == "."
    assert {"Modelfile", "model.safetensors", "config.json", "tokenizer.json"} <= {
        path.name for path in output.iterdir()
    }


def test_what_means_something_in_go_or_in_a_modelfile_is_escaped():
    text = 'a {{ b }} """c""" {'
    template = write(["{", Action('if eq .Role "x"'), text, Action("end"), Action(".Content"), text])
    assert '"""' not in template
    assert render(template, {"Role": "x", "Content": "!"}) == "{" + text + "!" + text
    with pytest.raises(UsageError, match="three quotation marks"):
        Modelfile("/model", "{{ .System }}", 'say """').text()


def test_templates_as_others_write_them_are_read():
    template = """{{- $n := 0 }}{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if or (eq .Role "user") (and (eq .Role "tool") (not $last)) }}[{{ .Content }}]
{{- $n = $i }}
{{- else if ne .Role "system" }} {{ .Content }}|{{ end }}
{{- end }} {{ $n }}"""
    values = values_for("", talk("a", "b", "c", system="s"))
    assert render(template, values) == "[a] b|[c] 3"


@pytest.mark.parametrize(
    "template", ["{{ .A | json }}", "{{ template }}", "{{ if .A }}", "{{ end }}", "{{ $x = 1 }}", "{{ a b }}"]
)
def test_what_is_not_known_of_go_is_refused(template):
    with pytest.raises(RunError, match="Go template"):
        render(template, {"A": 1})
