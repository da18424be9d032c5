"""This file knows which modules of a model an option means: `all-linear`, suffixes, a regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from swift.core.errors import ModelError, UsageError
from swift.core.logs import get_logger
from swift.core.registry import nearest
from swift.models.heads import head_names
from swift.options.tuner import TunerOptions

HEADS = frozenset({"lm_head", "score", "v_head", "classifier"})
"""Output layers, which `all-linear` leaves out whatever the model calls its own."""
ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)
"""Modules that low-rank matrices can be added to."""


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: torch's, GPT-2's Conv1D, or a quantized one, which has a class of its own."""
    named = "linear" in type(module).__name__.lower() and not list(module.children())
    return isinstance(module, (nn.Linear, Conv1D)) or named


def is_embedding(module: nn.Module) -> bool:
    """Whether a module is a table of embeddings."""
    return isinstance(module, nn.Embedding)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: models bring RMSNorm classes of their own, so the name of the class decides."""
    return "norm" in type(module).__name__.lower() and not list(module.children())


def target_modules(model: PreTrainedModel, options: TunerOptions) -> list[str] | str:
    """What peft is given as `target_modules`: suffixes of module names, or a regular expression for whole names.

    `--target_regex` stands above `--target_modules`. In the list, `all-linear` and `all-embedding` become suffixes.
    Raises ModelError for an entry that names no module, or one that no adapter can be added to.
    """
    if options.target_regex is not None:
        return _regex(model, options.target_regex)
    suffixes: list[str] = []
    for entry in options.target_modules:
        if entry == "all-linear":
            suffixes += _without_redirected(model, all_linear(model))
        elif entry == "all-embedding":
            suffixes += _all(model, is_embedding, entry, "--target_modules")
        else:
            suffixes.append(entry)
            _require_adaptable(model, _ending_with(model, entry, "--target_modules"), entry, "--target_modules")
            if redirected(model, [entry]):
                raise _redirection(f"--target_modules {entry}")
    if not suffixes and not options.target_parameters:
        raise ModelError(
            "--target_modules is empty, so nothing would be trained. Give all-linear, or names of modules."
        )
    return list(dict.fromkeys(suffixes))


def target_parameters(model: nn.Module, options: TunerOptions) -> list[str]:
    """What peft is given as `target_parameters`: endings of names of parameters, such as a MoE layer's fused experts.

    Raises ModelError for an entry that names no parameter, or one of another shape than a matrix, or a stack of them.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    for entry in options.target_parameters or ():
        found = [name for name in names if name == entry or name.endswith(f".{entry}")]
        if not found:
            experts = sorted({".".join(name.split(".")[-3:]) for name, value in names.items() if value.ndim == 3})
            hint = f"Stacks of matrices in it are: {', '.join(experts)}." if experts else near_names(model, entry)
            raise ModelError(f"--target_parameters {entry} names no parameter of the model. {hint}")
        wrong = next((name for name in found if names[name].ndim not in (2, 3)), None)
        if wrong is not None:
            raise ModelError(
                f"--target_parameters {entry} names {wrong} of shape {tuple(names[wrong].shape)}, and LoRA is for "
                f"matrices and stacks of them."
            )
    return list(dict.fromkeys(options.target_parameters or ()))


def modules_to_save(model: PreTrainedModel, options: TunerOptions) -> list[str]:
    """The modules trained and saved whole beside the adapter, as suffixes; `all-embedding` and `all-norm` are filled in.

    The head of a classifier is always among them. Raises ModelError for an entry that names no module.
    """
    suffixes: list[str] = head_names(model)
    for entry in options.modules_to_save:
        if entry == "all-embedding":
            suffixes += _all(model, is_embedding, entry, "--modules_to_save")
        elif entry == "all-norm":
            suffixes += _all(model, is_norm, entry, "--modules_to_save")
        else:
            _ending_with(model, entry, "--modules_to_save")
            suffixes.append(entry)
    return list(dict.fromkeys(suffixes))


def token_rows(
    model: PreTrainedModel, targets: list[str] | str, saved: Sequence[str], ids: Sequence[int]
) -> dict[str, list[int]] | None:
    """The rows of embedding and output layer that are trained for new tokens: name of the layer -> ids; None for none.

    A layer trained whole needs no rows. Raises UsageError when one of them has an adapter, which its rows cannot have.
    """
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [name for name, module in model.named_modules() if ids and any(module is layer for layer in layers)]
    rows = [name for name in names if not is_named(name, saved)]
    adapted = [name for name in rows if is_named(name, targets)]
    if adapted:
        last = " ".join(dict.fromkeys(name.rpartition(".")[2] for name in rows))
        raise UsageError(
            f"--new_special_tokens: {', '.join(adapted)} is among --target_modules, and a layer with an adapter cannot "
            f"learn rows for new tokens too. Leave it out, or train it whole: --modules_to_save {last}."
        )
    return {name: list(ids) for name in rows} or None


def is_named(name: str, targets: Sequence[str] | str) -> bool:
    """Whether a module is meant by suffixes, or by a regular expression of whole names."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in targets)


def all_linear(model: PreTrainedModel) -> list[str]:
    """The shortest suffixes that name all linear layers but the output layer, and nothing else, in model order.

    Raises ModelError when there are none.
    """
    head = model.get_output_embeddings()

    def wanted(name: str, module: nn.Module) -> bool:
        return is_linear(module) and module is not head and not HEADS.intersection(name.split("."))

    found = unique_suffixes(model, wanted)
    if not found:
        raise ModelError(
            "--target_modules all-linear: the model has no linear layers. Name modules, or use another one."
        )
    return found


def unique_suffixes(model: nn.Module, wanted: Callable[[str, nn.Module], bool]) -> list[str]:
    """The shortest suffixes that name every wanted module and no other, in the order of the model."""
    names, others = [], set()
    for name, module in model.named_modules():
        if wanted(name, module):
            names.append(name)
        else:
            others.update(_suffixes(name))
    shortest = (next((suffix for suffix in _suffixes(name) if suffix not in others), name) for name in names)
    return list(dict.fromkeys(shortest))


def near_names(model: nn.Module, entry: str) -> str:
    """The names in a model that `entry` may have meant, in words for an error."""
    endings = {suffix for name, _ in model.named_modules() for suffix in _suffixes(name) if not suffix[0].isdigit()}
    near = nearest(entry, sorted(endings), count=4)
    if near:
        return f"Near it are: {', '.join(near)}."
    last = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if not list(module.children())})
    return f"The model's modules end in: {', '.join(name for name in last if name)}."


def _regex(model: PreTrainedModel, pattern: str) -> str:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--target_regex is no regular expression: {error} (got {pattern!r}).") from None
    found = [name for name, _ in model.named_modules() if compiled.fullmatch(name)]
    if not found:
        example = next((name for name, module in model.named_modules() if is_linear(module)), "")
        raise ModelError(
            f"--target_regex {pattern!r} matches no module: it must match whole names, such as {example}. "
            f"{near_names(model, pattern)}"
        )
    _require_adaptable(model, found, pattern, "--target_regex")
    if redirected(model, pattern):
        raise _redirection(f"--target_regex {pattern!r}")
    return pattern


def redirected(model: PreTrainedModel, targets: list[str] | str) -> bool:
    """Whether peft takes names of linear layers for those of experts that a mixture of experts holds as one parameter.

    So that older adapters load, peft reads `gate_proj` of such a model as its experts' fused `gate_up_proj`, and then
    leaves the dense and shared layers of that name without an adapter.
    """
    probe = LoraConfig(target_modules=targets)
    try:
        convert_peft_config_for_transformers(probe, model, None)
    except ValueError:  # names that fuse into one parameter were not given together
        return True
    return bool(probe.target_parameters)


def _without_redirected(model: PreTrainedModel, suffixes: list[str]) -> list[str]:
    """Suffixes without those that would reach experts in place of layers; what is left out is said."""
    lost = [suffix for suffix in suffixes if redirected(model, [suffix])]
    if lost:
        get_logger().warning(
            "--target_modules all-linear leaves out %s: in this mixture of experts peft takes these names for the "
            "experts' fused parameters. The other linear layers are adapted.",
            ", ".join(lost),
        )
    return [suffix for suffix in suffixes if suffix not in lost]


def _redirection(option: str) -> ModelError:
    return ModelError(
        f"{option} names layers that this mixture of experts also has inside its experts, as one fused parameter: peft "
        f"would adapt the experts and leave the named layers as they are. Leave these names out; experts are adapted with "
        f"--target_parameters."
    )


def _all(model: nn.Module, kind: Callable[[nn.Module], bool], entry: str, option: str) -> list[str]:
    found = unique_suffixes(model, lambda _, module: kind(module))
    if not found:
        raise ModelError(f"{option} {entry}: the model has no such modules. {near_names(model, entry)}")
    return found


def _ending_with(model: nn.Module, suffix: str, option: str) -> list[str]:
    """The modules whose name ends with a suffix, at a dot."""
    found = [name for name, _ in model.named_modules() if name == suffix or name.endswith(f".{suffix}")]
    if not found:
        raise ModelError(f"{option} {suffix} names no module of the model. {near_names(model, suffix)}")
    return found


def _require_adaptable(model: nn.Module, names: Sequence[str], entry: str, option: str) -> None:
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, ADAPTABLE) and not is_linear(module):
            inside = [child for child, grandchild in module.named_modules() if isinstance(grandchild, ADAPTABLE)]
            hint = f"Inside it are: {', '.join(inside[:6])}." if inside else near_names(model, entry)
            raise ModelError(
                f"{option} {entry} names {name}, a {type(module).__name__}, which no adapter can be added to: it is "
                f"neither linear, nor an embedding, nor a convolution. {hint}"
            )


def _suffixes(name: str) -> Iterable[str]:
    """`a.b.c` -> c, b.c, a.b.c."""
    parts = name.split(".") if name else []
    return (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
