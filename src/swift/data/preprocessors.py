"""This file knows the preparations of rows that a data set of your own can build on.

A preprocessor is a function of a row. Give it to `DatasetMeta(preprocess_func=...)`; make one by configuring a class
here, or by a subclass with a `preprocess` of its own:

    class Reversed(ResponsePreprocessor):
        def preprocess(self, row):
            return super().preprocess({"query": row["question"], "response": row["answer"][::-1]})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swift.catalog.datasets import Prepared
from swift.data.columns import Format, rename
from swift.data.formats import ConversationReader, as_row
from swift.data.rows import Row, RowError, shown

_LISTS = ("messages", "conversation", "conversations", "rejected_messages")


class RowPreprocessor:
    """Renames columns, then prepares the row by `preprocess`, which a subclass overrides.

    columns: new names of columns; `_` hides one.
    """

    def __init__(self, *, columns: Mapping[str, str] | None = None) -> None:
        self.columns = dict(columns or {})

    def __call__(self, row: dict[str, Any]) -> Prepared:
        """What becomes of a row of the file."""
        return self.preprocess(renamed_row(row, self.columns) if self.columns else row)

    def preprocess(self, row: dict[str, Any]) -> Prepared:
        """A row in a form that is understood; None leaves the row out, a list makes several of it."""
        return row


class AutoPreprocessor(RowPreprocessor):
    """Renames columns and leaves it to them what the row is."""


class ResponsePreprocessor(RowPreprocessor):
    """Rows of query, response, history and system, under any of their names."""

    form: Format = "query"

    def preprocess(self, row: dict[str, Any]) -> Prepared:
        """The row in the messages format. Columns that belong to no message stay."""
        reader = ConversationReader({}, keep_others=True, form=self.form)
        return as_row(reader.read(Row(row, "", 0)))


class AlpacaPreprocessor(ResponsePreprocessor):
    """Rows of instruction, input and output."""

    form: Format = "alpaca"


class MessagesPreprocessor(RowPreprocessor):
    """Rows of messages whose keys and roles have names of their own.

    role_key, content_key: the keys of a message. user_role, assistant_role, system_role: the roles. inner_key: the key
    under which the list of messages stands, when the column holds an object. What is not given goes by its usual names.
    """

    def __init__(
        self,
        *,
        role_key: str | None = None,
        content_key: str | None = None,
        user_role: str | None = None,
        assistant_role: str | None = None,
        system_role: str | None = None,
        inner_key: str | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(columns=columns)
        self._keys = {old: new for old, new in ((role_key, "role"), (content_key, "content")) if old}
        given = ((user_role, "user"), (assistant_role, "assistant"), (system_role, "system"))
        self._roles = {old: new for old, new in given if old}
        self._inner = inner_key

    def preprocess(self, row: dict[str, Any]) -> Prepared:
        """The row with messages of the usual keys and roles."""
        columns = [name for name in row if name.lower() in _LISTS and row[name] is not None]
        if not columns:
            raise RowError("messages", "is missing", f"columns: {', '.join(row)}")
        return {**row, **{name: self._usual(row[name], name) for name in columns}}

    def _usual(self, value: Any, column: str) -> Any:
        if self._inner is not None:
            if not isinstance(value, dict) or self._inner not in value:
                raise RowError(column, f"is no object with a key {self._inner}", shown(value))
            value = value[self._inner]
        if not isinstance(value, list):
            return value
        return [self._message(message) if isinstance(message, dict) else message for message in value]

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message with its usual keys; a key of theirs that means something else here is not read."""
        hidden = set(self._keys.values()) - set(self._keys)
        usual = {self._keys.get(key, key): value for key, value in message.items() if key not in hidden}
        for key in ("role", "from"):
            if isinstance(usual.get(key), str):
                usual[key] = self._roles.get(usual[key], usual[key])
        return usual


class TextGenerationPreprocessor(ResponsePreprocessor):
    """A task in words: `prompt` with the query in place of `query_tag`."""

    def __init__(self, *, prompt: str, query_tag: str = "{{QUERY}}", columns: Mapping[str, str] | None = None) -> None:
        super().__init__(columns=columns)
        if query_tag not in prompt:
            raise ValueError(f"the prompt does not say where the query stands: {query_tag} is not in it")
        self._prompt, self._tag = prompt, query_tag

    def preprocess(self, row: dict[str, Any]) -> Prepared:
        """The row with the query inside the prompt."""
        query = row.get("query")
        if not isinstance(query, str):
            raise RowError("query", "is no text", shown(query))
        return super().preprocess({**row, "query": self._prompt.replace(self._tag, query)})


class ClsPreprocessor(ResponsePreprocessor):
    """Classes: the row has a `label`, a whole number, beside its query."""

    def preprocess(self, row: dict[str, Any]) -> Prepared:
        """The row with its label as a whole number."""
        label = row.get("label")
        if label is None:
            raise RowError("label", "is missing")
        try:
            return super().preprocess({**row, "label": int(label)})
        except (TypeError, ValueError):
            raise RowError("label", "is no whole number", shown(label)) from None


class ClsGenerationPreprocessor(ResponsePreprocessor):
    """Classes as words: the model is asked for the category and replies with its name.

    labels: the names of the categories; `label` of a row is the place in this list.
    task: what is to be told, as "Sentiment Classification".
    is_pair_seq: whether a row has two sentences, `sentence1` and `sentence2`, instead of one, `sentence`.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        task: str,
        is_pair_seq: bool = False,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(columns=columns)
        self._labels, self._task = list(labels), task
        self._sentences = ("sentence1", "sentence2") if is_pair_seq else ("sentence",)

    def preprocess(self, row: dict[str, Any]) -> Prepared:
        """Task, sentences and categories as the query, the name of the category as the response."""
        label = row.get("label")
        if not isinstance(label, int) or not 0 <= label < len(self._labels):
            raise RowError("label", f"is none of the categories 0 to {len(self._labels) - 1}", shown(label))
        lines = [f"Task: {self._task}"]
        for name in self._sentences:
            if not isinstance(row.get(name), str):
                raise RowError(name, "is no text", shown(row.get(name)))
            lines.append(f"{name.capitalize()}: {row[name]}")
        lines += [f"Category: {', '.join(self._labels)}", "Output:"]
        others = {name: value for name, value in row.items() if name not in (*self._sentences, "label")}
        return super().preprocess({**others, "query": "\n".join(lines), "response": self._labels[label]})


def renamed_row(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under new names of columns, without the hidden ones. Raises DataError when two meet under one name."""
    return {name: row[column] for name, column in rename(tuple(row), columns).items()}
