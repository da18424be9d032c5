"""This file knows what a request asks for once everything it leaves open is settled by the model's generation config."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from swift.core.errors import EngineError
from swift.core.logs import get_logger
from swift.engines.base import Sampling
from swift.engines.rows import Choice, Row

if TYPE_CHECKING:
    from peft import PeftModel  # seconds to import, and needed for its name only

UNKNOWN_CONTEXT = 8192
"""Tokens a model is taken to bear when its config does not say."""


def context_length_of(model: PreTrainedModel | PeftModel) -> int:
    """The most tokens that the config of a model names."""
    described = model.config.get_text_config().to_dict()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if described.get(name):
            return int(described[name])
    get_logger().warning("The model's config names no context length; %d tokens are assumed.", UNKNOWN_CONTEXT)
    return UNKNOWN_CONTEXT


class Settings:
    """The model's own settings of generation, which hold where a request says nothing.

    end_ids: tokens that end a reply: those of the generation config, of the tokenizer and of the template.
    context_length: the most tokens of a prompt and its reply together.
    """

    def __init__(
        self,
        config: GenerationConfig,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int],
        context_length: int,
    ) -> None:
        self.config = config
        self.context_length = context_length
        self.end_ids = _end_ids(config, tokenizer, stop_token_ids)
        pad = tokenizer.pad_token_id
        # Any id does: padding is masked, and rows that have ended are not read.
        self.pad_id = pad if isinstance(pad, int) else min(self.end_ids, default=0)
        self._tokenizer = tokenizer
        self._warned: set[str] = set()

    def samples(self, sampling: Sampling) -> bool:
        """Whether tokens are drawn: at a temperature above 0, or when the generation config says so."""
        if sampling.temperature is not None:
            return sampling.temperature > 0
        return bool(self.config.do_sample)

    def choice(self, sampling: Sampling) -> Choice:
        """How each token of a reply is chosen."""
        config = self.config
        top = sampling.top_logprobs
        return Choice(
            samples=self.samples(sampling),
            temperature=_said(sampling.temperature, config.temperature, 1.0),
            top_k=max(int(_said(sampling.top_k, config.top_k, 50)), 0),
            top_p=_said(sampling.top_p, config.top_p, 1.0),
            min_p=_said(sampling.min_p, config.min_p, 0.0),
            repetition_penalty=_said(sampling.repetition_penalty, config.repetition_penalty, 1.0),
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            top_logprobs=(0 if top is None else top) if sampling.wants_logprobs else None,
        )

    def stop_words(self, sampling: Sampling) -> tuple[str, ...]:
        """The request's words, then those of the generation config; not those that are tokens which end a turn."""
        listed = self.config.stop_strings
        known = () if listed is None else (listed,) if isinstance(listed, str) else tuple(listed)
        words = [word for word in (*sampling.stop, *known) if word]
        return tuple(word for word in words if self._tokenizer.convert_tokens_to_ids(word) not in self.end_ids)

    def limit(self, length: int, sampling: Sampling) -> int:
        """How many tokens the reply to a prompt of `length` tokens may have. Raises EngineError when there is no room."""
        context = self.context_length
        if not length:
            raise EngineError("The prompt is empty: there is nothing to continue.")
        if length >= context:
            raise EngineError(
                f"The prompt has {length} tokens and the model's context is {context}, so there is no room for a "
                f"reply. Shorten it, or cut it with --max_length {max(context // 2, 1)} --truncation_strategy left."
            )
        wanted = sampling.max_new_tokens
        if wanted is not None and wanted > context - length:
            self.warn_once(
                f"--max_new_tokens {wanted} is more than the context of {context} tokens leaves "
                f"(first for a prompt of {length}): the reply ends at the context's end."
            )
        return context - length if wanted is None else min(wanted, context - length)

    def check(self, sampling: Sampling) -> None:
        """Refuse what cannot be; warn once of what has no effect."""
        if sampling.n < 1:
            raise EngineError(f"n must be at least 1 (got {sampling.n}).")
        if sampling.num_beams > 1 and sampling.n > sampling.num_beams:
            raise EngineError(
                f"n = {sampling.n} completions need at least as many --num_beams (got {sampling.num_beams})."
            )
        if sampling.num_beams > 1 and sampling.structure is not None:
            raise EngineError(f"Replies of a structure need --num_beams 1 (got {sampling.num_beams}).")
        if sampling.num_beams > 1 and sampling.prompt_logprobs is not None:
            raise EngineError(f"Log-probabilities of a prompt need --num_beams 1 (got {sampling.num_beams}).")
        if sampling.max_new_tokens is not None and sampling.max_new_tokens < 1:
            raise EngineError(f"--max_new_tokens must be at least 1 (got {sampling.max_new_tokens}).")
        if sampling.num_beams == 1 and sampling.length_penalty != 1.0:
            self.warn_once(f"length_penalty {sampling.length_penalty}: no effect without --num_beams above 1.")
        if not self.samples(sampling):
            given = (("top_k", sampling.top_k), ("top_p", sampling.top_p), ("min_p", sampling.min_p))
            idle = [f"--{name} {value}" for name, value in given if value]
            if idle:
                self.warn_once(
                    f"{' and '.join(idle)}: no effect, because nothing is drawn. Give a --temperature above 0 "
                    "to sample (the model's generation_config.json does not ask for it)."
                )

    def generation_config(self, rows: Sequence[Row], sampling: Sampling) -> GenerationConfig:
        """The same for transformers' own `generate`."""
        config = deepcopy(self.config)
        config.do_sample = self.samples(sampling)
        if config.do_sample:
            asked = {"temperature": sampling.temperature, "top_p": sampling.top_p, "min_p": sampling.min_p}
            asked["top_k"] = None if sampling.top_k is None else max(sampling.top_k, 0)
        else:
            asked = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
            config.min_p = None
        asked["repetition_penalty"] = sampling.repetition_penalty
        for name, value in asked.items():
            if value is not None:
                setattr(config, name, value)
        config.min_p = config.min_p or None
        config.num_beams, config.num_return_sequences = 1, 1
        config.eos_token_id, config.pad_token_id = sorted(self.end_ids), self.pad_id
        config.return_dict_in_generate = False
        room = max(row.limit for row in rows)
        if self.config.max_new_tokens is None:  # with both lengths set, transformers complains
            config.max_length = max(len(row.prompt_ids) for row in rows) + room
        else:
            config.max_new_tokens, config.max_length = room, None
        return config

    def warn_once(self, message: str) -> None:
        """A warning that a run needs to see but once."""
        if message not in self._warned:
            self._warned.add(message)
            get_logger().warning(message)


def _said(asked: float | None, configured: float | None, otherwise: float) -> float:
    if asked is not None:
        return asked
    return otherwise if configured is None else configured


def _end_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase, more: Sequence[int]) -> frozenset[int]:
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return frozenset(each for each in (*known, tokenizer.eos_token_id, *more) if isinstance(each, int))
