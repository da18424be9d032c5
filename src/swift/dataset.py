"""This file knows the public names of data sets, for plugins (`--external_plugins my_data.py`).

from swift.dataset import DatasetMeta, ResponsePreprocessor, register_dataset

register_dataset(DatasetMeta(ms_dataset_id="owner/name", preprocess_func=ResponsePreprocessor(columns={"q": "query"})))
"""

from __future__ import annotations

from swift.catalog.datasets import DatasetMeta, SubsetDataset
from swift.data.preprocessors import (
    AlpacaPreprocessor,
    AutoPreprocessor,
    ClsGenerationPreprocessor,
    ClsPreprocessor,
    MessagesPreprocessor,
    ResponsePreprocessor,
    RowPreprocessor,
    TextGenerationPreprocessor,
)
from swift.data.registry import register_dataset, register_dataset_info

__all__ = [
    "AlpacaPreprocessor",
    "AutoPreprocessor",
    "ClsGenerationPreprocessor",
    "ClsPreprocessor",
    "DatasetMeta",
    "MessagesPreprocessor",
    "ResponsePreprocessor",
    "RowPreprocessor",
    "SubsetDataset",
    "TextGenerationPreprocessor",
    "register_dataset",
    "register_dataset_info",
]
