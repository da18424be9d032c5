"""Weights divided over two processes, on a CPU through gloo, against one process on the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked_runs import Finished, Runs
from safetensors.torch import load_file

import tiny

SETTINGS = {
    "learning_rate": "1e-3", "max_steps": "4", "logging_steps": "1", "save_steps": "2", "split_dataset_ratio": "0.1",
    "per_device_train_batch_size": "2", "gradient_accumulation_steps": "2", "add_version": "false",
    "dataloader_num_workers": "0", "report_to": "none", "average_tokens_across_devices": "true", "optim": "adamw_torch",
    "torch_dtype": "float32",
}  # fmt: skip
FULL = {"tuner_type": "full"}
ADAPTER = {"tuner_type": "lora", "lora_dropout": "0"}
KINDS = {"full": FULL, "adapter": ADAPTER}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(64))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """What runs `swift`, with everything imported."""
    opened = Runs(tmp_path_factory.mktemp("output"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def swift(place: Path, runs: Runs) -> Swift:
    return Swift(place, runs)


class Swift:
    """`swift sft` on the rows of a folder; a run that is asked for again is not run again."""

    def __init__(self, place: Path, runs: Runs) -> None:
        self.place = place
        self.runs = runs
        self._done: dict[str, Path] = {}

    def started(self, name: str, processes: int, **settings: object) -> Finished:
        values = {"model": self.place / "model", "dataset": self.place / "rows.jsonl", **SETTINGS, **settings}
        values["output_dir"] = self.place / name
        words = [str(word) for flag, value in values.items() for word in (f"--{flag}", value)]
        return self.runs.run(["sft", *words], processes)

    def trained(self, name: str, processes: int = 2, **settings: object) -> Path:
        """Train, and give the folder of the run."""
        done = self.started(name, processes, **settings)
        assert done.is_good, done.output[-4000:]
        return self.place / name

    def alone(self, kind: str) -> Path:
        """What one process makes of as many rows in a step."""
        if kind not in self._done:
            self._done[kind] = self.trained(kind, 1, gradient_accumulation_steps=4, **KINDS[kind])
        return self._done[kind]

    def resumed(self, run: Path, processes: int, **settings: object) -> Path:
        """Go on from the checkpoint in the middle of a run."""
        name = f"{run.name}-again-in-{processes}"
        return self.trained(name, processes, resume_from_checkpoint=run / "checkpoint-2", **settings)


def logged(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def weights(run: Path, step: int = 4) -> dict[str, torch.Tensor]:
    folder = run / f"checkpoint-{step}"
    file = folder / "model.safetensors"
    return load_file(file if file.is_file() else folder / "adapter_model.safetensors")


def require_same(run: Path, alone: Path, tolerance: float = 2e-4) -> None:
    """The same losses, the same gradients, the same weights, up to the order of sums.

    DeepSpeed tells the norm of the gradient where it divides something, which is not in stage 0.
    """
    names = [
        "loss",
        "token_acc",
        "eval_loss",
        "learning_rate",
        *([] if run.name.startswith("zero0") else ["grad_norm"]),
    ]
    for name in names:
        assert logged(run, name) == pytest.approx(logged(alone, name), rel=1e-4), name
    ours, theirs = weights(run), weights(alone)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < tolerance


def require_loadable(run: Path) -> None:
    """transformers and peft read the checkpoint, and need nothing else for it."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    folder = run / "checkpoint-4"
    if (folder / "adapter_config.json").is_file():
        loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    else:
        loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
    assert torch.isfinite(loaded(input_ids=torch.arange(5, 20)[None]).logits).all()


def require_resumed(again: Path, run: Path) -> None:
    """From the checkpoint in the middle, the rest of the run comes out as it did."""
    assert logged(again, "loss") == pytest.approx(logged(run, "loss")[2:], rel=1e-5)
    ours, theirs = weights(again), weights(run)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


# ---------------------------------------------------------------------------------------------------------------- FSDP2


@pytest.mark.parameter("fsdp")
@pytest.mark.parametrize("kind", KINDS)
def test_fsdp_trains_what_one_process_trains_and_goes_on_in_any_number_of_processes(swift: Swift, kind: str) -> None:
    settings = {"fsdp": "fsdp2", **KINDS[kind]}
    run = swift.trained(f"fsdp-{kind}", **settings)
    require_same(run, swift.alone(kind))
    require_loadable(run)
    require_resumed(swift.resumed(run, 2, **settings), run)
    require_resumed(swift.resumed(run, 1, **settings, gradient_accumulation_steps=4), run)


@pytest.mark.parameter("fsdp")
def test_fsdp_goes_on_in_more_processes(swift: Swift) -> None:
    settings = {"fsdp": "fsdp2", **FULL}
    run = swift.trained("fsdp-of-one", 1, **settings, gradient_accumulation_steps=4)
    require_same(run, swift.alone("full"))
    require_resumed(swift.resumed(run, 2, **settings), run)


# ------------------------------------------------------------------------------------------------------------ DeepSpeed


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_zero_trains_what_one_process_trains_and_resumes(swift: Swift, preset: str, kind: str) -> None:
    settings = {"deepspeed": preset, **KINDS[kind]}
    run = swift.trained(f"{preset}-{kind}", **settings)
    require_same(run, swift.alone(kind))
    require_loadable(run)
    require_resumed(swift.resumed(run, 2, **settings), run)
