"""This file knows how options are read from a YAML or JSON file, with the line each stands on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.core.paths import is_file


@dataclass(frozen=True)
class Entry:
    """One option of a file: its flag with underscores, its value, and its line (1-based)."""

    flag: str
    value: Any
    line: int


class ConfigError(Exception):
    """A configuration file that cannot be used: the key of the sentence that says why, and what goes into it."""

    def __init__(self, key: str, **values: Any) -> None:
        super().__init__(key, values)
        self.key = key
        self.values = values


def named_in(argv: Sequence[str]) -> str | None:
    """The file that `--config` names in argv, or None."""
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith("--config="):
            return word.removeprefix("--config=")
    return None


def read(file: str) -> list[Entry]:
    """The options of a YAML or JSON file, in its order. Raises ConfigError."""
    import yaml  # needed by those who use --config only

    if not is_file(file):
        raise ConfigError("config_missing")
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError("config_broken", line=line, why=error.problem or "unreadable") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("config_broken", line=1, why=str(error)) from None
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("config_shape")
    entries: list[Entry] = []
    seen: set[str] = set()
    for key, value in node.value:
        flag = str(key.value).replace("-", "_")
        line = key.start_mark.line + 1
        if flag in seen:
            raise ConfigError("config_twice", line=line, flag=key.value)
        if flag == "config":
            raise ConfigError("config_nested", line=line)
        seen.add(flag)
        try:
            entries.append(Entry(flag, loader.construct_document(value), line))
        except yaml.MarkedYAMLError as error:
            raise ConfigError("config_broken", line=line, why=error.problem or "unreadable") from None
    return entries


def inline_list(text: str) -> list[Any]:
    """A list written as one JSON word, `["a", "b"]`; text that is no JSON list is a list of that one word."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return [text]
    return value if isinstance(value, list) else [text]
