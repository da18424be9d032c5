"""This file knows the engines that are made in Python, one class for each `--infer_backend`, and what each is given.

A keyword is an option of `swift infer`, or one of its engine without the name of the engine in front:
`VllmEngine("my/model", max_model_len=4096)` is `--infer_backend vllm --vllm_max_model_len 4096`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from swift.chat.render import Renderer
from swift.commands import infer, infer_tasks
from swift.commands.asking import ModelEngine, Opened
from swift.commands.backends import check_backend
from swift.commands.begin import begin
from swift.core.errors import UsageError
from swift.engines.chat import Chat
from swift.engines.requests import AdapterRequest
from swift.engines.transformers import Transformers
from swift.engines.vllm_reasoning import ReasoningParser
from swift.hub.models import access, model_folder
from swift.options.commands import Infer
from swift.options.data import DataOptions
from swift.options.engines import LmdeployOptions, SglangOptions, VllmOptions
from swift.options.generation import GenerationOptions
from swift.options.parse import parse
from swift.options.serving import InferOptions
from swift.options.template import TemplateOptions

OWN = {"vllm": VllmOptions, "sglang": SglangOptions, "lmdeploy": LmdeployOptions}
"""Engine -> the options that begin with its name."""
FURTHER = {
    "transformers": (),
    "vllm": ("data_parallel_size", "distributed_executor_backend", "load_format", "max_logprobs"),
    "sglang": ("enable_lora", "log_level", "lora_target_modules", "max_lora_rank", "max_loras_per_batch"),
    "lmdeploy": ("devices",),
}
"""Engine -> keywords that are arguments of the engine itself, as those in `engine_kwargs` are."""
HEEDED = {
    "transformers": ("max_batch_size", "reranker_use_activation"),
    "vllm": ("reranker_use_activation",),
    "sglang": (),
    "lmdeploy": ("logprobs", "top_logprobs"),
}
"""Engine -> what it heeds of the options of `swift infer` that say how a run over a data set goes on."""
Adapters = Sequence[str | AdapterRequest] | str | AdapterRequest
"""Adapters of requests that name none, by folder or id, and those that requests name."""


class TransformersEngine(ModelEngine):
    """A model of transformers that is asked from Python.

    model_id_or_path: what `--model` takes; or a model in memory, which is used as it is and needs its `tokenizer`.
    adapters: what `--adapters` takes: these are always in effect. An AdapterRequest among them, or with a later request,
        is in effect for requests that name it.
    strict: whether a request that cannot be asked is an error; else the error takes the place of its response.
    options: further options of `swift infer`, by name: template="chatml", max_length=2048, task_type="embedding".

    What a checkpoint was trained with, its template and system and lengths, is read from its args.json.
    """

    def __init__(
        self, model_id_or_path: str | Path | nn.Module, adapters: Adapters = (), *, max_batch_size: int = 1,
        tokenizer: PreTrainedTokenizerBase | None = None, strict: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        fixed, named = _parted(adapters)
        if isinstance(model_id_or_path, nn.Module):
            if tokenizer is None or fixed:
                raise UsageError("A model in memory comes with its tokenizer=..., and with its adapters on it.")
            opened = _in_memory(model_id_or_path, tokenizer, max_batch_size, TemplateOptions(**options))
        else:
            options["max_batch_size"] = max_batch_size
            opened = _opened(infer_command("transformers", model_id_or_path, fixed, options), fixed)
        super().__init__(opened, strict=strict)
        for each in named:
            self._adapter(each)


class VllmEngine(ModelEngine):
    """A model that vLLM serves, asked from Python.

    model_id_or_path, strict: as in TransformersEngine.
    adapters: one that `--adapters` takes is in effect for requests that name none; AdapterRequests, for those that name it.
    enable_lora: whether requests may name adapters that are not among these.
    max_loras: how many adapters share a batch. Without a GPU there may be no more of them at all.
    reasoning_parser: the name of vLLM's parser that tells thinking (`reasoning_content`) from words; None leaves it in the
        text.
    options: those of the engine (use_async_engine, tensor_parallel_size, gpu_memory_utilization, max_model_len,
        max_num_seqs, enforce_eager, max_lora_rank, engine_kwargs={...}), and further ones of `swift infer`.

    With use_async_engine=False, which has less overhead, there is no `infer_async`.
    Raises MissingPackage without vLLM, EngineError when its engine cannot be started.
    """

    def __init__(
        self, model_id_or_path: str | Path, adapters: Adapters = (), *, enable_lora: bool = False,
        max_loras: int | None = None, reasoning_parser: str | None = None, strict: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        if max_loras is not None and (max_loras < 1 or not enable_lora):
            raise UsageError(f"max_loras = {max_loras}: it is a number from 1 on, with enable_lora=True.")
        options.setdefault("use_async_engine", True)
        if (options.get("data_parallel_size") or 1) > 1 and not options["use_async_engine"]:
            raise UsageError("data_parallel_size above 1 needs use_async_engine=True.")
        fixed, named = _parted(adapters)
        command = infer_command("vllm", model_id_or_path, fixed, options)
        opened = _opened(command, fixed, named, (max_loras or 1) if enable_lora else 0)
        super().__init__(_thinking(opened, reasoning_parser), strict=strict)


class SglangEngine(ModelEngine):
    """A model that SGLang serves, asked from Python.

    model_id_or_path, adapters, strict: as in VllmEngine. Adapters that are not there at the start need `enable_lora=True`,
        `max_lora_rank` and `lora_target_modules`.
    options: those of the engine (tp_size, mem_fraction_static, context_length, engine_kwargs={...}), and further ones of
        `swift infer`.

    Raises MissingPackage without SGLang, EngineError without a GPU, or when its engine cannot be started.
    """

    def __init__(
        self, model_id_or_path: str | Path, adapters: Adapters = (), *, strict: bool = True, **options: Any
    ) -> None:  # fmt: skip
        fixed, named = _parted(adapters)
        super().__init__(
            _opened(infer_command("sglang", model_id_or_path, fixed, options), fixed, named), strict=strict
        )  # fmt: skip


class LmdeployEngine(ModelEngine):
    """A model that LMDeploy serves, asked from Python.

    model_id_or_path, adapters, strict: as in VllmEngine. All adapters have to be there at the start.
    options: those of the engine (tp, session_len, cache_max_entry_count, quant_policy, engine_kwargs={...}), and further
        ones of `swift infer`; logprobs=True where requests will ask for log-probabilities, which chooses the engine that
        tells them.

    Raises MissingPackage without LMDeploy, EngineError without a GPU, or when its engine cannot be started.
    """

    def __init__(
        self, model_id_or_path: str | Path, adapters: Adapters = (), *, strict: bool = True, **options: Any
    ) -> None:  # fmt: skip
        fixed, named = _parted(adapters)
        super().__init__(
            _opened(infer_command("lmdeploy", model_id_or_path, fixed, options), fixed, named), strict=strict
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- options


def infer_command(backend: str, model: str | Path, adapters: Sequence[str], options: Mapping[str, Any]) -> Infer:
    """The command that opens a model as these keywords say. Raises UsageError for keywords that have no effect."""
    own = OWN[backend].model_fields if backend in OWN else {}
    given: dict[str, Any] = {}
    further: dict[str, Any] = {}
    for name, value in options.items():
        if name in FURTHER[backend]:
            further[name] = value
            continue
        option = f"{backend}_{name}" if f"{backend}_{name}" in own else name
        if option in given:
            raise UsageError(f"{name} and {option} are the same, and both are given. Drop one of them.")
        given[option] = value
    first = {"model": str(model), "infer_backend": backend, "adapters": list(adapters)}
    twice = [name for name in first if name in given]
    if twice:
        raise UsageError(f"{twice[0]} is no keyword of an engine: its class, or its first arguments say it.")
    _check_effect(backend, given)
    if further:
        kwargs = f"{backend}_engine_kwargs"
        given[kwargs] = {**further, **(given.get(kwargs) or {})}
    return parse("infer", _words({**first, **given}))


def _check_effect(backend: str, given: Iterable[str]) -> None:
    """Raises UsageError for options of `swift infer` that an engine has no use for."""
    problems = []
    for name in given:
        if name in HEEDED[backend]:
            continue
        if name in GenerationOptions.model_fields:
            problems.append(f"{name} is said with each request, by its RequestConfig.")
        elif name in DataOptions.model_fields or name in InferOptions.model_fields:
            problems.append(f"{name} has no effect: it is about how `swift infer` goes through a data set.")
    if problems:
        raise UsageError(*problems)


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as the words of a command line; those that are None or empty are not given."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value == []:
            continue
        words.append(f"--{name}")
        if isinstance(value, bool):
            words.append(str(value).lower())
        elif isinstance(value, (list, tuple)):
            words += [str(each) for each in value]
        elif isinstance(value, torch.dtype):
            words.append(str(value).removeprefix("torch."))
        else:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return words


def _parted(adapters: Adapters) -> tuple[list[str], list[AdapterRequest]]:
    """The adapters of requests that name none, and those that requests name."""
    several = [adapters] if isinstance(adapters, (str, AdapterRequest)) else adapters
    named = [each for each in several if isinstance(each, AdapterRequest)]
    names = [each.name for each in named]
    if len(set(names)) < len(names):
        raise UsageError(f"Each adapter has a name of its own (got {', '.join(names)}).")
    return [each for each in several if not isinstance(each, AdapterRequest)], named


# -------------------------------------------------------------------------------------------------------------- models


def _opened(
    command: Infer, fixed: Sequence[str], named: Sequence[AdapterRequest] = (), places: int = 0
) -> Opened:  # fmt: skip
    """The model of a command. named: adapters that its engine is to know from the start; places: as in Served."""
    command = begin(command, command.general)
    check_backend(command)
    hub = access(command.general)
    if command.model.task_type != "causal_lm":
        if named or places:
            raise UsageError(f"task_type = {command.model.task_type}: requests choose adapters of models that write.")
        command, info = infer_tasks.settled(command)
        reader = infer_tasks.open_reader(command, info)
        return Opened(info.name, command.template, info.max_length, reader=reader)
    folders = {each.name: model_folder(each.path, "AdapterRequest", hub, None) for each in named}
    chat, info = infer.open_chat(command, folders, places)
    engine: Any = chat.engine
    paths = {each.name: each.path for each in named}
    return Opened(info.name, command.template, engine.context_length, chat, adapters=paths, fixed=fixed, hub=hub)


def _thinking(opened: Opened, name: str | None) -> Opened:
    """The model with vLLM's parser of this name. Raises UsageError where there is none, or nothing to read with it."""
    if name is None:
        return opened
    if opened.chat is None:
        opened.close()
        raise UsageError(f"reasoning_parser = {name} has no effect: the model does not write.")
    engine: Any = opened.chat.engine
    try:
        return replace(opened, parser=ReasoningParser(name, engine.tokenizer))
    except UsageError:
        opened.close()
        raise


def _in_memory(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, max_batch_size: int, options: TemplateOptions
) -> Opened:  # fmt: skip
    renderer = Renderer(tokenizer, options)
    made: Any = model
    engine = Transformers(made, tokenizer, max_batch_size=max_batch_size, stop_token_ids=renderer.stop_token_ids)
    return Opened(type(made).__name__, options, engine.context_length, Chat(renderer, engine))
