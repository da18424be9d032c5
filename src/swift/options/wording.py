"""This file knows what the interface says, in English and in Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swift.core.registry import nearest
from swift.options.conditions import Words

SENTENCES: dict[str, Words] = {
    # -------------------------------------------------------------------------------------------------- the parser
    "unknown": Words("unknown option --{flag}{guess}", "未知参数 --{flag}{guess}"),
    "guess": Words("; did you mean --{name}?", "；您是否想用 --{name}？"),
    "renamed": Words("--{flag} is called --{name} now", "--{flag} 已更名为 --{name}"),
    "not_taken": Words("--{flag} would have no effect here: {why}", "--{flag} 在此不起作用：{why}"),
    "elsewhere": Words(
        "--{flag} is no option of swift {command}; it belongs to {others}",
        "swift {command} 没有参数 --{flag}；它属于 {others}",
    ),
    "positional": Words(
        "{word!r} belongs to no option. Options begin with --; quote a value that has blanks; "
        "a configuration file is given with --config FILE",
        "{word!r} 不属于任何参数。参数以 -- 开头；含空格的值请加引号；配置文件请用 --config FILE",
    ),
    "needs_value": Words("--{flag} needs a value: {expected}", "--{flag} 需要一个值：{expected}"),
    "one_value": Words(
        "--{flag} takes one value (got {count}: {found}). Quote a value that has blanks",
        "--{flag} 只接受一个值（得到 {count} 个：{found}）。含空格的值请加引号",
    ),
    "twice": Words(
        "--{flag} is given twice, as {first!r} and as {second!r}. Keep one",
        "--{flag} 给出了两次：{first!r} 和 {second!r}。请只保留一个",
    ),
    "bad_value": Words(
        "--{flag} {found}{where}: must be {expected}{guess}", "--{flag} {found}{where}：必须为{expected}{guess}"
    ),
    "bad_value_why": Words("--{flag} {found}{where}: {why}", "--{flag} {found}{where}：{why}"),
    "in_file": Words(" ({file}, line {line})", "（{file} 第 {line} 行）"),
    "question": Words(" Did you mean {name}?", "您是否想用 {name}？"),
    "value_guess": Words("; did you mean {name}?", "；您是否想用 {name}？"),
    "config_missing": Words("--config {file}: there is no such file", "--config {file}：文件不存在"),
    "config_broken": Words(
        "--config {file}, line {line}: not valid YAML or JSON: {why}",
        "--config {file} 第 {line} 行：不是合法的 YAML 或 JSON：{why}",
    ),
    "config_shape": Words(
        "--config {file}: must hold `option: value` pairs at its top level",
        "--config {file}：顶层必须是“参数: 值”",
    ),
    "config_nested": Words(
        "--config {file}, line {line}: a configuration file cannot name another one",
        "--config {file} 第 {line} 行：配置文件不能再引用配置文件",
    ),
    "config_twice": Words(
        "--config {file}, line {line}: {flag} stands there twice", "--config {file} 第 {line} 行：{flag} 出现了两次"
    ),
    "args_broken": Words("{file} cannot be read: {why}", "无法读取 {file}：{why}"),
    "ignored": Words(
        "ignored, because --ignore_args_error is true: {problem}", "已忽略（--ignore_args_error 为 true）：{problem}"
    ),
    # ------------------------------------------------------------------------------------------ what a value must be
    "e_bool": Words("true or false", " true 或 false"),
    "e_int": Words("a whole number", "整数"),
    "e_float": Words("a number", "数字"),
    "e_str": Words("text", "文本"),
    "e_json": Words("JSON text, or the path of a JSON file", " JSON 文本或 JSON 文件路径"),
    "e_json_or_name": Words("a name, JSON text, or the path of a JSON file", "名称、JSON 文本或 JSON 文件路径"),
    "e_list": Words("a list of {items}, separated by blanks", "以空格分隔的列表，每项为{items}"),
    "e_choices": Words("one of {names}", "以下之一：{names}"),
    "e_or": Words("{first} or {second}", "{first}或{second}"),
    "e_comma": Words(", ", "、"),
    "e_gt": Words("{kind} greater than {bound}", "大于 {bound} 的{kind}"),
    "e_ge": Words("{kind} of at least {bound}", "不小于 {bound} 的{kind}"),
    "e_le": Words("{kind} of at most {bound}", "不大于 {bound} 的{kind}"),
    "e_between": Words("{kind} from {low} to {high}", "{low} 到 {high} 之间的{kind}"),
    # ------------------------------------------------------------------------------------------------------ the cli
    "problem": Words("swift {command}: {count} problem", "swift {command}：{count} 个问题"),
    "problems": Words("swift {command}: {count} problems", "swift {command}：{count} 个问题"),
    "see_help": Words("See: swift {command}", "参见：swift {command}"),
    "no_command": Words("unknown command {word!r}{guess}", "未知命令 {word!r}{guess}"),
    "command_guess": Words("; did you mean swift {name}?", "；您是否想用 swift {name}？"),
    "later_command": Words(
        "not available yet: swift {command}. Its options are known: swift {command} --help, swift args {command} ...",
        "暂不可用：swift {command}。其参数已可查看：swift {command} --help，swift args {command} ...",
    ),
    "no_check": Words(
        "swift check {word}: what can be checked is {names}, as in: swift check sft --model ... --dataset ...",
        "swift check {word}：可检查的命令为 {names}，例如：swift check sft --model ... --dataset ...",
    ),
    "prove_what": Words(
        "swift prove {word}: what can be proven is {names}{guess} As in: swift prove batch --model ... --dataset ...",
        "swift prove {word}：可证明的内容为 {names}{guess} 例如：swift prove batch --model ... --dataset ...",
    ),
    "prove_no_command": Words(
        "swift prove ... {word}: the commands that can be proven are {names}",
        "swift prove ... {word}：可证明的命令为 {names}",
    ),
    "prove_flag": Words("--{flag} {found}: must be {expected}", "--{flag} {found}：必须为 {expected}"),
    "prove_help": Words(
        "swift prove <proof> [{commands}] <the options of that training>\n"
        "\n"
        "Trains a few steps in ways that must come to the same numbers, on your model and rows, and compares them.\n"
        "\n"
        "Proofs\n{proofs}\n"
        "\n"
        "Options of its own\n"
        "  --tiny true    on a small copy of the model: its architecture and tokenizer, random weights\n"
        "  --steps N      optimizer steps of each training (default: 4)\n"
        "  --json FILE    write the findings to a file as well\n"
        "\n"
        "The exit code is 0 when everything holds, 1 when something does not, 2 for a wrong command line.\n"
        "Everything is written to a temporary folder, which is removed; --output_dir is not touched.",
        "swift prove <证明> [{commands}] <该训练的参数>\n"
        "\n"
        "用您的模型和数据，以数种必须得到相同数值的方式各训练几步，并加以比较。\n"
        "\n"
        "证明\n{proofs}\n"
        "\n"
        "自身的参数\n"
        "  --tiny true    使用模型的小型副本：相同的结构与 tokenizer，随机权重\n"
        "  --steps N      每次训练的优化步数（默认：4）\n"
        "  --json 文件     同时将结果写入文件\n"
        "\n"
        "退出码：全部成立为 0，有不成立的为 1，命令行有误为 2。\n"
        "所有内容写入临时目录并在结束后删除；不会触碰 --output_dir。",
    ),
    "interrupted": Words("swift {command}: interrupted", "swift {command}：已中断"),
    "terminated": Words(
        "swift {command}: stopped by SIGTERM, while {phase}", "swift {command}：已被 SIGTERM 终止（{phase}）"
    ),
    "unexpected": Words(
        "swift {command}: unexpected {kind}: {message}\nThe traceback is in {file}",
        "swift {command}：意外错误 {kind}：{message}\n完整的错误栈见 {file}",
    ),
    # ------------------------------------------------------------------------------------------------------ the help
    "tagline": Words(
        "swift: from data to a trained, served and exported language model.",
        "swift：从数据到训练、部署与导出的语言模型。",
    ),
    "usage": Words("Usage: swift <command> [--option value ...]", "用法：swift <命令> [--参数 值 ...]"),
    "commands": Words("Commands", "命令"),
    "tools": Words("About the command line", "关于命令行本身"),
    "not_yet": Words("(not available yet)", "（暂不可用）"),
    "more_help": Words(
        "swift <command> --help          all options of a command\n"
        "swift <command> --help WORD     the options about WORD\n"
        "swift <command> --config FILE   options from a YAML or JSON file; the command line wins",
        "swift <命令> --help          该命令的全部参数\n"
        "swift <命令> --help 关键词    与关键词有关的参数\n"
        "swift <命令> --config 文件    从 YAML 或 JSON 文件读取参数；命令行优先",
    ),
    "marked": Words("* important", "* 重要参数"),
    "default": Words("default", "默认"),
    "derived": Words("default, derived", "默认（推导）"),
    "choices": Words("choices", "可选"),
    "applies": Words("applies when", "仅当"),
    "later": Words("not available yet", "暂不可用"),
    "nothing_found": Words(
        "No option of swift {command} is about {words!r}{guess}", "swift {command} 没有与 {words!r} 有关的参数{guess}"
    ),
    "unset": Words("not set", "未设置"),
}


def say(key: str, language: str, **values: Any) -> str:
    """The sentence of that key in `language` (zh, else English), with its values filled in."""
    return SENTENCES[key].say(language).format(**values)


def guessed(name: str, known: Mapping[str, object]) -> Words:
    """The question to put behind a sentence about an unknown name; nothing when no known name is close."""
    near = nearest(name, known)
    return Words(*(say("question", language, name=near[0]) if near else "" for language in ("en", "zh")))
