"""This file knows how large a model is, and how large what training writes of it, without reading its weights.

The stored weights are counted from the headers of their files. What would be trained is counted on the model built
without memory (torch's meta device), by the same functions that prepare a model for training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from swift.core.errors import ModelError
from swift.models.heads import LOADING
from swift.models.info import ModelInfo
from swift.models.load import task_config
from swift.models.precision import torch_dtype
from swift.models.vocabulary import ROWS_OF
from swift.models.weights import DTYPE_BITS, described_tensors, weight_files
from swift.options.model import ModelOptions
from swift.options.tuner import TunerChoice, TunerOptions
from swift.options.tuner_variants import TunerVariantOptions
from swift.tuners.attach import attach
from swift.tuners.request import Run

STATES = {"sgd": 0, "lion": 1, "rmsprop": 1, "adagrad": 1, "adafactor": 0}
"""Beginning of the name of an optimizer -> numbers it keeps per trained parameter. All others are kin of Adam: 2."""
STATES_OF_ADAM = 2
COMPANION_BYTES = 64 * 1024
"""State of the trainer, random state, args.json: small beside everything else."""


@dataclass(frozen=True)
class Stored:
    """What the files of weights hold, by their headers.

    parameters: elements of all tensors.
    dtypes: type -> elements of that type, the most frequent first.
    """

    files: int
    num_bytes: int
    parameters: int
    dtypes: dict[str, int]


@dataclass(frozen=True)
class Trained:
    """What is trained and what is saved of it.

    total, trained: parameters; tied ones count once.
    saved_bytes: of the weights of one checkpoint: all of them, or those of the adapter.
    trained_bytes: of the trained parameters in the type they are trained in.
    """

    total: int
    trained: int
    saved_bytes: int
    trained_bytes: int


def stored_weights(folder: Path) -> Stored | None:
    """What the weights of a checkpoint are, from the headers of safetensors files; None when there are other files."""
    files = weight_files(folder)
    if not files or any(file.suffix != ".safetensors" for file in files):
        return None
    dtypes: Counter[str] = Counter()
    for file in files:
        for entry in described_tensors(file).values():
            dtypes[entry["dtype"]] += math.prod(entry["shape"])
    size = sum(file.stat().st_size for file in files)
    return Stored(len(files), size, sum(dtypes.values()), dict(dtypes.most_common()))


def empty_model(info: ModelInfo, options: ModelOptions, num_tokens: int) -> PreTrainedModel:
    """The model of a checkpoint for its task, without memory for its weights, with room for so many tokens.

    Raises ModelError when it cannot be built.
    """
    config = task_config(info, options)
    try:
        with torch.device("meta"):
            model = LOADING[options.task_type].auto.from_config(config, dtype=torch_dtype(info.dtype))
            if num_tokens > config.get_text_config().vocab_size:
                model.resize_token_embeddings(num_tokens, pad_to_multiple_of=ROWS_OF, mean_resizing=False)
            return model
    except (ValueError, ImportError, AttributeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{info.path} ({info.model_type}) cannot be built as a {LOADING[options.task_type].noun}: {first}"
        ) from None


def trained_part(
    model: PreTrainedModel,
    info: ModelInfo,
    choice: TunerChoice,
    options: TunerOptions,
    variants: TunerVariantOptions,
    new_token_ids: Sequence[int],
) -> Trained:
    """What is trained of an empty model. Raises ModelError or UsageError as preparing the real one would.

    An adapter that training goes on from is counted by its file, which also says the type it is kept in.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    if info.adapters:
        file = info.adapters[0] / "adapter_model.safetensors"
        if not file.is_file():
            raise ModelError(f"{file} is not there, so that the adapter cannot be counted.")
        stored = described_tensors(file).values()
        trained = sum(math.prod(entry["shape"]) for entry in stored)
        kept = sum(DTYPE_BITS[entry["dtype"]] // 8 * math.prod(entry["shape"]) for entry in stored)
        return Trained(total + trained, trained, kept, kept)
    # How matrices begin does not change how many there are, and some ways to begin read the weights.
    plain = options.model_copy(update={"init_weights": "true"})
    prepared = attach(model, choice, plain, variants=variants, run=Run(new_token_ids=new_token_ids))
    parameters = list(prepared.parameters())
    learnt = [parameter for parameter in parameters if parameter.requires_grad]
    saved = parameters if choice.tuner_type == "full" else learnt
    return Trained(
        total=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in learnt),
        saved_bytes=sum(parameter.numel() * parameter.element_size() for parameter in saved),
        trained_bytes=sum(parameter.numel() * parameter.element_size() for parameter in learnt),
    )


def checkpoint_bytes(trained: Trained, optim: str, *, only_model: bool, tokenizer_bytes: int) -> int:
    """About how much one checkpoint takes on disk: weights, tokenizer, and what resuming needs."""
    name = optim.lower()
    states = next((count for start, count in STATES.items() if name.startswith(start)), STATES_OF_ADAM)
    is_8bit = "8bit" in name
    optimizer = 0 if only_model else states * (trained.trained if is_8bit else trained.trained_bytes)
    return trained.saved_bytes + optimizer + tokenizer_bytes + COMPANION_BYTES


def shown_bytes(count: int) -> str:
    """Bytes as people say them: 850 MB, 15.2 GB."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"
