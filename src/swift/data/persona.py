"""This file knows how a model is given its name: the placeholders of the self-cognition rows are filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swift.chat.messages import Conversation, Message
from swift.core.errors import DataError
from swift.data.rows import RowError, shown

LANGUAGES = ("zh", "en")
"""The values of the column `tag`, in the order in which names are given on the command line."""


@dataclass(frozen=True)
class Persona:
    """Who the model shall say it is.

    names, authors: the Chinese and the English form, or one form for both; None when nothing was said.
    """

    names: tuple[str, ...] | None
    authors: tuple[str, ...] | None

    @classmethod
    def of(cls, model_name: Sequence[str] | None, model_author: Sequence[str] | None) -> Persona:
        """The persona of `--model_name` and `--model_author`. Raises DataError for more than two forms or none."""
        for flag, given in (("--model_name", model_name), ("--model_author", model_author)):
            if given is not None and len(given) not in (1, 2):
                raise DataError(f"{flag} takes the Chinese and the English form, or one for both (got {len(given)}).")
        return cls(tuple(model_name) if model_name else None, tuple(model_author) if model_author else None)

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        flags = {"--model_name": self.names, "--model_author": self.authors}
        return [flag for flag, value in flags.items() if value is not None]

    def introduce(self, conversation: Conversation, row: Mapping[str, Any]) -> Conversation:
        """The conversation with the placeholders filled in, in the language of the row's `tag`.

        Raises RowError when the row has no language, DataError when a placeholder stays because its option is missing.
        """
        tag = row.get("tag")
        if tag not in LANGUAGES:
            raise RowError("tag", f"is not one of {', '.join(LANGUAGES)}", shown(tag))
        language = LANGUAGES.index(tag)
        return replace(conversation, messages=tuple(self._fill(message, language) for message in conversation.messages))

    def _fill(self, message: Message, language: int) -> Message:
        content = message.content
        for placeholder, forms, flag in (
            ("{{NAME}}", self.names, "--model_name"),
            ("{{AUTHOR}}", self.authors, "--model_author"),
        ):
            if placeholder not in content:
                continue
            if forms is None:
                raise DataError(f"the self-cognition rows contain {placeholder}; say what it stands for with {flag}.")
            content = content.replace(placeholder, forms[min(language, len(forms) - 1)])
        return replace(message, content=content)
