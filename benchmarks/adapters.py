"""Speed of LoRA beside that of all parameters: `python benchmarks/adapters.py MODEL`, in tokens per CPU second.

Both train in one process, in turn, on the same rows laid end to end, with recomputed activations; the best turn counts.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from swift.chat.render import Sample
from swift.data.collate import Flattened
from swift.losses.objective import Objective
from swift.options.tuner import TunerChoice, TunerOptions
from swift.trainers.isolation import isolate
from swift.trainers.scoring import choose_way
from swift.tuners.attach import attach

DTYPE = torch.bfloat16


def rows(count: int, longest: int, seed: int) -> list[Sample]:
    """Rows of ragged lengths, of which about half of the tokens are learnt, in turns of 120."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [draw.randrange(5, 30000) for _ in range(draw.randint(longest // 8, longest))]
        labels = [-100 if i == 0 or i // 120 % 2 == 0 else token for i, token in enumerate(ids)]
        made.append(Sample(ids, labels))
    return made


def training(folder: str, tuner_type: Any) -> Callable[[dict[str, Any]], None]:
    """One step of training a model of its own, in mixed precision, given a batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE)
    isolate(model, None, "--padding_free")
    model.activation_checkpointing_enable({"use_reentrant": False})
    model = attach(model, TunerChoice(tuner_type=tuner_type), TunerOptions()).train()
    way = choose_way(model, None, router=False)
    learnt = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4, fused=True)

    def step(batch: dict[str, Any]) -> None:
        with torch.autocast("cpu", dtype=DTYPE):
            scores, _ = way.run(model, batch, Objective())
        (scores.total / scores.tokens.sum()).backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch")
    parser.add_argument("--longest", type=int, default=800)
    parser.add_argument("--batches", type=int, default=3, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    batches = [Flattened()(rows(asked.rows, asked.longest, seed)) for seed in range(asked.batches)]
    tokens = sum(batch["labels"].numel() for batch in batches)
    steps = {kind: training(asked.model, kind) for kind in ("full", "lora")}
    best = dict.fromkeys(steps, float("inf"))
    for turn in range(asked.turns + 1):  # the first one warms up
        for kind, step in steps.items():
            began = time.process_time()
            for batch in batches:
                step(batch)
            best[kind] = min(best[kind], time.process_time() - began) if turn else best[kind]
    for kind, seconds in best.items():
        print(f"{kind}: {tokens / seconds:.1f} tokens per CPU second, {best['full'] / seconds:.2f} of full")


main()
