"""This file knows `swift <command>`: look the command up, parse, run. It knows no torch.

Everything below a command is imported after its command line has been read and found right, so that help and
mistakes are answered at once.
"""

from __future__ import annotations

import errno
import importlib
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from swift.core import ending, environment, phases
from swift.core.errors import SwiftError, UsageError
from swift.core.registry import nearest
from swift.options.conditions import TRAINING, Words
from swift.options.wording import say


@dataclass(frozen=True)
class Entry:
    """A command: what it does, and the address of its `run(command)`; None while it is not available yet."""

    summary: Words
    run: str | None = None


COMMANDS: dict[str, Entry] = {
    "pt": Entry(Words("pre-train on plain text", "在纯文本上预训练"), "swift.commands.sft:run"),
    "sft": Entry(Words("fine-tune on conversations", "在对话数据上微调"), "swift.commands.sft:run"),
    "rlhf": Entry(Words("learn from preferences or rewards", "从偏好或奖励中学习")),
    "infer": Entry(
        Words("talk to a model, or answer a data set", "与模型对话，或对数据集推理"), "swift.commands.infer:run"
    ),
    "deploy": Entry(
        Words("serve a model with the OpenAI protocol", "以 OpenAI 协议提供服务"), "swift.commands.deploy:run"
    ),
    "rollout": Entry(Words("serve completions to a policy in training", "为训练中的策略提供采样服务")),
    "eval": Entry(Words("evaluate on benchmarks", "在评测集上评测")),
    "export": Entry(Words("merge, quantize, convert, push", "合并、量化、转换、推送"), "swift.commands.export:run"),
    "merge-lora": Entry(Words("merge an adapter into its model", "将 adapter 合并到模型"), "swift.commands.export:run"),
    "parity": Entry(
        Words("hold what is served against what was trained", "对比部署的模型与训练所得的模型"),
        "swift.commands.parity:run",
    ),
    "sample": Entry(Words("sample many replies and keep the best", "多次采样并保留最佳回复")),
    "app": Entry(Words("chat with a model in a web page", "在网页中与模型对话"), "swift.commands.app:run"),
    "web-ui": Entry(Words("train and infer from a web page", "在网页中训练与推理")),
}

TOOLS: dict[str, Words] = {
    "args": Words("swift args sft ... [--why FLAG]: the resolved command and where each value comes from",
                  "swift args sft ... [--why 参数]：解析后的命令与每个值的来源"),
    "schema": Words("swift schema sft: JSON schema of its configuration file", "swift schema sft：配置文件的 JSON schema"),
    "check": Words("swift check sft ...: what would happen and what is wrong, before any weight is loaded",
                   "swift check sft ...：在加载权重之前检查将发生什么、有何问题"),
    "prove": Words("swift prove batch|resume|merge|all ...: a few steps trained in ways that must come to the same numbers",
                   "swift prove batch|resume|merge|all ...：以必须得到相同数值的数种方式各训练几步"),
    "demo": Words("train a tiny model from nothing and see it learn", "从零训练一个小模型并观察其学习效果"),
}  # fmt: skip


HEARS_SIGTERM = (*TRAINING, "infer", "export", "merge-lora")
"""The commands that come to an end by themselves; servers have their own way to be told."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code is 0 when it worked, 2 for a wrong command line, 1 for a failed run."""
    words = list(sys.argv[1:] if argv is None else argv)
    words, language = _language(words)
    name = words[0].replace("_", "-") if words else "--help"
    try:
        return _dispatch(name, words[1:], language)
    except UsageError as error:
        count = len(error.problems)
        head = say("problem" if count == 1 else "problems", language, command=name, count=count)
        listed = "\n".join(f"  - {problem}" for problem in error.problems)
        see = say("see_help", language, command=f"{name} --help" if name in COMMANDS else "--help")
        print(f"{head}\n{listed}\n{see}", file=sys.stderr)
        return error.exit_code
    except SwiftError as error:
        print(f"swift {name}{_who()}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 1  # the reader of our output has gone: `swift sft --help | head`
    except KeyboardInterrupt:
        print(say("interrupted", language, command=name), file=sys.stderr)
        return 130
    except ending.Terminated:
        print(_last_words(name, language), file=sys.stderr)
        return ending.EXIT_CODE
    except Exception as error:  # noqa: BLE001 (the boundary of the process: no bare traceback reaches a user)
        print(_unexpected(f"{name}{_who()}", error, language), file=sys.stderr)
        return 1


def _dispatch(name: str, argv: list[str], language: str) -> int:
    if name in ("--help", "-h", "help"):
        print(_overview(language))
        return 0
    if name in ("--version", "-V", "version"):
        print(f"swiftlet {version('swiftlet')}")
        return 0
    if name == "args":
        return _args(argv, language)
    if name == "schema":
        return _schema(argv, language)
    if name == "demo":
        return _run("swift.commands.demo:run", argv)
    if name == "check":
        return _check(argv, language)
    if name == "prove":
        return _prove(argv, language)
    if name not in COMMANDS:
        raise _no_command(name, language)
    if any(word in ("--help", "-h") for word in argv):
        return _help(name, argv, language)
    return _command(name, argv, language)


def _command(name: str, argv: list[str], language: str) -> int:
    from swift import launch
    from swift.options.parse import parse

    command = parse(name, argv, language, runs=True)
    launch.export_knobs(command.model.model_kwargs or {})
    if name in TRAINING and command.proof.dry_run:
        launch.settle_threads()
        return _run("swift.commands.check:run", command)
    address = COMMANDS[name].run
    if address is None:
        raise UsageError(say("later_command", language, command=name))
    launch.settle_threads()
    launch.settle_engines()
    if command.general.use_ray and not environment.TORCHELASTIC_RUN_ID.is_set():
        return _run("swift.parallel.ray:run", name, argv, command.general)
    launch.relaunch(name, argv)
    launch.end_with_launcher()
    if name in TRAINING and (command.training.deepspeed or command.training.fsdp):
        launch.stand_alone()
    if name not in HEARS_SIGTERM:
        return _run(address, command)
    with ending.heard(lambda: _last_words(name, language)):
        return _run(address, command)


def _run(address: str, *arguments: object) -> int:
    """Import what is at `module:function` and call it; what it returns as a whole number is the exit code."""
    module, _, function = address.partition(":")
    result = vars(importlib.import_module(module))[function](*arguments)
    return result if isinstance(result, int) else 0


def _help(name: str, argv: list[str], language: str) -> int:
    from swift.options.help import page
    from swift.options.parse import COMMANDS as OPTIONS

    words = [word for word in argv if word not in ("--help", "-h")]
    summary = COMMANDS[name].summary.say(language)
    print(page(OPTIONS[name], summary, words, language, bold=_colours()))
    return 0


def _check(argv: list[str], language: str) -> int:
    """`swift check sft ...` is `swift sft ... --dry_run true`."""
    name = argv[0].replace("_", "-") if argv else ""
    if name in ("--help", "-h"):
        print(TOOLS["check"].say(language))
        return 0
    if name not in TRAINING:
        raise UsageError(say("no_check", language, word=name, names=", ".join(TRAINING)))
    words = [word for word in argv[1:] if word not in ("--help", "-h")]
    return (
        _help(name, words, language) if words != argv[1:] else _command(name, [*words, "--dry_run", "true"], language)
    )


def _prove(argv: list[str], language: str) -> int:
    from swift import launch
    from swift.options import proving
    from swift.options.parse import parse

    if not argv or argv[0] in ("--help", "-h", "help") or any(word in ("--help", "-h") for word in argv):
        print(proving.help_page(language))
        return 0
    asked = proving.read(argv, language)
    command = parse(asked.command, asked.words, language, runs=True)
    launch.export_knobs(command.model.model_kwargs or {})
    launch.settle_threads()
    return _run("swift.commands.prove:run", command, asked)


def _args(argv: list[str], language: str) -> int:
    from swift.options.explain import explain
    from swift.options.parse import parse

    name = argv[0].replace("_", "-") if argv else ""
    if name not in COMMANDS:
        raise _no_command(name or "args", language)
    rest, why = _option(argv[1:], "--why")
    print(explain(parse(name, rest, language), why, language))
    return 0


def _schema(argv: list[str], language: str) -> int:
    from swift.options.parse import COMMANDS as OPTIONS
    from swift.options.schema import schema

    name = argv[0].replace("_", "-") if argv else ""
    if name not in COMMANDS:
        raise _no_command(name or "schema", language)
    print(json.dumps(schema(OPTIONS[name]), indent=2, ensure_ascii=False))
    return 0


def _overview(language: str) -> str:
    from swift.options.help import overview

    summaries = {name: (entry.summary.say(language), entry.run is not None) for name, entry in COMMANDS.items()}
    tools = {name: words.say(language) for name, words in TOOLS.items()}
    return overview(summaries, tools, language, bold=_colours())


def _no_command(name: str, language: str) -> UsageError:
    near = nearest(name, [*COMMANDS, *TOOLS])
    guess = say("command_guess", language, name=near[0]) if near else ""
    return UsageError(say("no_command", language, word=name, guess=guess) + "\n" + ", ".join([*COMMANDS, *TOOLS]))


def _language(words: list[str]) -> tuple[list[str], str]:
    """The language of help and errors, from `--lang` or LANG; `app` and `web-ui` have a `--lang` of their own."""
    rest, asked = _option(words, "--lang")
    if words and words[0].replace("_", "-") in ("app", "web-ui"):
        rest = words
    text = asked or environment.LANG.get() or ""
    return rest, "zh" if text.lower().startswith("zh") else "en"


def _option(words: list[str], flag: str) -> tuple[list[str], str | None]:
    """Take `flag VALUE` or `flag=VALUE` out of `words`."""
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            return words[:i] + words[i + 2 :], words[i + 1]
        if word.startswith(f"{flag}="):
            return words[:i] + words[i + 1 :], word.partition("=")[2]
    return words, None


def _colours() -> bool:
    return sys.stdout.isatty() and not environment.NO_COLOR.is_set()


def _who() -> str:
    """Which of several processes speaks, and what it was doing; nothing when there is one."""
    return f" ({phases.where()})" if environment.world_size() > 1 else ""


def _last_words(name: str, language: str) -> str:
    """What a command says that was told to end."""
    who = f" (rank {environment.rank()})" if environment.world_size() > 1 else ""
    return say("terminated", language, command=f"{name}{who}", phase=phases.current().name)


def _unexpected(name: str, error: Exception, language: str) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"swift {name}: the disk is full ({error.filename or 'no file named'}). Free some space and start again."
    with tempfile.NamedTemporaryFile(
        "w", prefix=f"swift-{name.partition(' ')[0]}-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    if environment.LOG_LEVEL.get() == "DEBUG":
        traceback.print_exception(error)
    message = str(error).strip().splitlines()
    return say(
        "unexpected", language, command=name, kind=type(error).__name__, message=message[0] if message else "",
        file=Path(file.name),
    )  # fmt: skip
