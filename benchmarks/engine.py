"""How fast prompts are continued, in tokens per CPU second: by the engine, by `generate` in plain batches, and by the
continuous batching of transformers.

OMP_NUM_THREADS=1 python benchmarks/engine.py MODEL [engine | plain | paged] [--dtype bfloat16] [--equal | --shared]
"""

from __future__ import annotations

import argparse
import random
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

from swift.chat.render import Prompt
from swift.engines.base import Request, Sampling
from swift.engines.transformers import Transformers
from swift.models.packed import pack

BATCH = 16


def work(options: argparse.Namespace) -> list[tuple[list[int], int]]:
    """Prompts, and how many tokens each gets: ragged both, unless --equal; with one beginning, if --shared."""
    draw = random.Random(0)
    shared = [draw.randrange(300, 4000) for _ in range(256)] if options.shared else []
    rows = []
    for _ in range(options.prompts):
        length = min(int(draw.lognormvariate(4.0, 0.8)) + 8, 400)
        limit = 48 if options.equal else draw.randrange(8, 96)
        rows.append((shared + [draw.randrange(300, 4000) for _ in range(length)], limit))
    return rows


def by_engine(model, tokenizer, rows) -> int:
    pack(model)
    engine = Transformers(model, tokenizer, max_batch_size=BATCH)
    requests = [Request(Prompt("", ids), Sampling(limit, 0)) for ids, limit in rows]
    found = engine.complete(requests)
    engine.close()
    return sum(len(completion.token_ids) for (completion,) in found)


def by_plain_batches(model, _, rows) -> int:
    """Padded batches in the order of the rows, each to the end of its longest reply."""
    made = 0
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        width = max(len(ids) for ids, _ in some)
        ids = torch.tensor([[0] * (width - len(each)) + each for each, _ in some])
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each, _ in some])
        model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max(limit for _, limit in some)
        )
        made += sum(limit for _, limit in some)
    return made


def by_paged_cache(model, _, rows) -> int:
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(max_batch_tokens=256, num_blocks=64),
    )
    manager.start()
    for ids, limit in rows:
        manager.add_request(ids, max_new_tokens=limit)
    made = left = 0
    left = len(rows)
    while left:
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            made, left = made + len(result.generated_tokens), left - 1
    manager.stop(block=True)
    return made


WAYS = {"engine": by_engine, "plain": by_plain_batches, "paged": by_paged_cache}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("way", choices=WAYS, nargs="?", default="engine")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--equal", action="store_true")
    parser.add_argument("--shared", action="store_true")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype).eval()
    model.generation_config.eos_token_id = None  # every reply is as long as it was asked to be
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = work(options)
    began, cpu = time.perf_counter(), time.process_time()
    made = WAYS[options.way](model, tokenizer, rows)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"{options.way} {options.dtype}: {made} tokens, {made / cpu:.0f} tokens per CPU second, "
        f"{made / seconds:.0f} per second"
    )


if __name__ == "__main__":
    main()
