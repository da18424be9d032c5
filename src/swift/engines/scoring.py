"""This file knows how a model of transformers classifies, embeds and ranks texts: in batches of like length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swift.chat.render import Sample
from swift.core.errors import EngineError
from swift.data.collate import Padded
from swift.models.heads import Head, Problem

if TYPE_CHECKING:
    from peft import PeftModel  # seconds to import, and needed for its name only

MOST_CLASSES = 20
"""Classes whose log-probabilities are told at most."""


class ScoringEngine:
    """A model and its head, ready to read texts.

    max_batch_size: how many texts share a batch; -1 is all of them.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, head: Head, *, max_batch_size: int = 1) -> None:
        if max_batch_size < 1 and max_batch_size != -1:
            raise EngineError(f"--max_batch_size must be a positive number, or -1 for no limit (got {max_batch_size}).")
        self.model: Any = model.eval()
        self.head = head
        self.max_batch_size = max_batch_size
        self._padded = Padded(0 if head.pad_token_id is None else head.pad_token_id)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has rows for."""
        return self.model.get_input_embeddings().weight.shape[0]

    @torch.no_grad()
    def outputs(self, samples: Sequence[Sample]) -> Tensor:
        """What the model puts out for each text, in order, float32 on the CPU: logits [N, C], scores [N], vectors [N, E]."""
        by_length = sorted(range(len(samples)), key=lambda index: -len(samples[index]))
        size = len(samples) if self.max_batch_size == -1 else self.max_batch_size
        found: list[Tensor] = []
        for start in range(0, len(samples), size):
            batch = self._padded([samples[index] for index in by_length[start : start + size]])
            on_device = {name: value.to(self.model.device) for name, value in batch.items()}
            found.append(self.head.outputs(self.model, on_device).cpu())
        return torch.cat(found)[torch.tensor(by_length).argsort()]

    def close(self) -> None:
        """Let go of the model; memory it held on an accelerator can be used again."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------------------------- answers


def answer(head: Head, output: Tensor, *, activates: bool) -> Any:
    """What an output says: a class, a list of classes, a value or several; a relevance; a vector.

    activates: whether a relevance goes through a sigmoid.
    """
    if head.task == "embedding":
        return output.tolist()
    if head.task == "seq_cls":
        return ANSWERS[head.problem](output)
    return float(output.sigmoid() if activates else output)


def class_logprobs(head: Head, output: Tensor) -> dict[str, Any] | None:
    """The log-probabilities of the likeliest classes, as the OpenAI protocol writes those of tokens: a class is one.

    None for values of a regression.
    """
    if head.problem == "regression":
        return None
    of = output.log_softmax(-1) if head.problem == "single_label_classification" else output.sigmoid().log()
    values, classes = of.topk(min(MOST_CLASSES, len(of)))
    top = [
        {"token": str(name), "logprob": value, "bytes": list(str(name).encode())}
        for name, value in zip(classes.tolist(), values.tolist(), strict=True)
        if value > -math.inf
    ]
    return {"content": [{**top[0], "top_logprobs": top}]}


ANSWERS: dict[Problem, Callable[[Tensor], Any]] = {
    "single_label_classification": lambda logits: int(logits.argmax()),
    "multi_label_classification": lambda logits: (logits >= 0).nonzero().flatten().tolist(),
    "regression": lambda values: values.tolist() if len(values) > 1 else float(values[0]),
}
"""`--problem_type` -> what its outputs say; a class is one of several when its probability is at least 0.5."""
