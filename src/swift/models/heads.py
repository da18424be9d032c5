"""This file knows what a model puts out for each task: the class it is loaded as, its head, and one output per sequence.

    causal_lm              logits of every token
    seq_cls                a logit per class, or a value: the native classification head over the last token
    reranker               the same head with one output, the relevance
    generative_reranker    the logit of `yes` less that of `no` for the token after the last one
    embedding              the pooled states of the model without a head, of length 1

Axes: B rows, T tokens of a row, S tokens of all sequences of a row, N sequences, C outputs, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from swift.core import environment
from swift.core.errors import ModelError, UsageError
from swift.losses.representation import Problem
from swift.models.inner import inner_model
from swift.models.pooling import Pooling, last_positions, last_positions_flat, pool, pool_flat, take
from swift.parallel.mesh import Mesh

Task = Literal["causal_lm", "seq_cls", "embedding", "reranker", "generative_reranker"]

HEADS = ("score", "classifier", "head")
"""The names of the parts of classification heads: over the last token of a decoder, and of encoders."""
NOT_OF_THE_MODEL = ("labels", "group_sizes")


@dataclass(frozen=True)
class Loading:
    """How models of a task are loaded: by which class of transformers, which configs it knows, and what they are."""

    auto: Any
    known: Any
    noun: str


_CAUSAL = Loading(AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, "causal language model")
_CLASSIFIER = Loading(
    AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, "sequence classifier"
)
LOADING: dict[Task, Loading] = {
    "causal_lm": _CAUSAL,
    "generative_reranker": _CAUSAL,
    "seq_cls": _CLASSIFIER,
    "reranker": _CLASSIFIER,
    "embedding": Loading(AutoModel, MODEL_MAPPING, "model"),
}
"""`--task_type` -> how its models are loaded."""


@dataclass(frozen=True)
class Head:
    """What is made of a model's states.

    problem: of a classification; its outputs are logits of classes, or values of a regression.
    num_labels: the outputs of a classification, 1 for the others.
    pooling, normalizes: of an embedding: which states it is made of, and whether it has length 1.
    judges: of a generative reranker, the ids of the tokens that say yes and no.
    pad_token_id: the token that a classifier does not take for the last of a text.
    """

    task: Task
    problem: Problem = "regression"
    num_labels: int = 1
    pooling: Pooling = "last"
    normalizes: bool = True
    judges: tuple[int, int] | None = None
    pad_token_id: int | None = None

    def outputs(self, model: nn.Module, inputs: Mapping[str, Any], mesh: Mesh | None = None) -> Tensor:
        """One output per sequence of a batch, in float32: [N, C] of a classifier, [N] of a reranker, [N, E] embeddings.

        inputs: a batch of `data/collate.py`, padded or end to end; model: also inside an adapter and DDP.
        mesh: the processes that share each row, of which this one runs its own part, and all have the outputs. The last
            sequence of such a row is its padding, which has none.
        """
        fed = {name: value for name, value in inputs.items() if name not in NOT_OF_THE_MODEL}
        if mesh is None:
            return OUTPUTS[self.task](self, model, fed, None)
        return OUTPUTS[self.task](self, model, fed, mesh)[:-1]


def judging_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids of yes and no (`GENERATIVE_RERANKER_POSITIVE_TOKEN`, `..._NEGATIVE_TOKEN`). Raises UsageError."""
    variables = (environment.GENERATIVE_RERANKER_POSITIVE_TOKEN, environment.GENERATIVE_RERANKER_NEGATIVE_TOKEN)
    ids = []
    for variable in variables:
        word = variable.get()
        found = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(found) != 1:
            raise UsageError(
                f"{variable.name} {word!r} is no single token of this tokenizer, but {len(found)}. Set the environment "
                f"variable {variable.name} to a word that is one token."
            )
        ids.append(found[0])
    return ids[0], ids[1]


def with_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> PreTrainedModel:
    """The model with the padding token of its tokenizer in its config, where its head looks for it."""
    if task in ("seq_cls", "reranker"):
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model


def head_names(model: PreTrainedModel) -> list[str]:
    """The modules of a classification head, which are trained whole and saved beside an adapter; [] without one."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return []
    return [name for name, _ in model.named_children() if name in HEADS]


def head_module(model: nn.Module) -> nn.Module:
    """The linear head of a classifier over the last token, also inside an adapter and DDP.

    Raises ModelError for classifiers that have another one.
    """
    found = next((module for name, module in model.named_modules() if name.rpartition(".")[2] == "score"), None)
    if found is None:
        raise ModelError(
            "--padding_free and --packing are not available for this classifier, which has no linear head over its "
            "tokens: drop them; --group_by_length true keeps the padding small."
        )
    return found


# ------------------------------------------------------------------------------------------------------------- outputs


def _embeddings(head: Head, model: nn.Module, fed: dict[str, Any], mesh: Mesh | None) -> Tensor:
    states = model(**_own(fed, mesh), use_cache=False).last_hidden_state.float()
    if "cu_seq_lens_q" in fed:
        pooled_NE = pool_flat(states[0], fed["cu_seq_lens_q"], head.pooling, mesh)
    else:
        pooled_NE = pool(states, fed["attention_mask"] > 0, head.pooling)
    return functional.normalize(pooled_NE, dim=-1) if head.normalizes else pooled_NE


def _logits(head: Head, model: nn.Module, fed: dict[str, Any], mesh: Mesh | None) -> Tensor:
    """The logits of a classifier. Padded rows are pooled by the model itself: by the last token that is no padding
    token, so that a checkpoint means to transformers what it means here; rows end to end by the same rule."""
    if "cu_seq_lens_q" not in fed:
        return model(**fed, use_cache=False).logits.float()
    with _seen(head_module(model)) as seen:
        model(**_own(fed, mesh), use_cache=False)
    is_text_S = fed["input_ids"][0] != head.pad_token_id
    return take(seen[-1][0].float(), last_positions_flat(is_text_S, fed["cu_seq_lens_q"]), mesh)


def _relevances(head: Head, model: nn.Module, fed: dict[str, Any], mesh: Mesh | None) -> Tensor:
    return _logits(head, model, fed, mesh)[:, 0]


def _judgements(head: Head, model: nn.Module, fed: dict[str, Any], mesh: Mesh | None) -> Tensor:
    """`logit(yes) - logit(no)` behind the last token; logits are computed where some sequence ends and nowhere else."""
    assert head.judges is not None, "the tokens of a generative reranker are known before it is run"
    if mesh is not None:
        return _judgements_of_parts(head.judges, model, fed, mesh)
    if "cu_seq_lens_q" in fed:
        rows_N, ends_N = torch.zeros_like(fed["cu_seq_lens_q"][1:]).long(), fed["cu_seq_lens_q"][1:].long() - 1
    else:
        ends_N = last_positions(fed["attention_mask"] > 0)
        rows_N = torch.arange(len(ends_N), device=ends_N.device)
    columns, where_N = ends_N.unique(return_inverse=True)
    ends_NV = _columns_of_logits(model, fed, columns)[rows_N, where_N].float()
    return ends_NV[:, head.judges[0]] - ends_NV[:, head.judges[1]]


def _judgements_of_parts(judges: tuple[int, int], model: nn.Module, fed: dict[str, Any], mesh: Mesh) -> Tensor:
    """As `_judgements`, each end by the process that holds it."""
    ends_N = fed["cu_seq_lens_q"][1:].long() - 1
    own = mesh.own(fed["input_ids"].shape[1]).to(ends_N.device)
    columns = torch.isin(own, ends_N).nonzero().squeeze(-1)
    logits_KV = _columns_of_logits(model, mesh.fed(fed), columns)[0].float()
    judged_T = logits_KV.new_zeros(len(own)).index_put((columns,), logits_KV[:, judges[0]] - logits_KV[:, judges[1]])
    return take(judged_T, ends_N, mesh)


def _columns_of_logits(model: nn.Module, fed: dict[str, Any], columns_K: Tensor) -> Tensor:
    """The logits of some columns, [B, K, V]; others are not made where the model allows."""
    if "logits_to_keep" in inspect.signature(_innermost(model)).parameters:
        return model(**fed, use_cache=False, logits_to_keep=columns_K).logits
    return model(**fed, use_cache=False).logits[:, columns_K]


def _own(fed: dict[str, Any], mesh: Mesh | None) -> dict[str, Any]:
    return fed if mesh is None else mesh.fed(fed)


OUTPUTS: dict[Task, Callable[[Head, nn.Module, dict[str, Any], Mesh | None], Tensor]] = {
    "seq_cls": _logits,
    "reranker": _relevances,
    "generative_reranker": _judgements,
    "embedding": _embeddings,
}
"""`--task_type` -> what a model puts out for a batch."""


@contextmanager
def _seen(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module gives while the model runs, though the model itself does not give it out."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append(output)

    hook = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def _innermost(model: nn.Module) -> Callable[..., Any]:
    """The forward pass of the model itself, inside an adapter and what trains in several processes."""
    return inner_model(extract_model_from_parallel(model)).forward
