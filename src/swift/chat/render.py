"""This file knows how a conversation becomes tokens: to learn from (Sample) or to continue (Prompt)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from swift.catalog.layouts import Layout
from swift.chat.controls import Controls, parted
from swift.chat.display import show
from swift.chat.encoding import Encoder
from swift.chat.messages import Conversation, Message
from swift.chat.skeletons import Cutter, Pieces, TextPiece
from swift.chat.template import ChatTemplate, unescape
from swift.chat.thinking import add_non_thinking_prefix, strip_history
from swift.chat.tool_turns import ToolTurns
from swift.chat.tools import ToolFormat
from swift.chat.turns import check_contents, check_turns
from swift.chat.weighing import Runs, is_on, mixed, runs_of, weights_of
from swift.chat.weights import is_learnt, parse_loss_scale
from swift.core.errors import DataError
from swift.core.labels import IGNORED
from swift.core.logs import get_logger
from swift.options.template import TemplateOptions

logger = get_logger()
T = TypeVar("T")


@dataclass(slots=True)
class Sample:
    """One row to learn from.

    input_ids: the token ids, T of them.
    labels: the same ids where the token is learnt, -100 elsewhere; labels[0] is always -100.
    weights: a weight per token, T of them, or None when every learnt token weighs 1.
    extra: columns of the row that travel to the loss: `channel`, and all with --remove_unused_columns false.
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
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(slots=True)
class Prompt:
    """One row to continue: its text as rendered and its token ids.

    extra: `response_prefix` is what the text has already begun of the reply; it belongs in front of what is generated.
        `stop_words` end this reply beside those of the renderer: where a tool would answer.
    """

    text: str
    input_ids: list[int]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Ready:
    """A conversation that only has to be tokenized.

    pieces: its text; learnt: whether each message is learnt; extra: what goes along.
    runs: the weights of every piece; None when all of a piece weighs what `learnt` says.
    """

    pieces: list[TextPiece]
    learnt: list[bool]
    extra: dict[str, Any]
    runs: list[Runs] | None = None


class Renderer:
    """Conversations into tokens: by a chat template, or as plain text with --use_chat_template false.

    tokenizer: a tokenizer of transformers; only read.
    layout: used when the tokenizer has no chat template and --template names none.

    stop_words: what ends a reply, the word that ends a turn first; stop_token_ids: those that are one token.
    closing_ids: what closes a text by itself: what the tokenizer puts behind every text, else the first of those.

    Raises ModelError when there is no template, UsageError when an option does not fit the one there is.
    """

    def __init__(self, tokenizer: Any, options: TemplateOptions, *, layout: Layout | None = None) -> None:
        self._options = options
        self._plan = parse_loss_scale(options.loss_scale)
        self._encoder = Encoder(tokenizer)
        self._decode: Callable[[list[int]], str] = tokenizer.decode
        self._template: ChatTemplate | None = None
        if options.use_chat_template:
            self._template = ChatTemplate(tokenizer, options, layout, self._encoder.added)
            _check_prefix(self._template, options)
        self._controls = Controls(tokenizer, self._template.written) if self._template else None
        self._tools = ToolTurns(self._template, options.agent_template, layout)
        self._told: set[str] = set()
        self._training, self._inference = _cutters(self._template)
        self._opening = _opening(self._template, options)
        eos = (tokenizer.eos_token,) if tokenizer.eos_token else ()
        words = self._template.stop_words if self._template else eos
        self.stop_words: tuple[str, ...] = words
        self.stop_token_ids: tuple[int, ...] = self._encoder.single_ids(words)
        self.closing_ids = list(self._encoder.suffix_ids or self.stop_token_ids[:1])
        if words and not self._encoder.single_ids(words[:1]):
            logger.warning("%r, which ends a reply, is not one token of this tokenizer: it is spelt out.", words[0])

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in effect, the default system text in it; None with --use_chat_template false."""
        return self._template.text if self._template else None

    @property
    def tool_format(self) -> ToolFormat | None:
        """How calls of tools are read from replies; None when the chat template writes them in a way of its own."""
        return self._tools.reading()

    def saved_chat_template(self) -> str | None:
        """What to save with a checkpoint as its chat template, so that others render as was trained."""
        return self.chat_template

    def identity(self) -> dict[str, Any]:
        """All that decides which tokens a conversation becomes, as plain values; and the tokenizer's name."""
        own = {"template", "system", "max_length", "truncation_strategy", "padding_side", "padding_free",
               "sequence_parallel_size", "response_prefix"}  # fmt: skip
        layout = self._template.layout if self._template else None
        configs = [Path(name).expanduser() for name in self._options.loss_scale.split("+") if name.endswith(".json")]
        return {
            "template": layout.name if layout else None,
            "chat_template": self.chat_template,
            "budget": self._template.budget if self._template else {},
            "today": f"{date.today()}" if "strftime_now" in (self.chat_template or "") else None,
            "tokenizer": self._encoder.fingerprint(),
            "tokenizer_name": self._encoder.name,
            "options": self._options.model_dump(mode="json", exclude=own),
            "configs": [file.read_text(encoding="utf-8") for file in configs],
        }

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
        starts = iter(
            self._encoder.starts(
                [text for row in ready if isinstance(row, _Ready) for text in mixed(row.pieces, row.runs)]
            )
        )
        return [
            row
            if isinstance(row, DataError)
            else _attempt(self._assembled, row, ids, weights_of(row.runs, ids, starts))
            for row, ids in zip(ready, self._encoder.encode(rows), strict=True)
        ]

    def prompt(self, conversation: Conversation) -> Prompt:
        """A conversation to continue. Raises DataError when its last message is the assistant's."""
        prepared, joint = self._prepared(conversation)
        check_turns(prepared.messages, is_chat=self._template is not None, is_answered=False)
        if self._inference is None or self._template is None:
            pieces, prefix_ids = _plain_pieces(prepared.messages), self._encoder.prefix_ids
        else:
            edited = self._edited(prepared, last_round=True)
            pieces, prefix_ids = self._tools.cut(self._inference, edited, is_prompt=True).pieces, []
        opened, begun = self._opened([piece.text for piece in pieces])
        texts = parted([text for text in opened if text], joint)
        ids = [token for piece in self._encoder.encode([texts])[0] for token in piece]
        extra: dict[str, Any] = {"response_prefix": begun}
        if words := self._tools.stop_words(conversation):
            extra["stop_words"] = words
        return Prompt("".join(texts), [*prefix_ids, *ids], extra)

    def reply_text(self, conversation: Conversation) -> str:
        """What the assistant says last, its calls of tools in the words of their format. Raises DataError."""
        prepared, joint = self._prepared(conversation)
        messages = prepared.messages
        check_turns(messages, is_chat=self._template is not None, is_answered=True)
        last = max((i for i, m in enumerate(messages) if m.role not in ("assistant", "tool_call")), default=-1)
        if self._training is None:
            pieces = _plain_pieces(messages)
        else:
            pieces = self._tools.cut(self._training, prepared, is_prompt=False).pieces
        text = "".join(piece.text for piece in pieces if piece.turn is not None and piece.turn > last).rstrip()
        for word in self.stop_words:
            text = text.removesuffix(word)
        return (text if joint is None else text.replace(joint, "")).strip()

    def _opened(self, texts: list[str]) -> tuple[list[str], str]:
        """The texts of a prompt with the right beginning of a reply at their end, and that beginning.

        What stands at the end beyond the prompt of training is a piece of its own, as it is in samples.
        """
        *front, last = texts or [""]
        begun = self._template.opening if self._template else ""
        begun = begun if last.endswith(begun) else ""  # not every word of a tool is followed by it
        if self._opening is not None:
            return [*front, last.removesuffix(begun), self._opening], self._opening
        extra = self._template.extra_opening if self._template and begun else ""
        return [*front, last.removesuffix(extra), extra], begun

    def show(self, sample: Sample, *, colours: bool = False) -> str:
        """The sample as ids and as text, and of both what is learnt."""
        return show(sample.input_ids, sample.labels, self._decode, colours=colours)

    def _ready(self, conversation: Conversation) -> _Ready:
        """A conversation in pieces, with the end of its last reply, and what of it is learnt."""
        prepared, joint = self._prepared(conversation)
        check_turns(prepared.messages, is_chat=self._template is not None, is_answered=True)
        edited = self._edited(prepared, last_round=self._plan.base == "last_round")
        learnt = is_learnt(edited.messages, self._plan.base)
        if self._training is None:
            pieces = _plain_pieces(edited.messages)
        else:
            cut = self._tools.cut(self._training, edited, is_prompt=False)
            self._check_flaws(learnt, cut)
            pieces = self._closed(cut.pieces)
        if joint is not None:
            pieces = [piece._replace(text=text) for piece in pieces for text in parted([piece.text], joint)]
        return _Ready(
            pieces, learnt, edited.extra, runs_of(pieces, learnt, edited.messages, self._plan, self.stop_words)
        )

    def _prepared(self, conversation: Conversation) -> tuple[Conversation, str | None]:
        """The conversation as it is rendered, and the joint that parts control tokens which are said; see `Controls`.

        Plain text is taken as it is: what it holds of special tokens is meant.
        """
        check_contents(conversation)
        if self._template is None or self._controls is None:
            return self._tools.prepared(conversation), None
        guarded, joint = self._controls.guard(conversation)
        prepared = self._tools.prepared(guarded)
        if joint is not None:
            self._tell_once(logging.INFO, "Control tokens of the template are said in the data; they are read as text.")
        layout = self._template.layout
        return (layout.rewrite(prepared) if layout and layout.rewrite else prepared), joint

    def _edited(self, conversation: Conversation, *, last_round: bool) -> Conversation:
        """The conversation with thinking put in front of, or taken from, its replies.

        last_round: whether it is as the model is given it at inference, where only the last round thinks.
        """
        template, options = self._template, self._options
        if template is None:
            return conversation
        edited = _without_empty_system(conversation, template)
        prefix = template.traits.non_thinking_prefix
        adds = options.template_backend == "swift" and options.add_non_thinking_prefix
        if adds and prefix and not template.traits.writes_prefix:
            prefixed = template.layout.prefixed if template.layout else "all"
            edited = add_non_thinking_prefix(edited, prefix, last_round=last_round, prefixed=prefixed)
        return self._without_past_thinking(edited) if last_round else edited

    def _without_past_thinking(self, conversation: Conversation) -> Conversation:
        """What a thinking model is given of replies before the last user message: their answers."""
        template, options = self._template, self._options
        if template is None or options.template_backend == "jinja":
            return conversation
        if not (template.traits.is_thinking or options.enable_thinking):
            return conversation
        layout = template.layout
        return (
            strip_history(conversation, layout.history_thinking_prefix, layout.past_answer)
            if layout
            else (strip_history(conversation, ""))
        )

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
            if learnt[turn] == (self._plan.base == "all"):
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

    def _assembled(self, row: _Ready, ids: list[list[int]], weights: list[list[float]] | None) -> Sample:
        """The tokens of the pieces one after the other, labelled where they are learnt."""
        plain, base = self._template is None, self._plan.base
        input_ids = list(self._encoder.prefix_ids) if plain else []
        labels = input_ids.copy() if base == "all" else [IGNORED] * len(input_ids)
        scales = [float(base == "all")] * len(input_ids)
        for i, (piece, tokens) in enumerate(zip(row.pieces, ids, strict=True)):
            input_ids += tokens
            if weights is None:
                labels += tokens if is_on(piece, row.learnt, base) else [IGNORED] * len(tokens)
            else:
                labels += [token if weight else IGNORED for token, weight in zip(tokens, weights[i], strict=True)]
                scales += weights[i]
        if plain:
            ending = self._encoder.suffix_ids or list(self._encoder.single_ids(self.stop_words))
            input_ids += ending
            labels += ending if row.learnt[-1] else [IGNORED] * len(ending)
            scales += [float(row.learnt[-1])] * len(ending)
        if labels:
            labels[0] = IGNORED
        sample = Sample(input_ids, labels, None, row.extra)
        if not sample.learnt:
            raise DataError('Nothing of the conversation is learnt: every reply is empty, or has "loss": false.')
        if weights is not None and any(scale not in (0, 1) for scale in scales):
            sample.weights = [0.0, *scales[1:]]
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
    if wish is None and template is not None and template.layout is not None and template.layout.response_prefix:
        return template.layout.response_prefix
    if template is None or wish is None or template.traits.switch is not None:
        return None
    if not wish and template.opening:
        return ""
    if wish and not template.opening:
        logger.warning("--enable_thinking true: the chat template cannot turn thinking on; prompts stay as they are.")
    return None


def _check_prefix(template: ChatTemplate, options: TemplateOptions) -> None:
    """Say where --add_non_thinking_prefix false changes nothing."""
    if options.add_non_thinking_prefix:
        return
    if not template.traits.non_thinking_prefix:
        logger.info("--add_non_thinking_prefix false has no effect: this template has no such prefix.")
    elif template.traits.writes_prefix:
        logger.warning("--add_non_thinking_prefix false has no effect: the chat template writes the prefix itself.")


def _plain_pieces(messages: Sequence[Message]) -> list[TextPiece]:
    """All texts, without a template around them."""
    return [
        TextPiece(message.content, turn if message.role in ("assistant", "tool_call") else None)
        for turn, message in enumerate(messages)
        if message.content
    ]


def _without_empty_system(conversation: Conversation, template: ChatTemplate) -> Conversation:
    """An empty system message asks for none at all; it is shown only to templates that have a text of their own."""
    takes_empty = template.layout is not None or template.is_wrapped or template.traits.has_default_system
    if conversation.system != "" or takes_empty:
        return conversation
    return replace(conversation, messages=conversation.messages[1:])
