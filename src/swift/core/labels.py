"""This file knows the label of a token that is not learnt."""

from __future__ import annotations

IGNORED = -100
"""What torch's cross-entropy leaves out by default, and what models of transformers expect."""
