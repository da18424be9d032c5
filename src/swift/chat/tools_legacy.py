"""This file knows the agent templates that are prompts of keywords: ReAct, that of Qwen-Agent, and ToolBench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from swift.chat.calls import REACT, CallSyntax, ToolCall, keyword_syntax
from swift.chat.tools import Tool, ToolFormat, dumps, function, observe

_REACT_EN = """Answer the following questions as best you can. You have access to the following tools:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!
"""
"""The ReAct example of Qwen (examples/react_prompt.md)."""

_REACT_ZH = """请尽力回答下列问题。你可以使用如下工具：

{tools}

请使用如下格式：

Question: 需要你回答的问题
Thought: 思考接下来应该做什么
Action: 要调用的工具，必须是[{names}]之一
Action Input: 传给工具的参数
Observation: 工具返回的结果
...（以上 Thought/Action/Action Input/Observation 可以重复零次或多次）
Thought: 我已经知道最终答案
Final Answer: 对最初问题的最终回答

现在开始！
"""

_REACT_GRPO = """Answer the following questions as best you can. You have access to the following tools:

{tools}

Use the following format:

Question: the input question you must answer
<think> what you think about what to do </think>
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this <think></think>/Action/Action Input/Observation can be repeated zero or more times)
<think> why you now know the final answer </think>
Final Answer: the final answer to the original input question

Begin!
"""

_TOOLBENCH = """You are AutoGPT, you can use many tools(functions) to do the following task.
First I will give you the task description, and your task start.
At each step, you need to give your thought to analyze the status now and what to do next, \
with a function call to actually excute your step. Your output should follow this format:
Thought:
Action
Action Input:

After the call, you will get the call result, and you are now in a new state.
Then you will analyze your status now, then decide what to do next...
After many (Thought-call) pairs, you finally perform the task, then you can give your finial answer.
Remember:\x20
1.the state change is irreversible, you can't go back to one of the former state, if you want to restart the task, \
say "I give up and restart".
2.All the thought is short, at most in 5 sentence.
3.You can do more then one trys, so if your plan is to continusly try some conditions, \
you can do one of the conditions per try.
Let's Begin!
Task description: You should use functions to help handle the real time user querys. Remember:
1.ALWAYS call "Finish" function at the end of the task. And the final answer should contain enough information \
to show to the user,If you can't handle the task, or you find that function calls always fail\
(the function is not valid now), use function Finish->give_up_and_restart.
2.Do not use origin tool names, use only subfunctions' names.
Specifically, you have access to the following APIs: """
"""The system text of ToolLLM's training data; the tools follow. Its spelling is part of it."""

_REACT_TOOL_EN = (
    "{name}: Call this tool to interact with the {name} API. What is the {name} API useful for? {description} "
    "Parameters: {parameters} Format the arguments as a JSON object."
)
_REACT_TOOL_ZH = "{name}: 调用此工具与 {name} API 交互。{name} API 有什么用？{description} 参数：{parameters} 请以 JSON 对象的格式给出参数。"

_QWEN_TOOL_EN = "### {name}\n\n{name}: {description} Parameters: {parameters} {note}"
_QWEN_TOOL_ZH = "### {name}\n\n{name}: {description} 输入参数：{parameters} {note}"
_NOTE_EN, _CODE_NOTE_EN = (
    "Format the arguments as a JSON object.",
    "Enclose the code within triple backticks (`) at the beginning and end of the code.",
)
_NOTE_ZH, _CODE_NOTE_ZH = "此工具的输入应为JSON对象。", "此工具的输入应为Markdown代码块。"

_QWEN_EN = """# Tools

## You have access to the following tools:

{tools}

## When you need to call a tool, please insert the following command in your reply, which can be called zero or \
multiple times according to your needs:

✿FUNCTION✿: The tool to use, should be one of [{names}]
✿ARGS✿: The input of the tool
✿RESULT✿: Tool results
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)"""

_QWEN_ZH = """# 工具

## 你拥有如下工具：

{tools}

## 你可以在回复中插入零次、一次或多次以下命令以调用工具：

✿FUNCTION✿: 工具名称，必须是[{names}]之一。
✿ARGS✿: 工具输入
✿RESULT✿: 工具结果
✿RETURN✿: 根据工具结果进行回复，需将图片用![](url)渲染出来"""

_QWEN_EN_PARALLEL = """# Tools

## You have access to the following tools:

{tools}

## Insert the following command in your reply when you need to call N tools in parallel:

✿FUNCTION✿: The name of tool 1, should be one of [{names}]
✿ARGS✿: The input of tool 1
✿FUNCTION✿: The name of tool 2
✿ARGS✿: The input of tool 2
...
✿FUNCTION✿: The name of tool N
✿ARGS✿: The input of tool N
✿RESULT✿: The result of tool 1
✿RESULT✿: The result of tool 2
...
✿RESULT✿: The result of tool N
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)"""

_QWEN_ZH_PARALLEL = """# 工具

## 你拥有如下工具：

{tools}

## 你可以在回复中插入以下命令以并行调用N个工具：

✿FUNCTION✿: 工具1的名称，必须是[{names}]之一
✿ARGS✿: 工具1的输入
✿FUNCTION✿: 工具2的名称
✿ARGS✿: 工具2的输入
...
✿FUNCTION✿: 工具N的名称
✿ARGS✿: 工具N的输入
✿RESULT✿: 工具1的结果
✿RESULT✿: 工具2的结果
...
✿RESULT✿: 工具N的结果
✿RETURN✿: 根据工具结果进行回复，需将图片用![](url)渲染出来"""
"""The prompts of Qwen-Agent (qwen_agent/llm/fncall_prompts/qwen_fncall_prompt.py)."""


def _tell_instead(tools: Sequence[Tool], system: str, *, prompt: str, line: str) -> str:
    """Tools told in place of the system text."""
    del system  # the prompt stands in its place
    return prompt.format(tools="\n\n".join(_described(tool, line) for tool in tools), names=_names(tools))


def _tell_behind(tools: Sequence[Tool], system: str, *, prompt: str, line: str, notes: tuple[str, str]) -> str:
    """Tools told behind the system text."""
    described = [_described(tool, line, notes[function(tool)["name"] == "code_interpreter"]) for tool in tools]
    told = prompt.format(tools="\n\n".join(described), names=_names(tools))
    return f"{system}\n\n{told}" if system else told


def _tell_toolbench(tools: Sequence[Tool], system: str) -> str:
    del system  # the prompt stands in its place
    return _TOOLBENCH + dumps([function(tool) for tool in tools])


def _names(tools: Sequence[Tool]) -> str:
    return ",".join(function(tool)["name"] for tool in tools)


def _described(tool: Tool, line: str, note: str = "") -> str:
    about = function(tool)
    written = line.format(
        name=about["name"],
        description=about.get("description", ""),
        parameters=dumps(about.get("parameters", {})),
        note=note,
    )
    return written.rstrip()


def _write(calls: Sequence[ToolCall], *, keywords: tuple[str, str, str]) -> str:
    """Calls as keywords in front of their names and arguments; the result is asked for at the end."""
    call, arguments, result = keywords
    return "".join(f"{call} {made.name}\n{arguments} {dumps(made.arguments)}\n" for made in calls) + result


def _by_keywords(
    name: str,
    tell: Callable[[Sequence[Tool], str], str],
    keywords: tuple[str, str, str] = ("Action:", "Action Input:", "Observation:"),
    syntax: CallSyntax = REACT,
) -> ToolFormat:
    return ToolFormat(
        name,
        tell,
        write=partial(_write, keywords=keywords),
        respond=partial(observe, keyword=keywords[2]),
        syntax=syntax,
        stop_words=(keywords[2],),
    )


_FLOWERS = ("✿FUNCTION✿:", "✿ARGS✿:", "✿RESULT✿:")
_FLOWER_SYNTAX = keyword_syntax(*_FLOWERS)
_EN = {"line": _QWEN_TOOL_EN, "notes": (_NOTE_EN, _CODE_NOTE_EN)}
_ZH = {"line": _QWEN_TOOL_ZH, "notes": (_NOTE_ZH, _CODE_NOTE_ZH)}

REACT_EN = _by_keywords("react_en", partial(_tell_instead, prompt=_REACT_EN, line=_REACT_TOOL_EN))
REACT_ZH = _by_keywords("react_zh", partial(_tell_instead, prompt=_REACT_ZH, line=_REACT_TOOL_ZH))
REACT_GRPO = _by_keywords("react_grpo", partial(_tell_instead, prompt=_REACT_GRPO, line=_REACT_TOOL_EN))
TOOLBENCH = _by_keywords("toolbench", _tell_toolbench)
QWEN_EN, QWEN_ZH, QWEN_EN_PARALLEL, QWEN_ZH_PARALLEL = (
    _by_keywords(name, partial(_tell_behind, prompt=prompt, **language), _FLOWERS, _FLOWER_SYNTAX)
    for name, prompt, language in (
        ("qwen_en", _QWEN_EN, _EN),
        ("qwen_zh", _QWEN_ZH, _ZH),
        ("qwen_en_parallel", _QWEN_EN_PARALLEL, _EN),
        ("qwen_zh_parallel", _QWEN_ZH_PARALLEL, _ZH),
    )
)
