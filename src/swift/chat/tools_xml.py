"""This file knows the agent templates whose calls name every argument between tags.

Their wording is that of the chat templates of the models they are named after. Such calls say nothing of types, and
nothing is escaped: an argument is what stands between its tags. What is a value in JSON is read as that value unless
the tool says that the argument is text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from swift.chat.calls import CallSyntax, NotACall, Scan, ToolCall
from swift.chat.tools import Tool, ToolFormat, dumps, function

# ------------------------------------------------------------------------------------------------- Qwen3-Coder, 3.5

_QWEN_CALL = """

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within \
<tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell \
the user about function calls
</IMPORTANT>"""
_QWEN_TOOLS = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
_QWEN_SYSTEM = "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."


def _tell_qwen3_coder(tools: Sequence[Tool], system: str) -> str:
    described = "".join(f"\n{_coder_function(function(tool))}" for tool in tools)
    return f"{system or _QWEN_SYSTEM}\n\n{_QWEN_TOOLS}{described}\n</tools>{_QWEN_CALL}"


def _coder_function(about: dict[str, Any]) -> str:
    lines = [f"<function>\n<name>{about['name']}</name>"]
    if "description" in about:
        lines.append(f"<description>{str(about['description']).strip()}</description>")
    parameters = about.get("parameters", {})
    lines.append("<parameters>")
    for name, field in parameters.get("properties", {}).items():
        lines.append(f"<parameter>\n<name>{name}</name>")
        if "type" in field:
            lines.append(f"<type>{field['type']}</type>")
        if "description" in field:
            lines.append(f"<description>{str(field['description']).strip()}</description>")
        lines += [*_further_keys(field, ("name", "type", "description")), "</parameter>"]
    lines += [*_further_keys(parameters, ("type", "properties")), "</parameters>"]
    lines += [*_further_keys(about, ("type", "name", "description", "parameters")), "</function>"]
    return "\n".join(lines)


def _further_keys(value: dict[str, Any], known: Sequence[str]) -> list[str]:
    return [f"<{key}>{_plain(inner)}</{key}>" for key, inner in value.items() if key not in known]


def _tell_qwen3_5(tools: Sequence[Tool], system: str) -> str:
    described = "".join(f"\n{dumps(tool)}" for tool in tools)
    told = f"{_QWEN_TOOLS}{described}\n</tools>{_QWEN_CALL}"
    return f"{told}\n\n{system.strip()}" if system.strip() else told


def _write_qwen(calls: Sequence[ToolCall]) -> str:
    return "\n".join(
        f"<tool_call>\n<function={call.name}>\n"
        + "".join(f"<parameter={key}>\n{_plain(value)}\n</parameter>\n" for key, value in _named(call))
        + "</function>\n</tool_call>"
        for call in calls
    )


def _respond_qwen3_coder(reply: str, results: Sequence[str]) -> tuple[str, str]:
    return reply, "".join(f"<tool_response>\n{result}\n</tool_response>\n" for result in results)


def _respond_qwen3_5(reply: str, results: Sequence[str]) -> tuple[str, str]:
    return reply, "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)


def _read_qwen(scan: Scan) -> list[ToolCall]:
    scan.take("<tool_call>")
    scan.space()
    scan.take("<function=")
    return [_read_function(scan, "</tool_call>", _unframed)]


def _read_function(scan: Scan, end: str, value: Callable[[str], str]) -> ToolCall:
    """The rest of `<function=name> <parameter=key>value</parameter> ... </function>`, and the mark behind it."""
    scan.is_sure = True
    name, arguments = scan.until(">").strip(), {}
    while True:
        scan.space()
        if scan.skips("<parameter="):
            key = scan.until(">").strip()
            arguments[key] = value(scan.until("</parameter>"))
            continue
        scan.take("</function>")
        scan.space()
        scan.take(end)
        return _checked(name, arguments)


def _unframed(value: str) -> str:
    """An argument without the newline before and after it."""
    return value.removeprefix("\n").removesuffix("\n")


_QWEN_SYNTAX = CallSyntax(("<tool_call>",), _read_qwen, is_untyped=True)
QWEN3_CODER = ToolFormat(
    "qwen3_coder", _tell_qwen3_coder, _write_qwen, _respond_qwen3_coder, _QWEN_SYNTAX, glue="\n\n", is_turn=True
)
QWEN3_5 = ToolFormat("qwen3_5", _tell_qwen3_5, _write_qwen, _respond_qwen3_5, _QWEN_SYNTAX, glue="\n\n", is_turn=True)

# ------------------------------------------------------------------------------------------------- GLM-4.5, GLM-4.7

_GLM = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{{function-name}}{n}<arg_key>{{arg-key-1}}</arg_key>{n}<arg_value>{{arg-value-1}}</arg_value>{n}\
<arg_key>{{arg-key-2}}</arg_key>{n}<arg_value>{{arg-value-2}}</arg_value>{n}...{n}</tool_call>"""


def _tell_glm(tools: Sequence[Tool], system: str, *, n: str, front: str) -> str:
    """The tools, with `n` between tags, a newline or nothing, and `front` in front."""
    told = front + _GLM.format(tools="\n".join(map(dumps, tools)), n=n)
    return f"{told}<|system|>{n}{system}" if system else told


def _write_glm(calls: Sequence[ToolCall], *, n: str) -> str:
    said = []
    for call in calls:
        pairs = [f"<arg_key>{key}</arg_key>{n}<arg_value>{_json(value)}</arg_value>{n}" for key, value in _named(call)]
        said.append(f"<tool_call>{call.name}{n}{''.join(pairs)}</tool_call>")
    return n.join(said) + "<|observation|>"


def _respond_glm(reply: str, results: Sequence[str], *, n: str) -> tuple[str, str]:
    said = "".join(f"{n}<tool_response>{n}{result}{n}</tool_response>" for result in results)
    return reply, f"{said}<|assistant|>"


def _glm(name: str, n: str, front: str) -> ToolFormat:
    return ToolFormat(
        name,
        partial(_tell_glm, n=n, front=front),
        partial(_write_glm, n=n),
        partial(_respond_glm, n=n),
        CallSyntax(("<tool_call>", "<|observation|>"), _read_glm, is_untyped=True),
        glue=n,
        ends="<|observation|>",
        stop_words=("<|observation|>",),
    )


def _read_glm(scan: Scan) -> list[ToolCall]:
    if scan.skips("<|observation|>"):
        return []
    scan.take("<tool_call>")
    name = scan.through(("<",)).strip()
    scan.is_sure = True
    arguments: dict[str, str] = {}
    while True:
        scan.space()
        if scan.skips("<arg_key>"):
            key = scan.until("</arg_key>")
            scan.space()
            scan.take("<arg_value>")
            arguments[key] = scan.until("</arg_value>")
            continue
        scan.take("</tool_call>")
        return [_checked(name, arguments)]


GLM4_5, GLM4_7 = _glm("glm4_5", "\n", ""), _glm("glm4_7", "", "\n")

# ------------------------------------------------------------------------------------------------- Seed-OSS

_SEED_SYSTEM = (
    "You are Doubao, a helpful AI assistant. You may call one or more functions to assist with the user query."
)
_SEED_CALL = """工具调用请遵循如下格式:
<seed:tool_call>
<function=example_function_name>
<parameter=example_parameter_1>value_1</parameter>
<parameter=example_parameter_2>This is the value for the second parameter
that can span
multiple lines</parameter>
</function>
</seed:tool_call>
"""
_SEED_TYPES = {"string": "str", "number": "int", "integer": "int", "boolean": "bool", "array": "list"}


def _tell_seed(tools: Sequence[Tool], system: str) -> str:
    stubs = "".join("\n\n" + _seed_stub(function(tool)) for tool in tools)
    return f"{system or _SEED_SYSTEM}{stubs}\n{_SEED_CALL}"


def _seed_stub(about: dict[str, Any]) -> str:
    """A tool as the head of a Python function, with a docstring."""
    parameters = about.get("parameters", {})
    fields = parameters.get("properties", {})
    required = parameters.get("required", [])
    head = ",".join(f"{name}: {_seed_type(field)}" for name, field in fields.items())
    lines = [f"Function:\ndef {about['name']}({head}):", '    """', f"    {about.get('description', '').strip()}", ""]
    if not fields:
        lines.append("")
    else:
        lines.append("    Args:")
        for name, field in fields.items():
            need = "[必填]" if name in required else "[选填]"
            lines.append(f"    - {name} ({_seed_type(field)}) {need}: {field.get('description', '')}")
    returned = about.get("returns", {}).get("properties", {})
    if returned:
        lines.append("    Returns:")
        lines += [
            f"    - {name} ({_seed_type(field)}): {field.get('description', '')}" for name, field in returned.items()
        ]
    return "\n".join([*lines, "", '    """'])


def _seed_type(field: dict[str, Any]) -> str:
    kind = field.get("type")
    return _SEED_TYPES.get(kind, "Any") if isinstance(kind, str) else "Any"


def _write_seed(calls: Sequence[ToolCall]) -> str:
    return "\n".join(
        f"<seed:tool_call>\n<function={call.name}>\n"
        + "".join(
            f"<parameter={key}>{value if isinstance(value, str) else str(value)}</parameter>\n"
            for key, value in _named(call)
        )
        + "</function>\n</seed:tool_call>"
        for call in calls
    )


def _respond_seed(reply: str, results: Sequence[str]) -> tuple[str, str]:
    said = "".join(f"<seed:bos>tool\n{result}<seed:eos>" for result in results)
    return f"{reply}<seed:eos>", f"{said}<seed:bos>assistant\n"


def _read_seed(scan: Scan) -> list[ToolCall]:
    scan.take("<seed:tool_call>")
    scan.space()
    scan.take("<function=")
    return [_read_function(scan, "</seed:tool_call>", str)]


SEED_OSS = ToolFormat(
    "seed_oss",
    _tell_seed,
    _write_seed,
    _respond_seed,
    CallSyntax(("<seed:tool_call>",), _read_seed, is_untyped=True),
    glue="\n\n",
)

# ------------------------------------------------------------------------------------------------- MiniMax-M2

_MINIMAX = """# Tools
You may call one or more tools to assist with the user query.
Here are the tools available in JSONSchema format:

<tools>
{tools}
</tools>

When making tool calls, use XML format to invoke tools and pass parameters:

<minimax:tool_call>
<invoke name="tool-name-1">
<parameter name="param-key-1">param-value-1</parameter>
<parameter name="param-key-2">param-value-2</parameter>
...
</invoke>
</minimax:tool_call>"""


def _tell_minimax(tools: Sequence[Tool], system: str) -> str:
    described = "\n".join(f"<tool>{dumps(function(tool))}</tool>" for tool in tools)
    return (f"{system}\n\n" if system else "") + _MINIMAX.format(tools=described)


def _write_minimax(calls: Sequence[ToolCall]) -> str:
    said = [
        f'<invoke name="{call.name}">\n'
        + "".join(f'<parameter name="{key}">{_json(value)}</parameter>\n' for key, value in _named(call))
        + "</invoke>\n"
        for call in calls
    ]
    return f"<minimax:tool_call>\n{''.join(said)}</minimax:tool_call>"


def _respond_minimax(reply: str, results: Sequence[str]) -> tuple[str, str]:
    said = "".join(f"\n<response>{result}</response>" for result in results)
    return f"{reply}[e~[", f"\n]~b]tool{said}[e~[\n]~b]ai\n"


def _read_minimax(scan: Scan) -> list[ToolCall]:
    if scan.skips("<minimax:tool_call>") or scan.skips("</minimax:tool_call>"):
        return []
    scan.take('<invoke name="')
    scan.is_sure = True
    name, arguments = scan.until('">'), {}
    while True:
        scan.space()
        if scan.skips('<parameter name="'):
            key = scan.until('">')
            arguments[key] = scan.until("</parameter>")
            continue
        scan.take("</invoke>")
        return [_checked(name, arguments)]


MINIMAX_M2 = ToolFormat(
    "minimax_m2",
    _tell_minimax,
    _write_minimax,
    _respond_minimax,
    CallSyntax(("<minimax:tool_call>", "</minimax:tool_call>", '<invoke name="'), _read_minimax, is_untyped=True),
)


def _named(call: ToolCall) -> list[tuple[str, Any]]:
    """The arguments of a call of a row, by name."""
    assert not isinstance(call.arguments, str), "rows bring arguments as objects"
    return list(call.arguments.items())


def _plain(value: Any) -> str:
    """A value as the template of Qwen3-Coder writes it: objects and lists as JSON, others as Python does."""
    return dumps(value) if isinstance(value, (dict, list)) else str(value)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


def _checked(name: str, arguments: dict[str, Any]) -> ToolCall:
    if not name:
        raise NotACall
    return ToolCall(name, arguments)
