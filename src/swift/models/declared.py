"""This file knows models that plugins declare: which checkpoints they are, and how those are loaded."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from packaging.requirements import InvalidRequirement, Requirement

from swift.catalog.families_text import FAMILIES
from swift.catalog.family import Family, Task
from swift.catalog.parts import PARTS, Parts
from swift.core.errors import UsageError
from swift.models.loader import ModelLoader


@dataclass(frozen=True)
class Model:
    """A checkpoint by its names: the id on ModelScope, the id on Hugging Face, a local folder."""

    ms_model_id: str | None = None
    hf_model_id: str | None = None
    model_path: str | None = None

    @property
    def names(self) -> list[str]:
        """Its last components in lower case, by which a checkpoint is recognised."""
        given = (self.ms_model_id, self.hf_model_id, self.model_path)
        return list(dict.fromkeys(name.rstrip("/").rpartition("/")[2].lower() for name in given if name))


@dataclass(frozen=True)
class ModelGroup:
    """Checkpoints that speak one template, where those of a family do not all speak the same."""

    models: Sequence[Model]
    template: str | None = None


@dataclass(frozen=True)
class MultiModelKeys:
    """A module group: prefixes of modules for each part of a model."""

    arch_name: str
    language_model: str | Sequence[str] = ()
    aligner: str | Sequence[str] = ()
    vision_tower: str | Sequence[str] = ()
    generator: str | Sequence[str] = ()


@dataclass(frozen=True)
class ModelMeta:
    """A family of models.

    model_type: its name, the value of --model_type.
    model_groups: the checkpoints that are recognised by their names.
    loader: what loads them; derive it from `ModelLoader`.
    template: the value of --template for those that bring no chat template.
    model_arch: the name of the module group, or the group itself.
    architectures: the classes in `architectures` of config.json by which a checkpoint is recognised.
    additional_saved_files: files of the checkpoint that are copied beside saved weights.
    torch_dtype: the type weights are loaded in unless --torch_dtype says otherwise.
    is_multimodal, is_reward: whether it reads images, video or audio; whether it gives a reward.
    task_type: what its models do unless --task_type says otherwise.
    ignore_patterns: files that are not fetched from a hub, in place of the usual ones.
    requires: packages it needs, as `name` or `name>=version`; what is missing is warned of.
    tags: words about it, shown by `swift check`.
    repository: the repository of source code the loader imports from; then --local_repo_path is asked for.
    """

    model_type: str
    model_groups: Sequence[ModelGroup] = ()
    loader: type[ModelLoader] = ModelLoader
    template: str | None = None
    model_arch: str | MultiModelKeys | None = None
    architectures: Sequence[str] = ()
    additional_saved_files: Sequence[str] = ()
    torch_dtype: Literal["float16", "bfloat16", "float32"] | None = None
    is_multimodal: bool = False
    is_reward: bool = False
    task_type: Task | None = None
    ignore_patterns: Sequence[str] | None = None
    requires: Sequence[str] = ()
    tags: Sequence[str] = ()
    repository: str = ""


def register_model(meta: ModelMeta, *, exist_ok: bool = False) -> None:
    """Make a family known under its name.

    Raises UsageError for a name that is taken, unless `exist_ok`, and for a module group that is not registered.
    """
    if meta.model_type in FAMILIES and not exist_ok:
        raise UsageError(f"The model type {meta.model_type!r} is registered already; choose another name.")
    FAMILIES[meta.model_type] = family_of(meta)


def register_model_arch(keys: MultiModelKeys, *, exist_ok: bool = False) -> None:
    """Make a module group known under its name. Raises UsageError for a name that is taken, unless `exist_ok`."""
    parts = (keys.language_model, keys.aligner, keys.vision_tower, keys.generator)
    PARTS.add(keys.arch_name, Parts(keys.arch_name, *(_prefixes(part) for part in parts)), replace=exist_ok)


def family_of(meta: ModelMeta) -> Family:
    """The row of the catalog that a declaration stands for. Raises UsageError for what it cannot mean."""
    _check(meta)
    if isinstance(meta.model_arch, MultiModelKeys):
        register_model_arch(meta.model_arch, exist_ok=True)
    named = [
        glob.escape(name) + (f"={group.template}" if group.template else "")
        for group in meta.model_groups for model in group.models for name in model.names
    ]  # fmt: skip
    templates = [meta.template, *(group.template for group in meta.model_groups)]
    task: Task = "seq_cls" if meta.is_reward else "causal_lm"
    notes = (*meta.tags, *(["reward model"] if meta.is_reward else []))
    return Family(
        meta.model_type,
        architectures=tuple(meta.architectures),
        templates=tuple(dict.fromkeys(name for name in templates if name)),
        names=tuple(named),
        task=meta.task_type or task,
        is_native=not meta.loader.trust_remote_code,
        note=", ".join(notes),
        parts=meta.model_arch.arch_name if isinstance(meta.model_arch, MultiModelKeys) else meta.model_arch or "",
        loader=meta.loader,
        dtype=meta.torch_dtype,
        saved_files=tuple(meta.additional_saved_files),
        ignored_files=None if meta.ignore_patterns is None else tuple(meta.ignore_patterns),
        requires=tuple(meta.requires),
        repository=meta.repository,
        is_multimodal=meta.is_multimodal,
    )


def _check(meta: ModelMeta) -> None:
    problems = []
    if isinstance(meta.model_arch, str) and meta.model_arch not in PARTS:
        problems.append(f"its model_arch {meta.model_arch!r} is not registered; call register_model_arch first.")
    if not (isinstance(meta.loader, type) and issubclass(meta.loader, ModelLoader)):
        problems.append(f"its loader must be a class derived from swift.model.ModelLoader (got {meta.loader!r}).")
    if meta.task_type is not None and meta.task_type not in get_args(Task):
        problems.append(f"its task_type must be one of {', '.join(get_args(Task))} (got {meta.task_type!r}).")
    problems += [
        f"{need!r} among its requires is no requirement such as name>=1.0."
        for need in meta.requires
        if not _is_requirement(need)
    ]
    if not (meta.architectures or meta.model_groups):
        problems.append("nothing tells its checkpoints: give architectures or model_groups.")
    if problems:
        raise UsageError(*(f"The model type {meta.model_type!r}: {problem}" for problem in problems))


def _is_requirement(text: str) -> bool:
    try:
        Requirement(text)
    except InvalidRequirement:
        return False
    return True


def _prefixes(part: str | Sequence[str]) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else tuple(part)
