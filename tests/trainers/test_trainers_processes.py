"""Two processes against one, through gloo on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
import torch
from test_trainers_optimizers import ACROSS

import own_tuning
import tiny
from swift.trainers.checkpoints import MANIFEST, damage
from swift.trainers.lisa import Lisa

WORKER = Path(__file__).with_name("worker.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(WORKER.parents[1]), *sys.path])}
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(case: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Two processes of one node, started by torchrun."""
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    line += [str(WORKER), case, str(folder)]
    return subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def results(folder: Path) -> list[dict]:
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in (0, 1)]


def logged(history: list[dict], name: str) -> list[float]:
    return [entry[name] for entry in history if name in entry]


@pytest.mark.parameter("average_tokens_across_devices")
@pytest.mark.parameter("ddp_backend")
@pytest.mark.parameter("ddp_find_unused_parameters")
def test_two_processes_train_what_one_trains_on_the_same_rows(tmp_path):
    done = launch("equivalence", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = results(tmp_path)
    alone = runs.train(tmp_path / "alone", train=runs.samples(16), val=runs.samples(5, seed=8), eval_strategy="steps",
                       eval_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=6)  # fmt: skip
    for name in ("loss", "token_acc", "grad_norm", "eval_loss", "eval_token_acc", "learning_rate"):
        assert logged(first["averaged"], name) == pytest.approx(alone.logged(name), rel=1e-4), name
        assert logged(first["averaged"], name) == logged(second["averaged"], name)
    weights = [torch.load(tmp_path / f"averaged-{rank}.pt") for rank in (0, 1)]
    assert runs.equal(*weights)
    assert runs.distance(weights[0], alone.weights()) < 2e-4
    # without averaging each process divides by its own tokens: another loss, unless all rows learn equally many
    assert logged(first["apart"], "loss") != pytest.approx(alone.logged("loss"), rel=1e-4)

    assert first["same_after_resume"]
    assert second["same_after_resume"]
    assert first["moved_by_resume"] > 1e-3
    assert first["stopped_at"] == second["stopped_at"] == [2, signal.SIGTERM]
    assert (tmp_path / "stopped" / "checkpoint-2").is_dir()
    assert first["backend"] == "gloo"
    assert first["told"] == second["told"] == "rank 0"
    assert first["finds_unused"] == [True, True] or first["finds_unused"] == [False, True]
    assert first["dropout"] != second["dropout"]


def test_optimizers_that_keep_something_of_their_own_do_on_two_processes_what_they_do_on_one(tmp_path):
    done = launch("optimizers", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (model, options) in ACROSS.items():
        weights = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)]
        assert runs.equal(*weights), name
        alone = runs.train(tmp_path / f"alone-{name}", model=model(), train=runs.samples(16), max_steps=4,
                           per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)  # fmt: skip
        moved = runs.distance(alone.weights(), dict(model().named_parameters()))
        assert runs.distance(weights[0], alone.weights()) < 0.1 * moved, name


@pytest.mark.parameter("lisa_activated_layers")
def test_own_tuners_and_lisa_train_in_two_processes_what_they_train_in_one(tmp_path):
    done = launch("tuners", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    shape = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 5}
    alone = {
        method: runs.train(tmp_path / f"{method}-alone", model=own_tuning.tuned(method), **shape).weights()
        for method in own_tuning.VARIANTS
    }
    model = tiny.model(layers=4)
    run = runs.prepare(tmp_path / "lisa-alone", model=model, **shape)
    run.trainer.add_callback(Lisa(model.model.layers, 1, 2))
    run.session.run(run.trainer, None, {})
    alone["lisa"] = alone["lisa-recomputing"] = run.weights()
    for name, weights in alone.items():
        one, other = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        assert runs.equal(one, other), name
        assert runs.distance(one, weights) < 2e-4, name
    assert "needs --ddp_find_unused_parameters true" in results(tmp_path)[0]["refused"]


@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parameter("use_flash_ckpt")
def test_one_process_goes_on_with_what_two_saved_and_two_with_what_one_saved(tmp_path):
    alone = {"train": runs.samples(18), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 8,
             "save_strategy": "steps", "save_steps": 3}  # fmt: skip
    one = runs.train(tmp_path / "one", **alone)
    done = launch("sizes", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = results(tmp_path)
    assert first["same"] == second["same"] == [True, True]
    for folder in ("pair", "beside"):
        for step in (3, 6, 8):
            checkpoint = tmp_path / folder / f"checkpoint-{step}"
            assert damage(checkpoint) == []
            files = json.loads((checkpoint / MANIFEST).read_text())["files"]
            assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt", "position.json"} <= set(files)
    by_one = runs.train(tmp_path / "by-one", resume=tmp_path / "pair" / "checkpoint-6", **alone)
    for history in (first["whole"], first["from_one"], by_one.history):
        assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, 9))
        assert logged(history, "loss") == pytest.approx(one.logged("loss"), rel=1e-4)


@pytest.mark.parameter("enable_channel_loss")
@pytest.mark.parameter("acc_strategy")
@pytest.mark.parameter("router_aux_loss_coef")
@pytest.mark.parameter("average_tokens_across_devices")
def test_channels_and_accuracy_of_two_processes_are_those_of_one(tmp_path):
    """Each process meets channels that the other has not met when they are logged."""
    import test_trainers_losses as kinds

    from swift.data.collate import Padded

    done = launch("losses", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = results(tmp_path)
    settings = {
        "train": kinds.channelled(12, ("a", "a", "b", "b", "c", None)), "val": kinds.channelled(5, ("a", "b", "d")),
        "collate": Padded(0, columns=("channel",)), "enable_channel_loss": True, "acc_strategy": "seq",
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 6, "eval_strategy": "steps",
        "eval_steps": 6, "train_dataloader_shuffle": False, "logging_steps": 3,
    }  # fmt: skip
    alone = runs.train(tmp_path / "alone", **settings)
    balanced = runs.train(tmp_path / "one", model=kinds.experts(), router_aux_loss_coef=0.5, **settings)
    evaluated = {f"eval_loss_{name}" for name in "abd"}
    for key in {
        "loss",
        "seq_acc",
        "eval_loss",
        "eval_seq_acc",
        *(f"loss_{name}" for name in ("a", "b", "c", "None")),
    } | evaluated:
        assert alone.logged(key), key
        assert logged(first["history"], key) == pytest.approx(alone.logged(key), rel=1e-4), key
        assert logged(first["history"], key) == logged(second["history"], key)
    for key in ("loss", "aux_loss", "grad_norm"):
        assert logged(first["balanced"], key) == pytest.approx(balanced.logged(key), rel=1e-3), key


@pytest.mark.parameter("save_on_each_node")
def test_each_node_saves_for_itself_only_when_asked(tmp_path):
    port = str(free_port())
    place = {
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    line = [sys.executable, str(WORKER), "nodes", str(tmp_path)]
    started = [
        subprocess.Popen(line, env={**ENVIRONMENT, **place, "RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
    assert results(tmp_path) == [{"True": True, "False": True}, {"True": True, "False": False}]


@pytest.mark.parameter("ddp_timeout")
def test_a_process_does_not_wait_longer_than_the_timeout(tmp_path):
    began = time.monotonic()
    done = launch("timeout", tmp_path)
    assert done.returncode != 0
    assert "imed out" in done.stderr
    assert time.monotonic() - began < 120  # the second process would have come after 300 seconds
