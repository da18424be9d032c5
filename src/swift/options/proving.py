"""This file knows the words of `swift prove`: which proof, of which command, and how it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swift.core.errors import UsageError
from swift.core.registry import nearest
from swift.options.conditions import Words
from swift.options.wording import say

PROOFS: dict[str, Words] = {
    "batch": Words(
        "one training step, cut into batches, padded or laid end to end, spread over processes, is the same step",
        "同一个训练步无论如何切分 batch、填充或首尾相接、分到几个进程，结果都相同",
    ),
    "resume": Words(
        "a training that was interrupted and resumed is the training that was not",
        "中断后恢复的训练与未中断的训练相同",
    ),
    "merge": Words(
        "the model that was trained is the one that is saved, merged, and read by plain transformers",
        "训练所得的模型与保存、合并后由 transformers 直接读取的模型相同",
    ),
    "all": Words("all three, one after the other", "依次进行以上三项"),
}
"""The proofs by name, and what each shows."""
PROVEN = ("sft", "pt")
"""The commands that can be proven."""
FLAGS = ("--tiny", "--steps", "--json")


@dataclass(frozen=True)
class Proving:
    """One call of `swift prove`.

    proofs: which, in order. command: the command that is proven, with the words of its options.
    tiny: whether a small copy of the model is made. steps: optimizer steps of each training.
    json: the file the findings are also written to.
    """

    proofs: tuple[str, ...]
    command: str
    words: tuple[str, ...]
    tiny: bool = False
    steps: int = 4
    json: str | None = None


def read(argv: Sequence[str], language: str) -> Proving:
    """What is to be proven. Raises UsageError naming every mistake in the words that are prove's own."""
    problems: list[str] = []
    words = list(argv)
    name = words.pop(0) if words and not words[0].startswith("-") else ""
    if name not in PROOFS:
        near = nearest(name, PROOFS)
        guess = say("value_guess", language, name=near[0]) if near and name else ""
        problems.append(say("prove_what", language, word=name, names=", ".join(PROOFS), guess=guess))
    command = words.pop(0) if words and not words[0].startswith("-") else PROVEN[0]
    if command not in PROVEN:
        problems.append(say("prove_no_command", language, word=command, names=", ".join(PROVEN)))
    own: dict[str, str] = {}
    for flag in FLAGS:
        words = _taken(words, flag, own)
    tiny, steps = own.get("--tiny", "false").lower(), own.get("--steps", "4")
    if tiny not in ("true", "false"):
        problems.append(say("prove_flag", language, flag="tiny", found=tiny, expected="true, false"))
    if not steps.isdigit() or int(steps) < 2:
        problems.append(say("prove_flag", language, flag="steps", found=steps, expected=">= 2"))
    if own.get("--json") == "true":
        problems.append(say("prove_flag", language, flag="json", found="", expected="FILE"))
    if problems:
        raise UsageError(*problems)
    proofs = ("batch", "resume", "merge") if name == "all" else (name,)
    return Proving(proofs, command, tuple(words), tiny == "true", int(steps), own.get("--json"))


def help_page(language: str) -> str:
    """The page of `swift prove --help`."""
    proofs = "\n".join(f"  {name:<8}{words.say(language)}" for name, words in PROOFS.items())
    return say("prove_help", language, proofs=proofs, commands=", ".join(PROVEN))


def _taken(words: list[str], flag: str, into: dict[str, str]) -> list[str]:
    """The words without one flag, whose value goes into a table; "true" for the bare flag."""
    for index, word in enumerate(words):
        if word.startswith(f"{flag}="):
            into[flag] = word.partition("=")[2]
            return words[:index] + words[index + 1 :]
        if word == flag:
            bare = index + 1 == len(words) or words[index + 1].startswith("--")
            into[flag] = "true" if bare else words[index + 1]
            return words[:index] + words[index + (1 if bare else 2) :]
    return words
