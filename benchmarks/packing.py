"""How fast rows are packed, how full packs are, and what a step on a long pack costs with and without a mask.

OMP_NUM_THREADS=1 python benchmarks/packing.py [pack | step]
"""

from __future__ import annotations

import resource
import sys
import time

import numpy
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from swift.chat.render import Sample
from swift.data.collate import Flattened, Padded
from swift.data.packing import efficiency, pack
from swift.models.varlen import VARLEN

ROWS = 1_000_000


def pack_a_million() -> None:
    draw = numpy.random.default_rng(0)
    for name, capacity, lengths in (
        ("conversations", 4096, draw.lognormal(5.5, 0.8, ROWS)),
        ("conversations", 32768, draw.lognormal(6.5, 1.2, ROWS)),
        ("uniform", 4096, draw.uniform(1, 4096, ROWS)),
        ("uniform", 131072, draw.uniform(1, 131072, ROWS)),
    ):
        rows = numpy.clip(lengths, 1, capacity).astype(int).tolist()
        began = time.perf_counter()
        packs = pack(rows, capacity)
        seconds = time.perf_counter() - began
        print(
            f"pack {ROWS} {name}, {capacity} tokens: {seconds:.2f} s, {100 * efficiency(rows, packs, capacity):.2f} % full"
        )


def step_on_a_pack() -> None:
    """Forward and backward of a small model on 340-token rows: padded, packed with a mask, packed by sequence."""
    config = Qwen3Config(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=65536,
    )  # fmt: skip
    draw = numpy.random.default_rng(0)
    for tokens in (2048, 4096, 8192):
        lengths = [int(length) for length in numpy.clip(draw.lognormal(5.5, 0.8, tokens), 8, 2048)]
        count = int((numpy.cumsum(lengths) <= tokens).sum())
        samples = [Sample([5] * length, [-100] + [5] * (length - 1)) for length in lengths[:count]]
        for way, collate in (("sdpa", Padded(0)), ("sdpa", Flattened()), (VARLEN, Flattened())):
            torch.manual_seed(0)
            model = Qwen3ForCausalLM(config)
            model.set_attn_implementation(way)
            batch = collate(samples)
            batch.pop("labels")
            seconds = []
            for _ in range(2):
                began = time.perf_counter()
                model.model(**batch, use_cache=False).last_hidden_state.square().mean().backward()
                seconds.append(time.perf_counter() - began)
            size = tuple(batch["input_ids"].shape)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"{count} rows of {sum(lengths[:count])} tokens, {size}, {way}: {min(seconds):.2f} s (peak so far {peak:.2f} GiB)"
            )


PARTS = {"pack": pack_a_million, "step": step_on_a_pack}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
