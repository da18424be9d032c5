"""This file knows the names of the chat layouts: the values of --template."""

from __future__ import annotations

from swift.catalog.layout import Layout
from swift.catalog.layouts_text import ROWS
from swift.core.registry import Registry

__all__ = ["LAYOUTS", "Layout"]

LAYOUTS: Registry[Layout] = Registry("template", {row.name: row for row in ROWS})
"""Name -> layout; plugins add their own."""
