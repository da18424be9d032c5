"""This file knows what a family of models is: an architecture, a way of loading it, and the templates it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

Task = Literal["causal_lm", "seq_cls", "embedding", "reranker", "generative_reranker", "prm", "masked_lm"]


@dataclass(frozen=True)
class Family:
    """What `--model_type` names. It is not the `model_type` of config.json.

    architectures: the classes that config.json names.
    templates: names of layouts; where there are several, the name of the checkpoint tells which.
    names: patterns of checkpoints' names in lower case, as `pattern` or `pattern=template`; the first that fits counts,
        and without a template the first of `templates` is meant.
    task: what its models do unless `--task_type` says otherwise.
    is_native: whether transformers knows the architecture, so that no code of the checkpoint is needed.
    note: what is known beside.
    parts: the name of its module group (`catalog.parts`), where it has parts beside a language model.
    loader: the class that loads it (`models.loader.ModelLoader` or one derived from it); None is transformers' own way.
    dtype: the type its weights are loaded in, whatever its config says.
    saved_files: files of the checkpoint that are copied beside saved weights.
    ignored_files: patterns of files that are not fetched from a hub, in place of the usual ones.
    requires: packages its loading needs, as `name` or `name>=version`.
    repository: the repository of source code that its loader imports from, which `--local_repo_path` has a clone of.
    is_multimodal: whether it reads images, video or audio.
    """

    name: str
    architectures: tuple[str, ...]
    templates: tuple[str, ...]
    names: tuple[str, ...] = ()
    task: Task = "causal_lm"
    is_native: bool = True
    note: str = ""
    parts: str = ""
    loader: type | None = None
    dtype: str | None = None
    saved_files: tuple[str, ...] = ()
    ignored_files: tuple[str, ...] | None = None
    requires: tuple[str, ...] = ()
    repository: str = ""
    is_multimodal: bool = False

    def knows(self, checkpoint: str) -> bool:
        """Whether a checkpoint of that name is one of this family's."""
        return any(fnmatchcase(checkpoint.lower(), name.partition("=")[0]) for name in self.names)

    def template(self, checkpoint: str) -> str | None:
        """The template of the checkpoint of that name; None when there are several and the name does not tell."""
        for name in self.names:
            pattern, _, template = name.partition("=")
            if fnmatchcase(checkpoint.lower(), pattern):
                return template or self.templates[0]
        return self.templates[0] if len(self.templates) == 1 else None
