"""This file knows how the checkpoint of a family becomes a config, a tokenizer and a model, and how a plugin changes that."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from packaging.requirements import Requirement
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from swift.catalog.families_text import FAMILIES
from swift.catalog.family import Family
from swift.core.logs import get_logger

if TYPE_CHECKING:
    from swift.models.info import ModelInfo


class ModelLoader:
    """Reads a checkpoint the way transformers does; derive from it and name it in `ModelMeta(loader=...)`.

    info: what the checkpoint says of itself. report: what transformers found on loading, by the keys of its loading
    report (`missing_keys`, `unexpected_keys`, ...); {} from a loader that does not call `get_model` of this class.
    auto: the class of transformers that reads the weights, by `--task_type`.
    trust_remote_code: whether Python code that comes with the checkpoint is run.
    """

    trust_remote_code: ClassVar[bool] = False

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.report: Mapping[str, Any] = {}
        self.auto: Any = AutoModelForCausalLM

    def get_config(self, model_dir: str) -> PreTrainedConfig:
        """The config. `--rope_scaling` and `--max_model_len` are applied to it afterwards."""
        return AutoConfig.from_pretrained(
            model_dir, local_files_only=True, trust_remote_code=self.trust_remote_code
        )  # fmt: skip

    def get_processor(self, model_dir: str, config: PreTrainedConfig | None) -> Any:
        """The tokenizer. `config` is None where nothing but the tokenizer is loaded."""
        return AutoTokenizer.from_pretrained(
            model_dir, config=config, local_files_only=True, trust_remote_code=self.trust_remote_code
        )

    def get_model(
        self,
        model_dir: str,
        config: PreTrainedConfig,
        processor: Any,  # noqa: ARG002 (for the loaders of plugins)
        model_kwargs: dict[str, Any],
    ) -> PreTrainedModel:
        """The model with its weights.

        processor: what `get_processor` gave, for those who need it; transformers does not.
        model_kwargs: what `from_pretrained` takes besides: dtype, device_map, max_memory, attention, quantization.
        """
        loaded: Any = self.auto.from_pretrained(
            model_dir, config=config, trust_remote_code=self.trust_remote_code, output_loading_info=True, **model_kwargs
        )
        model, self.report = loaded
        return model


class RemoteCodeLoader(ModelLoader):
    """Reads a checkpoint with the Python code that comes with it (`auto_map` in its config.json).

    That code runs with all rights of the user. Naming this class in a plugin is the consent to it.
    """

    trust_remote_code: ClassVar[bool] = True


def loader_of(info: ModelInfo) -> ModelLoader:
    """The loader of the checkpoint's family, with the clone of `--local_repo_path` importable."""
    if info.repository is not None and str(info.repository) not in sys.path:
        sys.path.insert(0, str(info.repository))
    row = row_of(info.family)
    return ModelLoader(info) if row is None or row.loader is None else row.loader(info)


def warn_of_missing(info: ModelInfo) -> None:
    """Warn of packages that the family of a checkpoint wants and that are not installed, or not in that version."""
    row = row_of(info.family)
    lacking = [need for need in (row.requires if row else ()) if not _is_met(Requirement(need))]
    if row is not None and lacking:
        wanted = " ".join(f"'{need}'" for need in lacking)
        get_logger().warning(
            "models of the family %s want other packages than there are: pip install %s", row.name, wanted
        )


def _is_met(need: Requirement) -> bool:
    try:
        return need.specifier.contains(version(need.name), prereleases=True)
    except PackageNotFoundError:
        return False


def saved_files(info: ModelInfo) -> list[Path]:
    """The files of a checkpoint that its family wants beside saved weights; patterns find what there is."""
    row = row_of(info.family)
    return [path for pattern in (row.saved_files if row else ()) for path in sorted(info.path.glob(pattern))]


def row_of(family: str | None) -> Family | None:
    """The row of a family; None for a checkpoint of none that is known."""
    return None if family is None else FAMILIES.get(family)
