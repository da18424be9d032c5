"""This file knows how a conversation becomes tokens: to learn from (Sample) or to continue (Prompt)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from swift.catalog.layouts import Layout
from swift.chat.display import show
from swift.chat.encoding import Encoder
from swift.chat.messages import Conversation, Message
from swift.chat.skeletons import Cutter, Pieces, TextPiece
from swift.chat.template import ChatTemplate, unescape
from swift.chat.thinking import add_non_thinking_prefix, strip_history
from swift.chat.turns import check_contents, check_turns
from swift.chat.weights import LossScale, is_learnt, parse_loss_scale
from swift.core.errors import DataError
from swift.core.logs import get_logger
from swift.options.template import TemplateOptions

logger = get_logger()
T = TypeVar("T")

TRAVELLING = ("channel",)
"""The columns of a row that travel to the loss."""


@dataclass(slots=True)
class Sample:
    """One row to learn from.

    input_ids: the token ids, T of them.
    labels: the same ids where the token is learnt, -100 elsewhere; labels[0] is always -100.
    weights: a weight per token, T of them, or None when every learnt token weighs 1.
    extra: columns of the row that travel to the loss (`channel`).
    """

    input_ids: list[int]
    labels: list[int]
    weights: list[float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def learnt(self) -> int:
        """How many tokens are learnt."""
        return len(self.labels) - self.labels.count(-100)


@dataclass(slots=True)
class Prompt:
    """One row to continue: its text as rendered and its token ids.

    extra: `response_prefix` is what the text has already begun of the reply; it belongs in front of what is generated.
    """

    text: str
    input_ids: list[int]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Ready:
    """A conversation that only has to be tokenized: its pieces, whether each message is learnt, what goes along."""

    pieces: list[TextPiece]
    learnt: list[bool]
    extra: dict[str, Any]


class Renderer:
    """Conversations into tokens: by a chat template, or as plain text with --use_chat_template false.

    tokenizer: a tokenizer of transformers; only read.
    layout: used when the tokenizer has no chat template and --template names none.

    stop_words: what ends a reply, the word that ends a turn first; stop_token_ids: those that are one token.

    Raises ModelError when there is no template, UsageError when an option does not fit the one there is.
    """

    def __init__(self, tokenizer: Any, options: TemplateOptions, *, layout: Layout | None = None) -> None:
        self._options = options
        self._scale = parse_loss_scale(options.loss_scale)
        self._encoder = Encoder(tokenizer)
        self._decode: Callable[[list[int]], str] = tokenizer.decode
        self._template: ChatTemplate | None = None
        if options.use_chat_template:
            self._template = ChatTemplate(tokenizer, options, layout, self._encoder.added)
        self._told: set[str] = set()
        self._training, self._inference = _cutters(self._template)
        self._opening = _opening(self._template, options)
        eos = (tokenizer.eos_token,) if tokenizer.eos_token else ()
        words = self._template.stop_words if self._template else eos
        self.stop_words: tuple[str, ...] = words
        self.stop_token_ids: tuple[int, ...] = self._encoder.single_ids(words)
        if words and not self._encoder.single_ids(words[:1]):
            logger.warning("%r, which ends a reply, is not one token of this tokenizer: it is spelt out.", words[0])

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in effect, the default system text in it; None with --use_chat_template false."""
        return self._template.text if self._template else None

    def saved_chat_template(self) -> str | None:
        """What to save with a checkpoint as its chat template, so that others render as was trained."""
        return self.chat_template

    def sample(self, conversation: Conversation) -> Sample:
        """A conversation to learn from. Raises DataError when it cannot be rendered or nothing in it is learnt."""
        made = self.samples([conversation])[0]
        if isinstance(made, DataError):
            raise made
        return made

    def samples(self, conversations: Sequence[Conversation]) -> list[Sample | DataError]:
        """Many conversations at once, which is much faster; a row that fails gives its error in its place."""
        ready = [_attempt(self._ready, conversation) for conversation in conversations]
        rows = [[] if isinstance(row, DataError) else [piece.text for piece in row.pieces] for row in ready]
        return [
            row if isinstance(row, DataError) else _attempt(self._assembled, row, ids)
            for row, ids in zip(ready, self._encoder.encode(rows), strict=True)
        ]

    def prompt(self, conversation: Conversation) -> Prompt:
        """A conversation to continue. Raises DataError when its last message is the assistant's."""
        check_contents(conversation)
        check_turns(conversation.messages, is_chat=self._template is not None, is_answered=False)
        if self._inference is None or self._template is None:
            pieces, prefix_ids = _plain_pieces(conversation.messages), self._encoder.prefix_ids
        else:
            edited = self._without_past_thinking(_without_empty_system(conversation, self._template))
            pieces, prefix_ids = self._inference.cut(edited.messages).pieces, []
        texts, begun = self._opened([piece.text for piece in pieces])
        ids = [token for piece in self._encoder.encode([[t for t in texts if t]])[0] for token in piece]
        return Prompt("".join(texts), [*prefix_ids, *ids], {"response_prefix": begun})

    def _opened(self, texts: list[str]) -> tuple[list[str], str]:
        """The texts of a prompt with the right beginning of a reply at their end, and that beginning.

        What stands at the end beyond the prompt of training is a piece of its own, as it is in samples.
        """
        *front, last = texts or [""]
        begun = self._template.opening if self._template else ""
        if self._opening is not None:
            return [*front, last.removesuffix(begun), self._opening], self._opening
        extra = self._template.extra_opening if self._template else ""
        return [*front, last.removesuffix(extra), extra], begun

    def show(self, sample: Sample, *, colours: bool = False) -> str:
        """The sample as ids and as text, and of both what is learnt."""
        return show(sample.input_ids, sample.labels, self._decode, colours=colours)

    def _ready(self, conversation: Conversation) -> _Ready:
        """A conversation in pieces, with the end of its last reply, and what of it is learnt."""
        check_contents(conversation)
        check_turns(conversation.messages, is_chat=self._template is not None, is_answered=True)
        edited = self._edited(conversation)
        learnt = is_learnt(edited.messages, self._scale.base)
        if self._training is None:
            pieces = _plain_pieces(edited.messages)
        else:
            cut = self._training.cut(edited.messages)
            self._check_flaws(learnt, cut)
            pieces = self._closed(cut.pieces)
        return _Ready(pieces, learnt, {key: edited.extra[key] for key in TRAVELLING if key in edited.extra})

    def _edited(self, conversation: Conversation) -> Conversation:
        """The conversation as it is learnt: with thinking put in front of, or taken from, its replies."""
        template, options = self._template, self._options
        if template is None:
            return conversation
        edited = _without_empty_system(conversation, template)
        last_round, prefix = self._scale.base == "last_round", template.traits.non_thinking_prefix
        adds = options.template_backend == "swift" and options.add_non_thinking_prefix
        if adds and prefix and not template.traits.writes_prefix:
            edited = add_non_thinking_prefix(edited, prefix, last_round=last_round)
        return self._without_past_thinking(edited) if last_round else edited

    def _without_past_thinking(self, conversation: Conversation) -> Conversation:
        """What a thinking model is given of replies before the last user message: their answers."""
        template, options = self._template, self._options
        if template is None or options.template_backend == "jinja":
            return conversation
        if not (template.traits.is_thinking or options.enable_thinking):
            return conversation
        return strip_history(conversation, template.layout.history_thinking_prefix if template.layout else "")

    def _closed(self, pieces: list[TextPiece]) -> list[TextPiece]:
        """The pieces with a word that ends generation after the last reply, where the template writes none."""
        last = max((i for i, piece in enumerate(pieces) if piece.turn is not None), default=None)
        ending = self._template.ending if self._template else None
        if last is None or not ending or pieces[last].text.rstrip().endswith(self.stop_words):
            return pieces
        self._tell_once(logging.INFO, f"The chat template does not end the last reply; {ending!r} is put after it.")
        end = TextPiece(ending, pieces[last].turn)
        return [*pieces[: last + 1], end, *pieces[last + 1 :]]

    def _check_flaws(self, learnt: Sequence[bool], cut: Pieces) -> None:
        """Refuse a conversation of which a reply shall be learnt, or shall alone not be, that was not found exactly."""
        for turn, flaw in cut.flaws.items():
            if learnt[turn] == (self._scale.base == "all"):
                continue
            ways = ["choose a named layout with --template"]
            if turn < len(learnt) - 1 and learnt[turn]:
                ways = ["learn the last round only with --loss_scale last_round", 'set its "loss" to false', *ways]
            raise DataError(
                f"Message {turn + 1} (assistant) cannot be learnt with this chat template: {flaw}. "
                f"Either {', or '.join(ways)}."
            )
        if any(learnt[turn] for turn in cut.unopened):
            self._tell_once(
                logging.WARNING,
                "Replies without thinking are learnt, although the chat template begins every reply with thinking. "
                "The model will not be asked as it is taught; a template without thinking would suit these data.",
            )

    def _tell_once(self, level: int, words: str) -> None:
        if words not in self._told:
            self._told.add(words)
            logger.log(level, words)

    def _assembled(self, row: _Ready, ids: list[list[int]]) -> Sample:
        """The tokens of the pieces one after the other, labelled where they are learnt."""
        plain = self._template is None
        input_ids = list(self._encoder.prefix_ids) if plain else []
        labels = input_ids.copy() if self._scale.base == "all" else [-100] * len(input_ids)
        for piece, tokens in zip(row.pieces, ids, strict=True):
            input_ids += tokens
            labels += tokens if _is_on(piece, row.learnt, self._scale) else [-100] * len(tokens)
        if plain:
            ending = self._encoder.suffix_ids or list(self._encoder.single_ids(self.stop_words))
            input_ids += ending
            labels += ending if row.learnt[-1] else [-100] * len(ending)
        if labels:
            labels[0] = -100
        sample = Sample(input_ids, labels, None, row.extra)
        if not sample.learnt:
            raise DataError('Nothing of the conversation is learnt: every reply is empty, or has "loss": false.')
        return sample


def _attempt(make: Callable[..., T], *given: Any) -> T | DataError:
    """What `make` gives, or the DataError it raises."""
    try:
        return make(*given)
    except DataError as error:
        return error


def _cutters(template: ChatTemplate | None) -> tuple[Cutter | None, Cutter | None]:
    """What cuts conversations to learn from, and what cuts those to continue."""
    if template is None:
        return None, None
    stops, looks_for = template.stop_words, template.looks_for
    return (
        Cutter(template.training, stops, looks_for, add_generation_prompt=False),
        Cutter(template.inference, stops, looks_for, add_generation_prompt=True),
    )


def _opening(template: ChatTemplate | None, options: TemplateOptions) -> str | None:
    """What a prompt begins of the reply in place of what the template begins; None leaves it to the template."""
    if options.response_prefix is not None:
        return unescape(options.response_prefix)
    wish = options.enable_thinking
    if template is None or wish is None or template.traits.switch is not None:
        return None
    if not wish and template.opening:
        return ""
    if wish and not template.opening:
        logger.warning("--enable_thinking true: the chat template cannot turn thinking on; prompts stay as they are.")
    return None


def _is_on(piece: TextPiece, learnt: Sequence[bool], scale: LossScale) -> bool:
    """Whether a piece is learnt."""
    if piece.is_empty_thinking and scale.ignore_empty_think:
        return False
    return scale.base == "all" if piece.turn is None else learnt[piece.turn]


def _plain_pieces(messages: Sequence[Message]) -> list[TextPiece]:
    """All texts, without a template around them."""
    return [
        TextPiece(message.content, turn if message.role == "assistant" else None)
        for turn, message in enumerate(messages)
        if message.content
    ]


def _without_empty_system(conversation: Conversation, template: ChatTemplate) -> Conversation:
    """An empty system message asks for none at all; it is shown only to templates that have a text of their own."""
    takes_empty = template.layout is not None or template.is_wrapped or template.traits.has_default_system
    if conversation.system != "" or takes_empty:
        return conversation
    return replace(conversation, messages=conversation.messages[1:])
