"""This file knows which engine answers, one for each `--infer_backend`, and what it is given of the model.

Engines other than ours read a folder by themselves. What changes a model here while it is loaded must therefore stand in a
folder (a merged adapter is written into one that lives until the engine has read it), be an argument of the engine (the
rotary embedding), or is refused by the rules of the options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swift.chat.render import Sample
from swift.core import environment
from swift.core.errors import UsageError
from swift.core.extras import need_installed
from swift.core.logs import get_logger
from swift.engines.base import Engine, Serving
from swift.engines.lmdeploy import lmdeploy_engine
from swift.engines.others import Served, check_gpu
from swift.engines.scoring import ScoringEngine
from swift.engines.sglang import sglang_engine
from swift.engines.transformers import Transformers
from swift.engines.vllm import Vllm
from swift.engines.vllm_scoring import VllmScoring
from swift.export.folder import copy_companions
from swift.export.weights import shard_size, write_weights
from swift.models.heads import Head, with_padding
from swift.models.info import ModelInfo
from swift.models.load import load_config, load_model
from swift.models.loader import saved_files
from swift.models.packed import pack
from swift.models.vocabulary import with_room
from swift.options.commands import Infer
from swift.tuners.attach import load_adapters
from swift.tuners.merge import merge

STEPS = 4
"""Batches of vLLM handed over at once: it is never idle, and progress is seen."""
PROMPTS = 1024
"""Prompts that SGLang and LMDeploy are handed at once, which settle the size of their batches themselves."""
ONLY_GPUS = ("sglang", "lmdeploy")
"""Engines that cannot do without."""


class Scoring(Protocol):
    """An engine that reads texts."""

    head: Head

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has rows for."""
        ...

    def outputs(self, samples: Sequence[Sample]) -> Tensor:
        """What the model puts out for each text, in order."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


class Answering(Engine, Serving, Protocol):
    """An engine for one caller or for many."""


@dataclass(frozen=True)
class Asking:
    """What an engine is made of.

    named: adapters that requests choose by name; those of `info` which are none of them are always active.
    places: as in Served; for engines of others.
    max_logprobs: most log-probabilities per token that a request may ask for.
    """

    command: Infer
    info: ModelInfo
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: Sequence[int] = ()
    named: Mapping[str, Path] | None = None
    places: int = 0
    max_logprobs: int = 20

    @property
    def always(self) -> list[Path]:
        """The adapters of every request."""
        return [folder for folder in self.info.adapters if folder not in (self.named or {}).values()]


def check_backend(command: Infer) -> None:
    """Look for the package of `--infer_backend`, and for a GPU where it needs one, before anything is read.

    Raises MissingPackage with the line that installs it, or EngineError.
    """
    backend = command.infer.infer_backend
    if backend == "transformers":
        return
    need_installed(backend, f"--infer_backend {backend}")
    if backend in ONLY_GPUS:
        check_gpu(backend)


def open_engine(asking: Asking) -> Answering:
    """The engine of `--infer_backend`, with the model of a command and its adapters. Raises SwiftError."""
    return ENGINES[asking.command.infer.infer_backend](asking)


def open_scoring(asking: Asking, head: Head) -> Scoring:
    """The same for tasks other than writing."""
    if asking.command.infer.infer_backend == "vllm":
        with _served(asking) as served:
            return VllmScoring(served, head, asking.tokenizer, asking.command.vllm)
    model = with_padding(_loaded(asking), asking.tokenizer, asking.command.model.task_type)
    made = _adapted(asking, model)
    return ScoringEngine(made, head, max_batch_size=asking.command.infer.max_batch_size)


def at_once(command: Infer, step: int) -> int:
    """How many prompts an engine is handed at a time, of which ours takes `step` batches; -1 is all."""
    if command.infer.infer_backend == "transformers":
        return step * command.infer.max_batch_size if command.infer.max_batch_size > 0 else -1
    return STEPS * command.vllm.vllm_max_num_seqs if command.infer.infer_backend == "vllm" else PROMPTS


# ------------------------------------------------------------------------------------------------------------- engines


def _transformers(asking: Asking) -> Answering:
    model = _adapted(asking, _loaded(asking))
    pack(model)
    return Transformers(
        model, asking.tokenizer, max_batch_size=asking.command.infer.max_batch_size,
        stop_token_ids=asking.stop_token_ids, context_length=asking.info.max_length,
    )  # fmt: skip


def _vllm(asking: Asking) -> Answering:
    options = asking.command.vllm
    with _served(asking) as served:
        return Vllm(
            served, asking.tokenizer, options, stop_token_ids=asking.stop_token_ids,
            uses_async=bool(options.vllm_use_async_engine),
        )  # fmt: skip


def _sglang(asking: Asking) -> Answering:
    with _served(asking) as served:
        return sglang_engine(served, asking.tokenizer, asking.command.sglang, asking.stop_token_ids)


def _lmdeploy(asking: Asking) -> Answering:
    generation = asking.command.generation
    tells = bool(generation.logprobs or generation.top_logprobs)
    with _served(asking) as served:
        return lmdeploy_engine(served, asking.tokenizer, asking.command.lmdeploy, asking.stop_token_ids, tells=tells)


ENGINES: dict[str, Callable[[Asking], Answering]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "sglang": _sglang,
    "lmdeploy": _lmdeploy,
}
"""`--infer_backend` -> what makes its engine."""
SIZES = {
    "vllm": ("vllm_tensor_parallel_size", "vllm_pipeline_parallel_size"),
    "sglang": ("sglang_tp_size", "sglang_pp_size"),
    "lmdeploy": ("lmdeploy_tp",),
}
"""`--infer_backend` -> the options whose product is the number of GPUs of one process."""


# --------------------------------------------------------------------------------------------------------------- models


def _loaded(asking: Asking) -> PreTrainedModel:
    command = asking.command
    return with_room(load_model(asking.info, command.model, command.quantization, training=False), asking.tokenizer)


def _adapted(asking: Asking, model: PreTrainedModel) -> Any:
    folders = asking.info.adapters
    return merge(model, folders) if asking.command.merge.merge_lora else load_adapters(model, folders)


@contextmanager
def _served(asking: Asking) -> Iterator[Served]:
    """What an engine of others is to serve; it has read the folder when the block ends."""
    info, named = asking.info, dict(asking.named or {})
    method = asking.command.quantization.quant_method
    if method is not None:
        get_logger().warning("quant_method = %s in training: the engine serves the weights as they are stored", method)
    if not asking.command.merge.merge_lora:
        yield _described(asking, info.path, asking.always, named)
        return
    with TemporaryDirectory(prefix="swift-merged-") as name:
        folder = Path(name)
        _write_merged(asking, folder)
        yield _described(asking, folder, [], named)


def _described(asking: Asking, folder: Path, always: Sequence[Path], named: Mapping[str, Path]) -> Served:
    command, info = asking.command, asking.info
    if len(always) > 1:
        raise UsageError(
            f"--infer_backend {command.infer.infer_backend} puts one adapter on a request, and --adapters names "
            f"{len(always)} that are always active. Merge them (--merge_lora true), or use --infer_backend transformers."
        )
    return Served(
        folder,
        dtype=info.dtype,
        context_length=info.max_length,
        adapters=named,
        always=always[0] if always else None,
        places=asking.places,
        max_logprobs=max(asking.max_logprobs, command.generation.top_logprobs or 0),
        seed=command.general.seed,
        overrides=_stretched(info) if folder == info.path else {},
        trusts_code=info.needs_remote_code,
        devices=_devices(command),
    )


def _write_merged(asking: Asking, folder: Path) -> None:
    """The model with its adapters in its weights, as others read it."""
    options = asking.command.model
    if options.device_map is None:
        options = options.model_copy(update={"device_map": "cpu"})  # the engine will need the memory of the devices
    model = with_room(load_model(asking.info, options, training=False), asking.tokenizer)
    merged = merge(with_padding(model, asking.tokenizer, options.task_type), asking.always)
    get_logger().info("the merged model goes to %s until the engine has read it", folder)
    size = shard_size(asking.command.merge.max_shard_size)
    write_weights(merged, folder, max_shard_size=size, safe=True)
    copy_companions(asking.info.path, asking.always, folder, saved_files(asking.info))


def _stretched(info: ModelInfo) -> dict[str, Any]:
    """What `--rope_scaling` and `--max_model_len` change in the config."""
    plan = info.rope
    if plan.scaling is None and plan.config_length is None:
        return {}
    config = load_config(info)
    text = config.get_text_config()
    changed = {"rope_parameters": text.rope_parameters, "max_position_embeddings": text.max_position_embeddings}
    return changed if text is config else {"text_config": changed}


def _devices(command: Infer) -> tuple[int, ...]:
    """The GPUs of this process where several share the rows; () leaves the choice to the engine."""
    if environment.world_size() == 1 or not torch.cuda.is_available():
        return ()
    values = command.values()
    size = prod(values[name] for name in SIZES[command.infer.infer_backend])
    first = environment.local_rank() * size
    return tuple(range(first, first + size))
