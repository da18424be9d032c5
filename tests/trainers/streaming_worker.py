"""What each of two processes does in the test of streams: `python streaming_worker.py FOLDER`, started by torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import runs
import test_trainers_streaming as tests
import torch

from swift.core import environment
from swift.options.general import GeneralOptions
from swift.trainers import processes


def main() -> None:
    folder = Path(sys.argv[1])
    processes.join(GeneralOptions(ddp_backend="gloo", ddp_timeout=300), "cpu")
    shape = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "average_tokens_across_devices": True}

    def stream():
        return tests.stream(folder / "rows.jsonl", shuffle_buffer_size=20)

    run = runs.train(folder / "both", train=stream(), max_steps=50, max_epochs=2, **shape)
    saving = {**shape, "max_steps": 9, "save_strategy": "steps", "save_steps": 5, "dataloader_num_workers": 1}
    whole = runs.train(folder / "pair", train=stream(), **saving)
    resumed = runs.train(folder / "again", train=stream(), resume=folder / "pair" / "checkpoint-5", **saving)
    report = run.trainer.follower.report
    torch.save(run.weights(), folder / f"weights-{environment.rank()}.pt")
    result = {
        "loss": run.logged("loss"),
        "step": run.trainer.state.global_step,
        "read": report.read,
        "train": report.train,
        "same_after_resume": runs.equal(whole.weights(), resumed.weights()),
    }
    (folder / f"result-{environment.rank()}.json").write_text(json.dumps(result))
    processes.leave()


main()
