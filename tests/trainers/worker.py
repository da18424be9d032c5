"""What each process of the tests with several processes does: `python worker.py CASE FOLDER`, tests/ on PYTHONPATH."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from swift.core import environment
from swift.options.general import GeneralOptions
from swift.trainers import processes


def equivalence(folder: Path) -> dict:
    """Train on two processes, evaluate, resume, and let the second one be told to stop."""
    import runs
    from transformers import TrainerCallback

    shape = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    data = {"train": runs.samples(16), "val": runs.samples(5, seed=8), "eval_strategy": "steps", "eval_steps": 3}
    averaged = runs.train(folder / "averaged", **shape, **data, max_steps=6, average_tokens_across_devices=True)
    apart = runs.train(folder / "apart", **shape, **data, max_steps=6, average_tokens_across_devices=False)

    settings = {**shape, **data, "max_steps": 7, "save_strategy": "steps", "save_steps": 6}
    whole = runs.train(folder / "whole", model=runs.lora(0.3), **settings)
    resumed = runs.train(folder / "resumed", model=runs.lora(0.3), resume=folder / "whole" / "checkpoint-6", **settings)

    class ToldToStop(TrainerCallback):
        def on_pre_optimizer_step(self, _, state, *__, **___):
            if state.global_step == 1 and environment.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    stopped = runs.prepare(folder / "stopped", **shape, save_strategy="steps")
    stopped.trainer.add_callback(ToldToStop())
    outcome = stopped.session.run(stopped.trainer, None, {})
    unused = runs.train(folder / "unused", **shape, ddp_find_unused_parameters=True, max_steps=1)
    dropout = float(torch.rand(()))

    torch.save(averaged.weights(), folder / f"averaged-{environment.rank()}.pt")
    return {
        "averaged": averaged.history,
        "apart": apart.history,
        "same_after_resume": runs.equal(whole.weights(), resumed.weights()),
        "moved_by_resume": runs.distance(whole.weights(), dict(runs.lora(0.3).named_parameters())),
        "stopped_at": [outcome.global_step, outcome.stopped_by],
        "backend": dist.get_backend(),
        "told": processes.told(f"rank {environment.rank()}"),
        "finds_unused": [run.trainer.model_wrapped.find_unused_parameters for run in (averaged, unused)],
        "dropout": dropout,
    }


def optimizers(folder: Path) -> dict:
    """Train with optimizers that keep something of their own, half of the rows on each of two processes."""
    import runs
    from test_trainers_optimizers import ACROSS

    for name, (model, options) in ACROSS.items():
        run = runs.train(folder / name, model=model(), train=runs.samples(16), per_device_train_batch_size=1,
                         gradient_accumulation_steps=2, max_steps=4, average_tokens_across_devices=True, **options)  # fmt: skip
        torch.save(run.weights(), folder / f"{name}-{environment.rank()}.pt")
    return {}


def tuners(folder: Path) -> dict:
    """Train with our own methods, and with LISA, recomputing activations or not."""
    import runs

    import own_tuning
    import tiny
    from swift.core.errors import UsageError
    from swift.trainers.lisa import Lisa

    shape = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 5}
    shape |= {"average_tokens_across_devices": True}
    found = {}
    for method in own_tuning.VARIANTS:
        run = runs.train(folder / method, model=own_tuning.tuned(method), gradient_checkpointing=True, **shape)
        torch.save(run.weights(), folder / f"{method}-{environment.rank()}.pt")
    for name, recomputing in (("lisa", False), ("lisa-recomputing", True)):
        model = tiny.model(layers=4)
        run = runs.prepare(folder / name, model=model, gradient_checkpointing=recomputing,
                           ddp_find_unused_parameters=True, **shape)  # fmt: skip
        run.trainer.add_callback(Lisa(model.model.layers, 1, 2))
        run.session.run(run.trainer, None, {})
        torch.save(run.weights(), folder / f"{name}-{environment.rank()}.pt")
    run = runs.prepare(folder / "refused", ddp_find_unused_parameters=False, **shape)
    run.trainer.add_callback(Lisa(run.trainer.model.model.layers, 1, 2))
    try:
        run.session.run(run.trainer, None, {})
    except UsageError as error:
        found["refused"] = str(error)
    return found


def nodes(folder: Path) -> dict:
    """Save from each of two nodes, into a folder of its own, and from the first only."""
    import runs

    saved = {}
    for each in (True, False):
        own = folder / f"{each}-{environment.rank()}"
        runs.train(own, save_on_each_node=each, save_strategy="steps", max_steps=1)
        saved[str(each)] = (own / "checkpoint-1" / "model.safetensors").is_file()
    return saved


def packing(folder: Path) -> dict:
    """Train on packs, one of them per process and forward pass."""
    import runs
    import test_trainers_packing as packed

    import tiny
    from swift.data.collate import Flattened

    run = runs.train(folder / "packed", model=packed.cut(tiny.model()), train=packed.packs(), collate=Flattened(),
                     per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=4,
                     average_tokens_across_devices=True)  # fmt: skip
    torch.save(run.weights(), folder / f"packing-{environment.rank()}.pt")
    return {"history": run.history}


def tasks(folder: Path) -> dict:
    """Train embeddings whose candidates are those of both processes, and classes; evaluate rows of uneven number."""
    import task_runs

    shape = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 4}
    val = {"eval_strategy": "steps", "eval_steps": 2}
    found = {}
    for task, loss in (("embedding", "infonce"), ("seq_cls", None), ("reranker", "listwise_reranker")):
        run = task_runs.train(folder / task, folder / "model", task, loss_type=loss, **shape, **val,
                              val=task_runs.rows(task, 5, seed=8), eval_metric="infonce" if loss == "infonce" else None)  # fmt: skip
        torch.save(run.weights(), folder / f"{task}-{environment.rank()}.pt")
        found[task] = run.history
    return found


def sizes(folder: Path) -> dict:
    """Save by two processes, at once and while training goes on; and go on from what one process has saved."""
    import runs

    shape = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "average_tokens_across_devices": True}
    settings = {**shape, "train": runs.samples(18), "max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    whole = runs.train(folder / "pair", **settings)
    beside = runs.train(folder / "beside", use_flash_ckpt=True, **settings)
    resumed = runs.train(folder / "resumed", resume=folder / "beside" / "checkpoint-6", **settings)
    from_one = runs.train(folder / "from-one", resume=folder / "one" / "checkpoint-6", **settings)
    return {
        "whole": whole.history,
        "from_one": from_one.history,
        "same": [runs.equal(run.weights(), whole.weights()) for run in (beside, resumed)],
    }


def losses(folder: Path) -> dict:
    """Train and evaluate with losses per channel, balanced experts and accuracy of sequences."""
    import runs
    import test_trainers_losses as kinds

    from swift.data.collate import Padded

    settings = {
        "train": kinds.channelled(12, ("a", "a", "b", "b", "c", None)), "val": kinds.channelled(5, ("a", "b", "d")),
        "collate": Padded(0, columns=("channel",)), "enable_channel_loss": True, "acc_strategy": "seq",
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 6, "eval_strategy": "steps",
        "eval_steps": 6, "average_tokens_across_devices": True, "train_dataloader_shuffle": False, "logging_steps": 3,
    }  # fmt: skip
    run = runs.train(folder / "losses", **settings)
    balanced = runs.train(folder / "experts", model=kinds.experts(), router_aux_loss_coef=0.5, **settings)
    return {"history": run.history, "balanced": balanced.history}


def timeout(folder: Path) -> dict:
    """The first process waits for a second one that does not come."""
    if environment.rank() == 1:
        time.sleep(300)
    dist.all_reduce(torch.zeros(1))
    return {}


CASES = {
    "equivalence": equivalence, "losses": losses, "nodes": nodes, "optimizers": optimizers, "packing": packing,
    "sizes": sizes, "tasks": tasks, "timeout": timeout, "tuners": tuners,
}  # fmt: skip


def main() -> None:
    case, folder = sys.argv[1], Path(sys.argv[2])
    seconds = 3 if case == "timeout" else int(timedelta(minutes=5).total_seconds())
    processes.join(GeneralOptions(ddp_backend="gloo", ddp_timeout=seconds), "cpu")
    result = CASES[case](folder)
    (folder / f"result-{environment.rank()}.json").write_text(json.dumps(result))
    processes.leave()


main()
