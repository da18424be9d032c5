"""Tools, calls and conversations that use them, and chat templates that render tools in the manner of real families."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from swift.chat.calls import ToolCall
from swift.chat.messages import Conversation, Message

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city {today}",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time", "parameters": {}}}
TOOLS = (WEATHER, CLOCK)


def call(name: str, **arguments) -> Message:
    return Message("tool_call", json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False))


def result(text: str) -> Message:
    return Message("tool_response", text)


ROME, TIME = call("weather", city="Rome", days=2), call("clock")
TALK = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "How is Rome, and how late is it?"),
        Message("assistant", "I will look."),
        ROME,
        TIME,
        result("sunny 你好"),
        result("12:00"),
        Message("assistant", "Sunny, and noon."),
        Message("user", "And Oslo?"),
        call("weather", city="Oslo"),
        result("rain"),
        Message("assistant", "Rain."),
    ),
    TOOLS,
)
"""Words with two calls at once and their results; a call without words; and answers."""

_QUOTED = '{"name": "\' + call.function.name + \'", "arguments": '
QWEN3_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}"
    "{{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}"
    "{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}"
    "{{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}'
    "\n</tool_call><|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    "{%- if message.content or not loop.first %}{{- '\n' }}{%- endif %}"
    "{{- '<tool_call>\n" + _QUOTED + "' + (call.function.arguments | tojson) + '}\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""As the template of Qwen3 without its thinking; arguments are objects."""

DEEPSEEK_TOOLS = (
    "{%- if tools %}{{- '<tools>' + (tools | tojson) + '</tools>' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}{{- '<user>' + message.content }}"
    "{%- elif message.role == 'system' %}{{- message.content }}"
    "{%- elif message.role == 'tool' %}{{- '<output>' + message.content + '</output>' }}"
    "{%- else %}{%- if messages[loop.index0 - 1].role == 'user' %}{{- '<bot>' }}{%- endif %}"
    "{{- message.content }}{%- for call in message.tool_calls or [] %}"
    "{{- '<call>' + call.function.name + '<sep>' + call.function.arguments + '</call>' }}{%- endfor %}"
    "{{- '<|im_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt and messages[-1].role == 'user' %}{{- '<bot>' }}{%- endif %}"
)
"""In the manner of DeepSeek-V3.1: arguments are text, and results are no turn."""

# ------------------------------------------------------------------------------------------------- generated calls

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,11}", fullmatch=True)
TEXTS = st.text(
    alphabet="aé你🙂 \n\t\"'\\{}[]<>/&=:,|0-", max_size=14
) | st.sampled_from(
    ["</tool_call>", "<tool_call>", "Observation:", "\nAction: x\nAction Input: {}", "]]>", "<![CDATA[x]]>", "true", "1",
     "null", '{"name": "x", "arguments": {}}', "✿FUNCTION✿: x", "<|im_end|>", "</arg_value", "\n\nx\n", "｜", ""]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(st.builds(ToolCall, NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3)


def tools_of(calls) -> list[dict]:
    """Schemas that say of every argument whether it is text."""
    return [
        {
            "type": "function",
            "function": {
                "name": made.name,
                "description": "d",
                "parameters": {
                    "type": "object",
                    "properties": {
                        key: {"type": "string" if isinstance(value, str) else "object"}
                        for key, value in made.arguments.items()
                    },
                },
            },
        }
        for made in calls
    ]
