"""This file knows how several words of the assistant, with results of tools between them, share one turn of a template.

Results that are no turn of their own stand inside the assistant's: the template is given one reply in which they are
sewn together at seams, each a character of Unicode's private use, and what it makes of that reply is parted there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from swift.chat.messages import Message
from swift.chat.skeletons import Pieces, TextPiece
from swift.chat.spans import sentinels
from swift.chat.thinking import EMPTY_THINKING
from swift.chat.tools import ToolFormat, answers

Part = int | None | Literal["dropped"]
"""What a part of a turn is: the message the assistant says, a result (None), or text of the template to be left out."""


@dataclass(slots=True)
class _Turn:
    role: Literal["system", "user", "assistant"]
    texts: list[str]
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sewn:
    """Messages that a chat template without tools can render.

    messages: system, user and assistant alone.
    parts: what each of them is made of.
    seam: what stands between parts.
    """

    messages: tuple[Message, ...]
    parts: tuple[tuple[Part, ...], ...]
    seam: str


def sewn(messages: Sequence[Message], form: ToolFormat, lead: str) -> Sewn:
    """The turns of messages that `with_tools` has made.

    lead: what the template writes in front of every reply, as the assistant's.
    A turn that ends in a result, or in the format's own ending, ends there: nothing of the template follows.
    """
    turns: list[_Turn] = []
    for number, message in enumerate(messages):
        if message.role == "tool_response":
            if answers(form, turns[-1].texts[-1]).is_turn:
                turns.append(_Turn("user", [message.content], [number]))
            else:
                _add(turns[-1], message.content, None)
        elif message.role == "tool_call":
            if turns[-1].role != "assistant":
                turns.append(_Turn("assistant", [""], ["dropped"]))
            _add(turns[-1], message.content, number)
        elif message.role == "assistant" and turns[-1].parts[-1] is None:
            _add(turns[-1], lead + message.content.removeprefix(lead), number)
        else:
            turns.append(_Turn(message.role, [message.content], [number]))
    last = turns[-1]
    if last.parts[-1] is None or (form.ends and last.role == "assistant" and last.texts[-1].endswith(form.ends)):
        _add(last, "", "dropped")
    seam = sentinels(messages, 1)[0]
    return Sewn(
        tuple(Message(turn.role, seam.join(turn.texts)) for turn in turns),
        tuple(tuple(turn.parts) for turn in turns),
        seam,
    )


def parted(cut: Pieces, made: Sewn) -> Pieces:
    """The pieces of the turns with every part on its own, numbered as the messages were before they were sewn."""
    pieces: list[TextPiece] = []
    at = dict.fromkeys(range(len(made.parts)), 0)
    for piece in _ended(cut.pieces, made):
        if piece.turn is None:
            pieces.append(piece._replace(text=piece.text.replace(made.seam, "")))
            continue
        for i, text in enumerate(piece.text.split(made.seam)):
            at[piece.turn] += i > 0
            part = made.parts[piece.turn][at[piece.turn]]
            if text and part != "dropped":
                pieces += _pieces(text, part, piece if i == 0 else None)
    said = {turn: [part for part in parts if isinstance(part, int)] for turn, parts in enumerate(made.parts)}
    flaws = {number: flaw for turn, flaw in cut.flaws.items() for number in said[turn]}
    return Pieces(pieces, flaws, frozenset(said[turn][0] for turn in cut.unopened))


def _ended(pieces: list[TextPiece], made: Sewn) -> list[TextPiece]:
    """The pieces up to the last seam, where that is where the text ends."""
    if made.parts[-1][1:][-1:] != ("dropped",):
        return pieces
    last = max(i for i, piece in enumerate(pieces) if made.seam in piece.text)
    return [*pieces[:last], pieces[last]._replace(text=pieces[last].text.rpartition(made.seam)[0])]


def _add(turn: _Turn, text: str, part: Part) -> None:
    turn.texts.append(text)
    turn.parts.append(part)


def _pieces(text: str, part: int | None, piece: TextPiece | None) -> list[TextPiece]:
    """A part of a turn as pieces; `piece` is the one that it begins, if any."""
    if piece is not None or part is None:
        return [TextPiece(text, part, piece is not None and piece.is_empty_thinking)]
    block = EMPTY_THINKING.match(text)
    if block is None:
        return [TextPiece(text, part)]
    rest = [TextPiece(text[block.end() :], part)] if block.end() < len(text) else []
    return [TextPiece(block[0], part, is_empty_thinking=True), *rest]
