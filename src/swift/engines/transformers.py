"""This file knows how a model of transformers continues prompts: in batches, or piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from swift.chat.render import Prompt
from swift.core import environment
from swift.core.errors import EngineError
from swift.core.logs import get_logger
from swift.engines.base import Completion, Delta, Sampling, TokenLogprob
from swift.engines.decoding import Prepared, Row, Tokens, decode_rows, prepare
from swift.engines.detokenizer import Detokenizer

if TYPE_CHECKING:
    from peft import PeftModel  # seconds to import, and needed for its name only

UNKNOWN_CONTEXT = 8192
"""Tokens a model is taken to bear when its config does not say."""


class TransformersEngine:
    """A model and its tokenizer, ready to continue prompts.

    max_batch_size: how many prompts share a batch; -1 is all of them.
    stop_token_ids: tokens that end a turn, beside the eos of the generation config and of the tokenizer.
    context_length: the most tokens of prompt and reply together; None asks the model's config.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch_size: int = 1,
        stop_token_ids: Sequence[int] = (),
        context_length: int | None = None,
    ) -> None:
        if max_batch_size < 1 and max_batch_size != -1:
            raise EngineError(f"--max_batch_size must be a positive number, or -1 for no limit (got {max_batch_size}).")
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.context_length = context_length if context_length is not None else _context_length(model)
        self.end_ids = _end_ids(model.generation_config, tokenizer, stop_token_ids)
        self._warned: set[str] = set()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts.

        Prompts of like length share a batch; what a prompt gets does not depend on its neighbours.

        Raises EngineError when a prompt leaves no room for a reply.
        """
        self._check(sampling)
        limits = [self._limit(prompt, sampling) for prompt in prompts]
        by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].input_ids))
        size = len(prompts) if self.max_batch_size == -1 else self.max_batch_size
        results: dict[int, list[Completion]] = {}
        for start in range(0, len(prompts), size):
            chunk = by_length[start : start + size]
            rows = [
                self._row(prompts[i], limits[i], sampling, i * sampling.n + j) for i in chunk for j in range(sampling.n)
            ]
            completions = self._complete(rows, sampling)
            for place, index in enumerate(chunk):
                results[index] = completions[place * sampling.n : (place + 1) * sampling.n]
        return [results[index] for index in range(len(prompts))]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The pieces of one completion, a piece per token; characters are never split.

        Raises EngineError for more than one completion or beam: they have no order in time.
        """
        if sampling.num_beams > 1:
            raise EngineError(f"--stream true needs --num_beams 1 (got {sampling.num_beams}): beams end all at once.")
        if sampling.n > 1:
            raise EngineError(f"A stream carries one completion, not n = {sampling.n}.")
        self._check(sampling)
        row = self._row(prompt, self._limit(prompt, sampling), sampling, 0)
        row.text = row.text or Detokenizer(self.tokenizer)
        return self._pieces(row, sampling)

    def close(self) -> None:
        """Let go of the model; memory it held on an accelerator can be used again."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------------------ the two ways

    def _pieces(self, row: Row, sampling: Sampling) -> Iterator[Delta]:
        told = 0
        for _ in decode_rows(self._prepared([row], sampling), [row], self._tokens(sampling)):
            if row.piece or len(row.logprobs) > told:
                yield Delta(row.piece, logprobs=row.logprobs[told:])
                told = len(row.logprobs)
        self._debug([row])
        completion = row.completion(self.tokenizer, sampling.wants_logprobs)
        yield Delta(row.piece, completion)

    def _complete(self, rows: list[Row], sampling: Sampling) -> list[Completion]:
        if sampling.num_beams > 1:
            # Beams of a batch share one length, so only prompts with equal room are searched together.
            for _, group in groupby(rows, key=lambda row: row.limit):
                self._search(list(group), sampling)
        else:
            for _ in decode_rows(self._prepared(rows, sampling), rows, self._tokens(sampling)):
                pass
        self._debug(rows)
        return [row.completion(self.tokenizer, sampling.wants_logprobs) for row in rows]

    def _prepared(self, rows: Sequence[Row], sampling: Sampling) -> Prepared:
        return self.model.generate(
            **self._padded(rows),
            generation_config=self._config(rows, sampling),
            custom_generate=prepare,
            tokenizer=self.tokenizer,
        )

    def _search(self, rows: list[Row], sampling: Sampling) -> None:
        """Beam search by transformers: `n` best of `num_beams` for each prompt."""
        first_of_each = rows[:: sampling.n]
        config = self._config(first_of_each, sampling)
        config.num_beams, config.num_return_sequences = sampling.num_beams, sampling.n
        stop = self._stop_words(sampling)
        if stop:
            config.stop_strings = [*stop]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            padded = self._padded(first_of_each)
            found_BT = self.model.generate(**padded, generation_config=config, tokenizer=self.tokenizer)
        tokens = self._tokens(sampling)
        for row, ids in zip(rows, found_BT[:, padded["input_ids"].shape[1] :].tolist(), strict=True):
            for token_id in ids:
                if row.reason is None:
                    row.add(token_id, self.end_ids)
            row.reason = row.reason or "stop"
            if sampling.wants_logprobs and row.token_ids:
                row.logprobs = self._score(row, tokens)

    @torch.no_grad()
    def _score(self, row: Row, tokens: Tokens) -> list[TokenLogprob]:
        """Log-probabilities of a row's tokens, from one forward pass over prompt and reply."""
        ids = torch.tensor([row.prompt_ids + row.token_ids], device=self.model.device)
        logits_TV = self.model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
        return tokens.logprobs(logits_TV, ids[0, len(row.prompt_ids) :])

    # --------------------------------------------------------------------------------------------------- preparation

    def _row(self, prompt: Prompt, limit: int, sampling: Sampling, number: int) -> Row:
        generator = None
        if sampling.seed is not None:
            generator = torch.Generator().manual_seed(sampling.seed + number)
        stop = self._stop_words(sampling)
        return Row(prompt.input_ids, limit, stop, generator, Detokenizer(self.tokenizer) if stop else None)

    def _padded(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Input ids and attention mask [B, T], padded on the left so that all rows end together."""
        width = max(len(row.prompt_ids) for row in rows)
        pad = self._pad_id()
        ids = [[pad] * (width - len(row.prompt_ids)) + row.prompt_ids for row in rows]
        mask = [[0] * (width - len(row.prompt_ids)) + [1] * len(row.prompt_ids) for row in rows]
        device = self.model.device
        return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}

    def _config(self, rows: Sequence[Row], sampling: Sampling) -> GenerationConfig:
        """The model's generation config, overridden by what the request says."""
        config = deepcopy(self.model.generation_config)
        config.do_sample = self._samples(sampling)
        if config.do_sample:
            asked = {"temperature": sampling.temperature, "top_p": sampling.top_p}
            asked["top_k"] = None if sampling.top_k is None else max(sampling.top_k, 0)
        else:
            asked = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
        asked["repetition_penalty"] = sampling.repetition_penalty
        for name, value in asked.items():
            if value is not None:
                setattr(config, name, value)
        config.num_beams, config.num_return_sequences = 1, 1
        config.eos_token_id, config.pad_token_id = sorted(self.end_ids), self._pad_id()
        config.return_dict_in_generate = False
        room = max(row.limit for row in rows)
        if self.model.generation_config.max_new_tokens is None:  # with both lengths set, transformers complains
            config.max_length = max(len(row.prompt_ids) for row in rows) + room
        else:
            config.max_new_tokens, config.max_length = room, None
        return config

    def _samples(self, sampling: Sampling) -> bool:
        """Whether tokens are drawn: at a temperature above 0, or when the generation config says so."""
        if sampling.temperature is not None:
            return sampling.temperature > 0
        return bool(self.model.generation_config.do_sample)

    def _stop_words(self, sampling: Sampling) -> tuple[str, ...]:
        """The request's words, then those of the generation config; not those that are tokens which end a turn."""
        listed = self.model.generation_config.stop_strings
        known = () if listed is None else (listed,) if isinstance(listed, str) else tuple(listed)
        words = [word for word in (*sampling.stop, *known) if word]
        return tuple(word for word in words if self.tokenizer.convert_tokens_to_ids(word) not in self.end_ids)

    def _tokens(self, sampling: Sampling) -> Tokens:
        top = 0 if sampling.top_logprobs is None else sampling.top_logprobs
        return Tokens(self.tokenizer, self.end_ids, sampling.wants_logprobs, top)

    def _pad_id(self) -> int:
        """Any id does: padding is masked, and rows that have ended are not read."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else min(self.end_ids, default=0)

    # -------------------------------------------------------------------------------------------------------- checks

    def _limit(self, prompt: Prompt, sampling: Sampling) -> int:
        """How many tokens the reply may have."""
        length, context = len(prompt.input_ids), self.context_length
        if not length:
            raise EngineError("The prompt is empty: there is nothing to continue.")
        if length >= context:
            raise EngineError(
                f"The prompt has {length} tokens and the model's context is {context}, so there is no room for a "
                f"reply. Shorten it, or cut it with --max_length {max(context // 2, 1)} --truncation_strategy left."
            )
        wanted = sampling.max_new_tokens
        if wanted is not None and wanted > context - length:
            self._warn_once(
                f"--max_new_tokens {wanted} is more than the context of {context} tokens leaves "
                f"(first for a prompt of {length}): the reply ends at the context's end."
            )
        return context - length if wanted is None else min(wanted, context - length)

    def _check(self, sampling: Sampling) -> None:
        if sampling.n < 1:
            raise EngineError(f"n must be at least 1 (got {sampling.n}).")
        if sampling.num_beams > 1 and sampling.n > sampling.num_beams:
            raise EngineError(
                f"n = {sampling.n} completions need at least as many --num_beams (got {sampling.num_beams})."
            )
        if sampling.max_new_tokens is not None and sampling.max_new_tokens < 1:
            raise EngineError(f"--max_new_tokens must be at least 1 (got {sampling.max_new_tokens}).")
        if not self._samples(sampling):
            idle = [
                f"--{name} {value}" for name, value in (("top_k", sampling.top_k), ("top_p", sampling.top_p)) if value
            ]
            if idle:
                self._warn_once(
                    f"{' and '.join(idle)}: no effect, because nothing is drawn. Give a --temperature above 0 "
                    "to sample (the model's generation_config.json does not ask for it)."
                )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            get_logger().warning(message)

    def _debug(self, rows: Sequence[Row]) -> None:
        if environment.SWIFT_DEBUG.flag():
            for row in rows:
                get_logger().info("input_ids: %s", row.prompt_ids)
                get_logger().info("generated_ids: %s (%s)", row.token_ids, row.reason)


def _context_length(model: PreTrainedModel | PeftModel) -> int:
    described = model.config.get_text_config().to_dict()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if described.get(name):
            return int(described[name])
    get_logger().warning("The model's config names no context length; %d tokens are assumed.", UNKNOWN_CONTEXT)
    return UNKNOWN_CONTEXT


def _end_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase, more: Sequence[int]) -> frozenset[int]:
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return frozenset(each for each in (*known, tokenizer.eos_token_id, *more) if isinstance(each, int))
