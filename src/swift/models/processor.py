"""This file knows the tokenizer of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from swift.core.errors import ModelError
from swift.core.logs import get_logger
from swift.models.info import ModelInfo
from swift.models.loader import loader_of
from swift.models.vocabulary import add_tokens

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "tokenizer_config.json", "qwen.tiktoken",
)  # fmt: skip
"""Any of these makes a folder one with a tokenizer."""


def load_tokenizer(info: ModelInfo, new_special_tokens: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, with both a padding and an end-of-sequence token, and with new special tokens.

    A missing padding token becomes the end-of-sequence token and the other way round, which is logged. Raises
    ModelError when there is no tokenizer, when it cannot be read, or when it has neither token.
    """
    if not any((info.path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"--model {info.path} holds no tokenizer: none of {', '.join(TOKENIZER_FILES[:3])} is there. Copy the "
            f"tokenizer of the model into that folder."
        )
    try:
        tokenizer = loader_of(info).get_processor(str(info.path), None)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"The tokenizer in {info.path} cannot be read: {_first_line(error)}") from error
    _fill_special_tokens(tokenizer, info)
    if info.vocab_size is not None and len(tokenizer) > info.vocab_size:
        get_logger().warning(
            "The tokenizer has %d tokens and the model embeds %d: the last %d cannot be read by the model.",
            len(tokenizer), info.vocab_size, len(tokenizer) - info.vocab_size,
        )  # fmt: skip
    if new_special_tokens:
        add_tokens(tokenizer, new_special_tokens)
    return tokenizer


def _fill_special_tokens(tokenizer: PreTrainedTokenizerBase, info: ModelInfo) -> None:
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ModelError(
            f"The tokenizer in {info.path} names neither a padding nor an end-of-sequence token. Add one of them, "
            f'`"eos_token": "..."`, to its tokenizer_config.json.'
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        get_logger().info("pad_token = %s, the end-of-sequence token: the tokenizer has none", tokenizer.pad_token)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.pad_token
        get_logger().info("eos_token = %s, the padding token: the tokenizer has none", tokenizer.eos_token)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
