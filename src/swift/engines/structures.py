"""This file knows how a reply is held to a structure, a JSON schema or a regular expression, token by token.

A matcher of llguidance follows the reply and says which tokens may come next: those after which the whole can still match.

Axes: V vocabulary.
"""

from __future__ import annotations

import json

import numpy
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from swift.core.errors import EngineError
from swift.engines.base import Structure

WHITESPACE = r"\n?[ \t]{0,12}"
"""Between the parts of JSON: a line and its indent at most, because a model that may write blanks for ever sometimes does."""


LARGEST = 1 << 19
"""Characters of a structure; what is as large as that takes a second or two."""
SHOWN = 300
"""Characters of a structure, and of what is wrong with it, that an error repeats."""
KEPT = 16
"""How many compiled structures are kept; the largest of them have a hundred megabytes."""


class Structures:
    """Compiles structures for one vocabulary.

    vocab_size: how many logits the model has, which may be more than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int], vocab_size: int) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise EngineError("Replies can be held to a structure with a fast tokenizer only (tokenizer.json).")
        self._tokens: LLTokenizer = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=sorted(end_ids) or None)
        self._limits = LLParserLimits(verbose_errors=False)
        self._compiled: dict[str, LLMatcher] = {}

    def matcher(self, structure: Structure) -> LLMatcher:
        """What follows one reply. Raises EngineError for a structure that cannot be understood."""
        grammar = _grammar(structure)
        made = self._compiled.get(grammar)
        if made is None:
            made = LLMatcher(self._tokens, grammar, log_level=0, limits=self._limits)
            if made.is_error():
                raise _refused(structure, made.get_error())
            if len(self._compiled) >= KEPT:
                self._compiled.pop(next(iter(self._compiled)), None)
            self._compiled[grammar] = made
        return made.deep_copy()


def check_structure(structure: Structure) -> None:
    """Raises EngineError for a structure that cannot be understood."""
    why = LLMatcher.validate_grammar(_grammar(structure))
    if why:
        raise _refused(structure, why)


def allowed(matcher: LLMatcher, vocab_size: int) -> Tensor:
    """[V] which tokens may come next."""
    bits = numpy.frombuffer(matcher.compute_bitmask(), dtype=numpy.uint8)
    flags = numpy.unpackbits(bits, bitorder="little", count=min(vocab_size, 8 * len(bits)))
    known = torch.from_numpy(flags).bool()
    return known if len(known) == vocab_size else torch.cat([known, known.new_zeros(vocab_size - len(known))])


def _grammar(structure: Structure) -> str:
    if (structure.json_schema is None) == (structure.regex is None):
        raise EngineError("A structure is exactly one of a JSON schema and a regular expression.")
    if structure.regex is not None:
        return LLMatcher.grammar_from_regex(_measured(structure, structure.regex))
    schema = structure.json_schema or {"type": "object"}
    try:
        text = _measured(structure, json.dumps(schema))
        return LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": WHITESPACE})
    except (ValueError, RecursionError) as error:
        raise _refused(structure, str(error)) from None


def _measured(structure: Structure, text: str) -> str:
    """The text of a structure. Raises EngineError when there is too much of it."""
    if len(text) > LARGEST:
        raise _refused(structure, f"it has {len(text)} characters, and at most {LARGEST} are taken")
    return text


def _refused(structure: Structure, why: str) -> EngineError:
    shown = None if structure.regex is None else repr(structure.regex[:SHOWN])
    what = "JSON schema of the reply" if shown is None else f"regular expression {shown}"
    return EngineError(f"The {what} cannot be followed: {' '.join(why.split()):.{SHOWN}}")
