"""This file knows how vLLM classifies, embeds and ranks texts: as `engines/scoring.py` does, through its pooling models."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from swift.chat.render import Sample
from swift.core.errors import EngineError
from swift.core.extras import need
from swift.engines.background import Background
from swift.engines.others import Served, first_words
from swift.engines.vllm_arguments import WHY, end_async, made_engine, refusals
from swift.models.heads import Head
from swift.models.info import read_json
from swift.options.engines import VllmOptions

POOLING = {"last": "LAST", "first": "CLS", "mean": "MEAN"}
"""Our name of a pooling -> vLLM's."""


class VllmScoring:
    """A model and its head, served by vLLM's asynchronous engine.

    Raises MissingPackage without vLLM, EngineError for what vLLM cannot serve.
    """

    def __init__(self, served: Served, head: Head, tokenizer: PreTrainedTokenizerBase, options: VllmOptions) -> None:
        if served.named or served.always:
            raise EngineError(
                f"--task_type {head.task} with --infer_backend vllm needs --merge_lora true: vLLM reads no trained head "
                f"beside an adapter."
            )
        self._vllm: Any = need("vllm", WHY)
        self.head = head
        self._refusals = refusals()
        arguments = pooling_arguments(served, head, tokenizer)
        self._engine: Any = made_engine(served, options, uses_async=True, more=arguments)
        self._background = Background("swift-vllm")
        self._numbers = itertools.count()

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has rows for."""
        return self._engine.model_config.get_vocab_size()

    def outputs(self, samples: Sequence[Sample]) -> Tensor:
        """What the model puts out for each text, in order, float32 on the CPU: logits [N, C], scores [N], vectors [N, E]."""
        found = self._background.do(self._all(samples))
        stacked = torch.stack([each.detach().float().cpu() for each in found])
        return stacked if self.head.task in ("seq_cls", "embedding") else stacked[:, 0]

    def close(self) -> None:
        """End the engine and its processes."""
        self._background.close()
        engine, self._engine = self._engine, None
        end_async(engine)

    async def _all(self, samples: Sequence[Sample]) -> list[Tensor]:
        return list(await asyncio.gather(*(self._one(sample) for sample in samples)))

    async def _one(self, sample: Sample) -> Tensor:
        prompt = self._vllm.TokensPrompt(prompt_token_ids=self._text(sample))
        embeds = self.head.task == "embedding"
        asked = self._vllm.PoolingParams(
            task="embed" if embeds else "classify", use_activation=embeds and self.head.normalizes
        )
        try:
            outputs = [each async for each in self._engine.encode(prompt, asked, f"swift-{next(self._numbers)}")]
        except self._refusals as error:
            raise EngineError(f"vLLM refuses the text: {first_words(error)}") from error
        return outputs[-1].outputs.data

    def _text(self, sample: Sample) -> list[int]:
        """The tokens of a text. A classifier looks at the last one that is no padding; vLLM, which does not pad, at the
        last one. A causal model does not see what is cut."""
        ids, pad = list(sample.input_ids), self.head.pad_token_id
        if self.head.task in ("seq_cls", "reranker"):
            while len(ids) > 1 and ids[-1] == pad:
                ids.pop()
        return ids


def pooling_arguments(served: Served, head: Head, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The arguments of vLLM's engine that make it read and not write."""
    made: dict[str, Any] = {"runner": "pooling", "convert": "embed" if head.task == "embedding" else "classify"}
    if head.task == "embedding":
        made["pooler_config"] = {"seq_pooling_type": POOLING[head.pooling]}
    if head.task == "generative_reranker":
        made["hf_overrides"] = _judging(served, head, tokenizer)
    return made


def _judging(served: Served, head: Head, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A classifier with one output whose row is that of `yes` less that of `no` in the output matrix: its output is the
    difference of their logits."""
    assert head.judges is not None, "the tokens of a generative reranker are known before it is run"
    yes, no = tokenizer.convert_ids_to_tokens(list(head.judges))
    written = (read_json(served.folder / "config.json").get("architectures") or [""])[0]
    if not written.endswith("ForCausalLM"):
        raise EngineError(
            f"--task_type generative_reranker with --infer_backend vllm needs a ...ForCausalLM, and {served.folder} is "
            f"{written or 'of no named architecture'}. Use --infer_backend transformers."
        )
    return {
        "architectures": [f"{written.removesuffix('ForCausalLM')}ForSequenceClassification"],
        "classifier_from_token": [no, yes],
        "method": "from_2_way_softmax",
        "num_labels": 1,
    }
