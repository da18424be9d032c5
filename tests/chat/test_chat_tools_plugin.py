"""Agent templates of one's own: the example of examples/plugins, and what a class need not say."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from chat_families import learnt_text
from tool_cases import TALK, TOOLS

import tiny
from swift.agent_template import BaseAgentTemplate, agent_template_map
from swift.catalog.agents import AGENT_TEMPLATES
from swift.chat.calls import ToolCall, read_calls
from swift.chat.render import Renderer
from swift.chat.tool_turns import tool_format
from swift.chat.tools_plugin import format_of
from swift.cli import main
from swift.core.errors import UsageError
from swift.options.template import TemplateOptions

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "agent_template.py"


@pytest.mark.slow
@pytest.mark.parameter("external_plugins")
@pytest.mark.parameter("agent_template")
def test_the_example_tells_of_tools_and_writes_and_reads_calls(tmp_path, capfd) -> None:
    model = tiny.checkpoint(tmp_path / "m")
    messages = [{"role": message.role, "content": message.content} for message in TALK.messages]
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [{"messages": messages, "tools": list(TOOLS)}] * 4)
    command = ["sft", "--model", str(model), "--dataset", str(rows), "--output_dir", str(tmp_path / "out")]
    command += ["--max_steps", "1", "--external_plugins", str(EXAMPLE), "--agent_template", "calls"]
    try:
        assert main(command) == 0
        shown = capfd.readouterr()
        text = shown.out + shown.err
        assert '@weather {"city": "Rome", "days": 2}' in text
        assert "@clock: The time" in text
        renderer = Renderer(tiny.tokenizer(), TemplateOptions(agent_template="calls"))
        sample = renderer.sample(TALK)
        assert pickle.loads(pickle.dumps(renderer)).sample(TALK) == sample
        learnt = learnt_text(tiny.tokenizer(), sample)
        assert learnt[0] == 'I will look.\n@weather {"city": "Rome", "days": 2}\n@clock {}\n->'
        assert learnt[1] == "Sunny, and noon.<|im_end|>"
        said = read_calls(learnt[0], tool_format("calls").syntax)
        assert said.calls == (ToolCall("weather", {"city": "Rome", "days": 2}), ToolCall("clock", {}))
        assert said.content == "I will look."
        assert renderer.prompt(TALK.__class__(TALK.messages[:2], TOOLS)).extra["stop_words"] == ("->",)
    finally:
        AGENT_TEMPLATES._entries.pop("calls", None)


def test_a_class_that_overrides_nothing_is_react() -> None:
    plain = format_of("plain", BaseAgentTemplate())
    react = tool_format("react_en")
    calls = [ToolCall("f", {"x": [1]}), ToolCall("g", {})]
    assert plain.tell(TOOLS, "S") == react.tell(TOOLS, "S")
    assert plain.write(calls) == react.write(calls)
    assert plain.respond("R", ["a", "b"]) == react.respond("R", ["a", "b"])
    assert list(read_calls("Hm.\n" + plain.write(calls), plain.syntax).calls) == calls
    assert json.loads(BaseAgentTemplate().get_toolcall(react.write(calls))[0].arguments) == {"x": [1]}


def test_a_name_is_taken_once_and_stands_for_a_class() -> None:
    with pytest.raises(UsageError, match="registered already"):
        agent_template_map["hermes"] = BaseAgentTemplate
    AGENT_TEMPLATES.add("broken", 3)
    try:
        with pytest.raises(UsageError, match="must register a subclass of BaseAgentTemplate"):
            tool_format("broken")
    finally:
        AGENT_TEMPLATES._entries.pop("broken", None)
