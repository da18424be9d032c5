"""This file knows the agent templates whose calls are JSON between marks.

Their wording is that of the chat templates of the models they are named after.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from swift.chat.calls import CallSyntax, NotACall, Scan, ToolCall
from swift.chat.tools import Tool, ToolFormat, dumps, function

# ------------------------------------------------------------------------------------------------- Qwen2.5, Qwen3

_HERMES = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def _tell_hermes(tools: Sequence[Tool], system: str) -> str:
    # a system text that is empty leaves its two newlines, as in the chat template
    return f"{system}\n\n" + _HERMES.format(tools=_lines(tools))


def _write_hermes(calls: Sequence[ToolCall]) -> str:
    return "\n".join(f"<tool_call>\n{_object(call)}\n</tool_call>" for call in calls)


def _respond_hermes(reply: str, results: Sequence[str]) -> tuple[str, str]:
    return reply, "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)


def _read_tagged(scan: Scan) -> list[ToolCall]:
    scan.take("<tool_call>")
    scan.space()
    scan.is_sure = scan.sees("{")
    call = _called(scan.value())
    scan.space()
    scan.take("</tool_call>")
    return [call]


HERMES = ToolFormat(
    "hermes",
    _tell_hermes,
    _write_hermes,
    _respond_hermes,
    CallSyntax(("<tool_call>",), _read_tagged),
    is_turn=True,
)

# ------------------------------------------------------------------------------------------------- Hunyuan

_HUNYUAN = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For function call returns, you should first print <tool_calls>For each function call, you should return object like:
<tool_call>function_name
```json
function_arguments_in_json_format
```</tool_call>At the end of function call returns, you should print </tool_calls>"""


def _tell_hunyuan(tools: Sequence[Tool], system: str) -> str:
    return (f"{system}\n\n" if system else "") + _HUNYUAN.format(tools=_lines(tools))


def _write_hunyuan(calls: Sequence[ToolCall]) -> str:
    return f"<tool_calls>\n{_write_hermes(calls)}\n</tool_calls>"


def _respond_hunyuan(reply: str, results: Sequence[str]) -> tuple[str, str]:
    lines = "\n".join(f"<tool_response>{result}</tool_response>" for result in results)
    return reply, f"<tool_responses>{lines}</tool_responses>"


def _read_hunyuan(scan: Scan) -> list[ToolCall]:
    """Calls as objects, or as a name and a block of code."""
    if scan.skips("<tool_calls>") or scan.skips("</tool_calls>"):
        return []
    scan.take("<tool_call>")
    scan.space()
    if scan.sees("{"):
        scan.is_sure = True
        call = _called(scan.value())
    else:
        name = scan.until("\n").strip()
        scan.space()
        scan.is_sure = scan.at < len(scan.text)
        scan.take("```json")
        scan.space()
        call = _called({"name": name, "arguments": scan.value()})
        scan.space()
        scan.take("```")
    scan.space()
    scan.take("</tool_call>")
    return [call]


HUNYUAN_HERMES = ToolFormat(
    "hunyuan_hermes",
    _tell_hunyuan,
    _write_hunyuan,
    _respond_hunyuan,
    CallSyntax(("<tool_calls>", "</tool_calls>", "<tool_call>"), _read_hunyuan),
    glue="",
    is_turn=True,
)

# ------------------------------------------------------------------------------------------------- Youtu-LLM

_YOUTU = """<|begin_of_tool_description|>Tool calling capabilities.
You may call one or more functions to assist with the user query. You have the following functions available:
{tools}
For tool call returns, you MUST use the following format:
<tool_call>{{"name": "function-name", "arguments": {{"param1": "value1", "param2": "value2"}}}}</tool_call>
<|end_of_tool_description|>"""


def _tell_youtu(tools: Sequence[Tool], system: str) -> str:
    blocks = "\n".join(f"```json\n{dumps(tool)}\n```" for tool in tools)
    return (f"{system}\n\n" if system else "") + _YOUTU.format(tools=blocks)


def _write_youtu(calls: Sequence[ToolCall]) -> str:
    return "".join(f"<tool_call>{_object(call)}</tool_call>" for call in calls)


def _respond_youtu(reply: str, results: Sequence[str]) -> tuple[str, str]:
    return reply, "\n".join(f"<tool_response>{result}</tool_response>" for result in results)


YOUTU = ToolFormat(
    "youtu",
    _tell_youtu,
    _write_youtu,
    _respond_youtu,
    CallSyntax(("<tool_call>",), _read_tagged),
    glue="",
    is_turn=True,
)

# ------------------------------------------------------------------------------------------------- GLM-4

_CHATGLM = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n"
)
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")


def _tell_glm4(tools: Sequence[Tool], system: str, *, introduction: str = "") -> str:
    del system  # the models know no other system text beside their tools
    described = [
        f"## {function(tool)['name']}\n\n{json.dumps(function(tool), ensure_ascii=False, indent=4)}\n"
        "在调用上述函数时，请使用 Json 格式表示调用的参数。"
        for tool in tools
    ]
    return introduction + "# 可用工具\n\n" + "\n".join(described)


def _write_glm4(calls: Sequence[ToolCall]) -> str:
    return "<|assistant|>".join(f"{call.name}\n{dumps(call.arguments)}" for call in calls) + "<|observation|>"


def _respond_glm4(reply: str, results: Sequence[str]) -> tuple[str, str]:
    return reply, "<|observation|>".join(f"\n{result}" for result in results) + "<|assistant|>"


def _read_glm4(scan: Scan) -> list[ToolCall]:
    """A name on a line of its own and an object below it."""
    if scan.skips("<|observation|>") or scan.skips("<|assistant|>"):
        return []
    scan.space()
    name = scan.matches(_NAME)
    scan.take("\n")
    scan.space()
    scan.is_sure = scan.sees("{")
    return [_called({"name": name, "arguments": scan.value()})]


GLM4 = ToolFormat(
    "glm4",
    _tell_glm4,
    _write_glm4,
    _respond_glm4,
    CallSyntax(("<|observation|>", "<|assistant|>"), _read_glm4, is_bare=True),
    glue="<|assistant|>",
    takes_lead=True,
    ends="<|observation|>",
    stop_words=("<|observation|>",),
)
CHATGLM4 = replace(GLM4, name="chatglm4", tell=partial(_tell_glm4, introduction=_CHATGLM))

# ------------------------------------------------------------------------------------------------- Llama 3.1, 4

_LLAMA = (
    "Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
)


def _tell_llama(tools: Sequence[Tool], user: str, *, space: str) -> str:
    described = [json.dumps(tool, ensure_ascii=False, indent=4) for tool in tools]
    return "\n\n".join([f"{_LLAMA}{space}Do not use variables.", *described, user])


def _write_llama(calls: Sequence[ToolCall]) -> str:
    return "\n".join(dumps({"name": call.name, "parameters": call.arguments}) for call in calls)


def _respond_llama(reply: str, results: Sequence[str], *, end: str, header: str) -> tuple[str, str]:
    said = [header.format("tool") + result + end for result in results]
    return reply + end, "".join(said) + header.format("assistant")


def _read_llama(scan: Scan) -> list[ToolCall]:
    """An object with a name and parameters at the beginning of a line."""
    for mark in ("<|python_tag|>", "<|eom_id|>", "<|eom|>"):
        if scan.skips(mark):
            return []
    scan.take("{")
    scan.space()
    scan.take('"name"')
    scan.is_sure = True
    scan.at = 0
    return [_called(scan.value())]


def _llama(name: str, end: str, header: str, space: str) -> ToolFormat:
    return ToolFormat(
        name,
        partial(_tell_llama, space=space),
        _write_llama,
        partial(_respond_llama, end=end, header=header),
        CallSyntax(("{", "<|python_tag|>", "<|eom_id|>", "<|eom|>"), _read_llama, is_line=True),
        tells_user=True,
    )


LLAMA3 = _llama("llama3", "<|eot_id|>", "<|start_header_id|>{}<|end_header_id|>\n\n", " ")
LLAMA4 = _llama("llama4", "<|eot|>", "<|header_start|>{}<|header_end|>\n\n", "")

# ------------------------------------------------------------------------------------------------- Mistral


def _tell_mistral(tools: Sequence[Tool], system: str) -> str:
    return f"{system}[AVAILABLE_TOOLS]{' '.join(map(dumps, tools))}[/AVAILABLE_TOOLS]"


def _write_mistral(calls: Sequence[ToolCall]) -> str:
    return "[TOOL_CALLS][\n" + "\n".join(map(_object, calls)) + "\n]"


def _respond_mistral(reply: str, results: Sequence[str]) -> tuple[str, str]:
    return reply, "\n".join(f"[TOOL_RESULTS]{dumps({'content': result})}[/TOOL_RESULTS]" for result in results)


def _read_mistral(scan: Scan) -> list[ToolCall]:
    """Objects in a list, with or without commas between them; or a name and its arguments."""
    scan.take("[TOOL_CALLS]")
    scan.is_sure = True
    scan.space()
    if not scan.skips("["):
        name = scan.until("[ARGS]")
        return [_called({"name": name.strip(), "arguments": scan.value()})]
    calls = []
    while True:
        scan.space()
        if scan.skips("]"):
            return calls
        if scan.skips(","):
            continue
        calls.append(_called(scan.value()))


MISTRAL = ToolFormat(
    "mistral",
    _tell_mistral,
    _write_mistral,
    _respond_mistral,
    CallSyntax(("[TOOL_CALLS]",), _read_mistral),
    glue="",
    is_turn=True,
)

# ------------------------------------------------------------------------------------------------- DeepSeek-V3.1

_DEEPSEEK = """IMPORTANT: ALWAYS adhere to this exact format for tool use:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>\
{additional_tool_calls}<｜tool▁calls▁end｜>

Where:
- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces"""


def _tell_deepseek(tools: Sequence[Tool], system: str) -> str:
    described = [
        f"### {about['name']}\nDescription: {about.get('description', '')}\n\n"
        f"Parameters: {dumps(about.get('parameters', {}))}\n"
        for about in map(function, tools)
    ]
    lines = ["## Tools\nYou have access to the following tools:\n", *described, _DEEPSEEK]
    return (f"{system}\n\n" if system else "") + "\n".join(lines)


def _write_deepseek(calls: Sequence[ToolCall]) -> str:
    said = [f"<｜tool▁call▁begin｜>{c.name}<｜tool▁sep｜>{dumps(c.arguments)}<｜tool▁call▁end｜>" for c in calls]
    return f"<｜tool▁calls▁begin｜>{''.join(said)}<｜tool▁calls▁end｜>"


def _respond_deepseek(reply: str, results: Sequence[str]) -> tuple[str, str]:
    said = [f"<｜tool▁output▁begin｜>{result}<｜tool▁output▁end｜>" for result in results]
    return reply + "<｜end▁of▁sentence｜>", "".join(said)


def _read_deepseek(scan: Scan) -> list[ToolCall]:
    if scan.skips("<｜tool▁calls▁begin｜>") or scan.skips("<｜tool▁calls▁end｜>"):
        return []
    scan.take("<｜tool▁call▁begin｜>")
    scan.is_sure = True
    name = scan.until("<｜tool▁sep｜>")
    scan.space()
    call = _called({"name": name.strip(), "arguments": scan.value()})
    scan.space()
    scan.take("<｜tool▁call▁end｜>")
    return [call]


DEEPSEEK_V3_1 = ToolFormat(
    "deepseek_v3_1",
    _tell_deepseek,
    _write_deepseek,
    _respond_deepseek,
    CallSyntax(("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"), _read_deepseek),
    glue="",
)


def _lines(tools: Sequence[Tool]) -> str:
    return "\n".join(map(dumps, tools))


def _object(call: ToolCall) -> str:
    return dumps({"name": call.name, "arguments": call.arguments})


def _called(value: Any) -> ToolCall:
    """The call that an object with a name and arguments, or parameters, makes."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise NotACall
    arguments = value.get("arguments", value.get("parameters"))
    if arguments is None and "arguments" not in value and "parameters" not in value:
        raise NotACall
    if isinstance(arguments, str):
        return ToolCall(value["name"], arguments)
    return ToolCall(
        value["name"], arguments if isinstance(arguments, dict) else {} if arguments is None else dumps(arguments)
    )
