"""This file knows how a rendered conversation is held against what it should be: prompts, replies, stops, template.

Every function looks at one conversation and its sample and says in words what is wrong with it; nothing is [].
Past thinking may be kept in training and left out when a model is asked; such differences are told apart from others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from swift.chat.display import runs
from swift.chat.messages import Conversation, Message
from swift.chat.render import Renderer, Sample
from swift.core.errors import DataError
from swift.proofs.report import Stretch, shortened

BASES_OF_WHOLE_REPLIES = ("default", "last_round")
"""Values of --loss_scale with which replies are learnt whole, and nothing else."""

_THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_CLOSING = re.compile(r"\s*</think>\s*")
_NEUTRAL = "something"


class Words:
    """A tokenizer as far as proofs ask it: text to ids and back, and its special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        special = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        self.special_ids = frozenset(tokenizer.convert_tokens_to_ids(sorted(special)))
        self.special = re.compile(
            "|".join(re.escape(text) for text in sorted(special, key=len, reverse=True)) or "(?!)"
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens written out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def again(self, text: str) -> str:
        """A text as it comes back from the tokenizer, which may normalise it."""
        return self.decode(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def templated(self, messages: Sequence[Message], template: str) -> str:
        """What `apply_chat_template` makes of messages."""
        given = [message.as_dict() for message in messages]
        return self._tokenizer.apply_chat_template(given, chat_template=template, tokenize=False)


@dataclass(frozen=True)
class PromptsHeld:
    """How the prompts of one conversation compare with its sample.

    compared: how many there are, one for each reply.
    rethought: those that differ in past thinking alone.
    wrong: what is wrong with the others.
    """

    compared: int
    rethought: int
    wrong: list[str]


def stretches(sample: Sample, words: Words) -> tuple[Stretch, ...]:
    """The text of a sample cut where learning begins and ends."""
    return tuple(Stretch(words.decode(sample.input_ids[a:b]), on) for a, b, on in runs(sample.labels))


def hold_prompts(
    conversation: Conversation, sample: Sample, renderer: Renderer, words: Words, loss_scale: str
) -> PromptsHeld:
    """Whether what the model is asked with, at every reply that is learnt, is exactly what stands before it."""
    compared, rethought, wrong = 0, 0, []
    text = words.decode(sample.input_ids)
    for turn, message in enumerate(conversation.messages):
        after_user = turn and conversation.messages[turn - 1].role == "user"
        if message.role != "assistant" or not after_user or not _is_learnt(conversation, turn, loss_scale):
            continue
        compared += 1
        try:
            prompt = renderer.prompt(replace(conversation, messages=conversation.messages[:turn], rejected=None))
        except DataError as error:
            wrong.append(f"message {turn + 1} cannot be asked for: {error}")
            continue
        if sample.input_ids[: len(prompt.input_ids)] == prompt.input_ids:
            continue
        asked = words.decode(prompt.input_ids)
        if asked != text[: len(asked)] and _unthought(text).startswith(_unthought(asked)):
            rethought += 1
            continue
        at = next((i for i, (a, b) in enumerate(zip(asked, text, strict=False)) if a != b), min(len(asked), len(text)))
        seen, taught = asked[max(at - 20, 0) : at + 30], text[max(at - 20, 0) : at + 30]
        wrong.append(f"message {turn + 1} is asked for with {seen!r} and was taught after {taught!r}")
    return PromptsHeld(compared, rethought, wrong)


def wrongly_said(
    conversation: Conversation, sample: Sample, words: Words, stops: Sequence[str], loss_scale: str
) -> list[str]:
    """What is learnt and is no reply, or only a part of one."""
    replies = iter([_core(words.again(m.content), stops) for m in conversation.messages if m.role == "assistant"])
    if loss_scale == "all":
        # Nothing stands before the first token that it could be learnt from.
        unlearnt = [
            words.decode(sample.input_ids[start:end]) for start, end, on in runs(sample.labels) if not on and end > 1
        ]
        return [f"not learnt: {shortened(text)!r}" for text in unlearnt]
    learnt = [words.decode(sample.input_ids[start:end]) for start, end, on in runs(sample.labels) if on]
    is_whole = loss_scale in BASES_OF_WHOLE_REPLIES
    wrong = []
    for text in learnt:
        core = _core(text, stops)
        if not any(core == reply if is_whole else core in reply for reply in replies):
            wrong.append(f"learnt, and no reply: {shortened(text)!r}")
    return wrong


def unstopped(sample: Sample, words: Words, stops: Sequence[str], loss_scale: str) -> list[str]:
    """The learnt replies behind which no word that ends a reply is learnt."""
    texts = [words.decode(sample.input_ids[start:end]) for start, end, on in runs(sample.labels) if on]
    if loss_scale not in BASES_OF_WHOLE_REPLIES:
        texts = ["".join(texts)]
    ends = tuple(stops)
    return [f"…{shortened(text[-60:])!r}" for text in texts if not (ends and text.rstrip().endswith(ends))]


def untemplated(conversation: Conversation, sample: Sample, words: Words, template: str | None) -> list[str]:
    """Where the sample's text is not what the template makes of the messages, thinking aside."""
    found = _unthought(words.decode(sample.input_ids))
    if template is None:
        said = words.again("".join(message.content for message in conversation.messages))
        return [] if said in found else [f"the text is not the messages joined: {shortened(found)!r}"]
    wanted = ""
    for messages in _with_and_without_empty_system(conversation.messages):
        try:
            wanted = _unthought(words.again(words.templated(messages, template)))
        except (TemplateError, TypeError) as error:
            return [f"apply_chat_template refuses it: {error}"]
        # A word that ends the last reply is added where the template writes none.
        if found == wanted or (
            found.startswith(wanted.rstrip()) and words.special.fullmatch(found[len(wanted.rstrip()) :].strip())
        ):
            return []
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    place = slice(max(at - 20, 0), at + 30)
    return [f"the sample reads {found[place]!r}, apply_chat_template writes {wanted[place]!r}"]


def typed_control(
    conversation: Conversation, sample: Sample, words: Words, render: Callable[[Conversation], Sample]
) -> list[str]:
    """Special tokens that somebody typed and that reached the model as special tokens.

    Their number in the sample is compared with that in the same conversation without them.
    """
    typed = typed_specials(conversation, words)
    if not typed:
        return []
    neutral = [
        replace(m, content=words.special.sub(_NEUTRAL, m.content)) if m.role != "assistant" else m
        for m in conversation.messages
    ]
    try:
        without = render(replace(conversation, messages=tuple(neutral)))
    except DataError as error:
        return [f"{typed[0]!r} cannot be compared: {error}"]
    count = _count(sample, words) - _count(without, words)
    return [f"{typed[0]!r} in the text of a row is a control token to the model ({count} of them)"] if count > 0 else []


def typed_specials(conversation: Conversation, words: Words) -> list[str]:
    """The special tokens that are written out in what users, systems and tools say."""
    return [found for m in conversation.messages if m.role != "assistant" for found in words.special.findall(m.content)]


def _is_learnt(conversation: Conversation, turn: int, loss_scale: str) -> bool:
    """Whether a reply is learnt, by its own wish or by `--loss_scale`."""
    messages = conversation.messages
    wish = messages[turn].loss
    if wish is not None:
        return wish
    return not loss_scale.startswith("last_round") or all(message.role != "user" for message in messages[turn:])


def _count(sample: Sample, words: Words) -> int:
    return sum(token in words.special_ids for token in sample.input_ids)


def _with_and_without_empty_system(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """An empty system message asks for none; which templates write a header for it is theirs to say."""
    yield messages
    if messages[0].role == "system" and not messages[0].content:
        yield messages[1:]


def _unthought(text: str) -> str:
    return _THINKING.sub("", text)


def _core(text: str, stops: Sequence[str]) -> str:
    """A reply without the word that ends it, the white space around it, and the opening of its thinking."""
    text = text.strip()
    while stop := next((stop for stop in stops if stop and text.endswith(stop)), None):
        text = text[: -len(stop)].rstrip()
    text = _CLOSING.sub("</think>", text.removeprefix("<think>").lstrip())
    return text.removeprefix("</think>").strip()
