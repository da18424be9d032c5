"""Tiny real things for tests: tokenizers, models and rows, built on the fly in milliseconds, never mocked."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "A model learns what the assistant says, and nothing of what the user says.",
    "你好，世界！今天天气怎么样？",
    "system user assistant: What is two and two? Four. Thank you, and good-bye.",
    "def add(a, b):\n    return a + b\n",
]


@cache
def tokenizer(chat_template: str | None = CHATML, vocab_size: int = 400):
    """A byte-level BPE tokenizer of about `vocab_size` tokens, with the special tokens of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = chat_template
    return made


def model(seed: int = 0, vocab_size: int = 400, layers: int = 2, **changes):
    """A causal language model of the Qwen3 architecture with random weights, in float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return Qwen3ForCausalLM(Qwen3Config(**{**settings, **changes})).eval()


def checkpoint(folder: Path, seed: int = 0, chat_template: str | None = CHATML, **changes) -> Path:
    """A local Hugging Face checkpoint: weights, config, generation config and tokenizer."""
    made = model(seed, **changes)
    made.save_pretrained(folder)
    tokenizer(chat_template).save_pretrained(folder)
    return folder


def conversations(count: int = 16) -> list[dict]:
    """Rows in the messages format, of ragged lengths, every third with a system and a second turn."""
    rows = []
    for i in range(count):
        messages = [
            {"role": "user", "content": f"What is {i} and {i}?" + " Tell me, please." * (i % 4)},
            {"role": "assistant", "content": f"It is {2 * i}." + " Good-bye." * (i % 3)},
        ]
        if i % 3 == 0:
            messages = [
                {"role": "system", "content": "You add numbers."},
                *messages,
                {"role": "user", "content": "Thank you"},
                {"role": "assistant", "content": "You are welcome."},
            ]
        rows.append({"messages": messages})
    return rows


def jsonl(path: Path, rows: list[dict]) -> Path:
    """Rows written as a jsonl file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
