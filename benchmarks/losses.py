"""Time and memory of the loss of ragged rows: `python benchmarks/losses.py MODEL {chunked,all} {flat,padded}`."""

from __future__ import annotations

import argparse
import random
import resource
import time

import torch
from transformers import AutoModelForCausalLM

from swift.chat.render import Sample
from swift.data.collate import Flattened, Padded
from swift.losses.objective import Objective
from swift.trainers.isolation import isolate
from swift.trainers.scoring import choose_way


def rows(count: int, longest: int, seed: int) -> list[Sample]:
    """Rows of ragged lengths, of which about half of the tokens are learnt, in turns of 120."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [draw.randrange(5, 30000) for _ in range(draw.randint(longest // 4, longest))]
        labels = [-100 if i == 0 or i // 120 % 2 == 0 else token for i, token in enumerate(ids)]
        made.append(Sample(ids, labels))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("logits", choices=["chunked", "all"])
    parser.add_argument("layout", choices=["flat", "padded"])
    parser.add_argument("--evaluate", action="store_true", help="forward passes only")
    parser.add_argument("--no-recompute", action="store_true", help="keep activations")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--longest", type=int, default=600)
    asked = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.bfloat16).train(not asked.evaluate)
    if not asked.no_recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if asked.layout == "flat":
        isolate(model, None, "--padding_free")
    way = choose_way(model, None if asked.logits == "chunked" else False, router=False)
    collate = Flattened() if asked.layout == "flat" else Padded(0)
    batches = [collate(rows(4, asked.longest, seed)) for seed in range(asked.batches + 1)]
    tokens, began = 0, 0.0
    for number, batch in enumerate(batches):
        if number == 1:  # the first one warms up
            tokens, began = 0, time.process_time()
        with torch.set_grad_enabled(not asked.evaluate):
            scores, _ = way.run(model, batch, Objective())
        if not asked.evaluate:
            (scores.total / scores.tokens.sum()).backward()
        tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["labels"].numel()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{asked.logits} {asked.layout}: {tokens / seconds:.1f} tokens per CPU second, peak memory {peak:.0f} MiB")


main()
