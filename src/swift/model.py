"""This file knows the public names of models, for plugins (`--external_plugins my_model.py`).

from swift.model import Model, ModelGroup, ModelLoader, ModelMeta, register_model

register_model(ModelMeta("mine", [ModelGroup([Model("owner/mine-1b")])], template="chatml", architectures=["Mine"]))
"""

from __future__ import annotations

from swift.catalog.families_text import FAMILIES as MODEL_MAPPING
from swift.catalog.parts import PARTS as MODEL_ARCH_MAPPING
from swift.models.declared import (
    Model,
    ModelGroup,
    ModelMeta,
    MultiModelKeys,
    register_model,
    register_model_arch,
)
from swift.models.info import ModelInfo
from swift.models.loader import ModelLoader, RemoteCodeLoader

__all__ = [
    "MODEL_ARCH_MAPPING",
    "MODEL_MAPPING",
    "Model",
    "ModelGroup",
    "ModelInfo",
    "ModelLoader",
    "ModelMeta",
    "MultiModelKeys",
    "RemoteCodeLoader",
    "register_model",
    "register_model_arch",
]
