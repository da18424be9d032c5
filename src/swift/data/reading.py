"""This file knows how one row of a file becomes conversations, for all data sets of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swift.catalog.datasets import Prepare
from swift.chat.messages import Conversation
from swift.core.errors import DataError, UsageError
from swift.core.logs import get_logger
from swift.data.columns import check_met
from swift.data.formats import ConversationReader, Met
from swift.data.persona import Persona
from swift.data.preprocessors import renamed_row
from swift.data.rows import Row, RowError, shown
from swift.options.data import DataOptions


@dataclass(frozen=True)
class Recipe:
    """What the rows of a data set need before their columns are looked at.

    prepare: makes understood rows of a row; None leaves it as it is.
    has_persona: whether its texts hold the placeholders of a name and an author.
    """

    prepare: Prepare | None = None
    has_persona: bool = False


PLAIN = Recipe()
"""Nothing."""


class RowReader:
    """Renames the columns of rows, prepares them as their data set asks, and reads them as conversations.

    It pickles, so that several processes can share the rows of a run.

    met: what the rows had that were read so far.

    Raises UsageError when `--columns` maps anything but names to names, DataError when `--model_name` or
    `--model_author` has too many values.
    """

    def __init__(self, options: DataOptions) -> None:
        keep_others = not options.remove_unused_columns
        self.met = Met()
        self._renamed = _checked(options.columns or {})
        self._plain = ConversationReader(self._renamed, keep_others=keep_others, met=self.met)
        self._prepared = ConversationReader({}, keep_others=keep_others, met=Met(unread_keys=self.met.unread_keys))
        self._persona = Persona.of(options.model_name, options.model_author)

    def read(self, row: Row, recipe: Recipe) -> list[Conversation]:
        """The conversations of a row: one, unless its data set prepares rows and makes none or several of it.

        Raises RowError when this row is at fault.
        """
        try:
            return self._read(row, recipe)
        except RecursionError:
            raise RowError("", "is nested too deeply") from None

    def finish(self) -> None:
        """Say what was not read; raise DataError when an option about rows had no effect on any."""
        check_met(self._renamed, self.met.columns)
        if self.met.unread_keys:
            keys = ", ".join(sorted(self.met.unread_keys))
            get_logger().warning("these keys of messages mean nothing here and were not read: %s", keys)
        if self._persona.given and not self.met.introduced:
            given = " and ".join(self._persona.given)
            raise DataError(
                f"{given}: no effect without the self-cognition rows. Add the data set swift/self-cognition, or a file "
                "or folder called self-cognition, to --dataset, or drop the option."
            )

    def _read(self, row: Row, recipe: Recipe) -> list[Conversation]:
        if recipe.prepare is None:
            conversation = self._plain.read(row)
            return [self._introduce(conversation, row.values) if recipe.has_persona else conversation]
        values = row.values
        self.met.columns.update(values)
        if self._renamed:
            values = renamed_row(values, self._renamed)
        conversations = []
        for made in _prepared(recipe.prepare, values):
            conversation = self._prepared.read(Row(made, row.file, row.line))
            conversations.append(self._introduce(conversation, made) if recipe.has_persona else conversation)
        return conversations

    def _introduce(self, conversation: Conversation, values: Mapping[str, Any]) -> Conversation:
        self.met.introduced = True
        return self._persona.introduce(conversation, values)


def _prepared(prepare: Prepare, values: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a preparation makes of one. Raises RowError for whatever goes wrong in it."""
    try:
        made = prepare(values)
    except DataError:
        raise
    except Exception as error:  # somebody else's function, called for one row: its failure costs that row
        raise RowError("", "its data set cannot prepare it", f"{type(error).__name__}: {error}") from error
    rows = made if isinstance(made, (list, tuple)) else [] if made is None else [made]
    for row in rows:
        if not isinstance(row, dict):
            raise RowError("", "its data set makes no row of it", shown(row))
    return list(rows)


def _checked(renamed: Mapping[Any, Any]) -> dict[str, str]:
    """`--columns`. Raises UsageError when it maps anything but names to names."""
    wrong = {
        old: new for old, new in renamed.items() if not isinstance(old, str) or not isinstance(new, str) or not new
    }
    if wrong:
        raise UsageError(f"--columns maps names of columns to names of columns, and these are none: {wrong}.")
    return dict(renamed)
