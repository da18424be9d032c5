"""This file knows the files by which Sentence Transformers describes an embedding: how states become a vector.

A folder of it has a modules.json, which names the parts in their order: the model, a pooling, perhaps a normalisation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from swift.core.errors import ModelError
from swift.models.heads import Head
from swift.models.info import read_json
from swift.models.pooling import Pooling

MODULES = "modules.json"
POOLING_FOLDER = "1_Pooling"
_KIND = "sentence_transformers.models."
_MODES: dict[str, Pooling] = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
}
"""Name in the config of a pooling -> how states are pooled."""


def described_pooling(folder: Path) -> tuple[Pooling, bool] | None:
    """How the states of a model are pooled, and whether the vector is made one of length 1; None without a modules.json.

    Raises ModelError for parts that are not known here: left out, they would make other vectors of the same name.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = _modules(folder)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown or kinds.count("Pooling") != 1:
        raise ModelError(
            f"{folder / MODULES} makes embeddings of {', '.join(kinds)}; there are Transformer, one Pooling and "
            f"Normalize here. Without {', '.join(unknown) or 'that'} the vectors would be others. Use another model, or "
            f"take away modules.json to train the model itself with the pooling of its last token."
        )
    pooling = next(module for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling")
    settings = read_json(folder / str(pooling.get("path", POOLING_FOLDER)) / "config.json")
    asked = [mode for mode, is_on in settings.items() if mode.startswith("pooling_mode_") and is_on is True]
    if len(asked) != 1 or asked[0] not in _MODES:
        raise ModelError(
            f"{folder} pools by {', '.join(asked) or 'nothing'}; there are {', '.join(_MODES)} here, one at a time."
        )
    return _MODES[asked[0]], "Normalize" in kinds


def describe(folder: Path, head: Head, config: PreTrainedConfig) -> None:
    """Describe an embedding that was saved into `folder`."""
    write_description(folder, head.pooling, config.get_text_config().hidden_size, normalizes=head.normalizes)


def write_description(folder: Path, pooling: Pooling, width: int, *, normalizes: bool) -> None:
    """Describe a model that was saved into `folder`, so that `SentenceTransformer(folder)` gives the same vectors."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{_KIND}Transformer"},
        {"idx": 1, "name": "1", "path": POOLING_FOLDER, "type": f"{_KIND}Pooling"},
    ]
    if normalizes:
        modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{_KIND}Normalize"})
    settings = {"word_embedding_dimension": width, **{mode: how == pooling for mode, how in _MODES.items()}}
    (folder / POOLING_FOLDER).mkdir(exist_ok=True)
    if normalizes:
        (folder / "2_Normalize").mkdir(exist_ok=True)
    _write(folder / MODULES, modules)
    _write(folder / POOLING_FOLDER / "config.json", settings)
    _write(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


def _modules(folder: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / MODULES} cannot be read: {error}. Copy it again.") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{folder / MODULES} should hold a list of modules. Copy it again.")
    return modules


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
