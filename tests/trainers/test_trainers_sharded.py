"""Weights divided over two processes, on a CPU through gloo, against one process on the same rows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE.parent)])
}  # fmt: skip
SWIFT, FSDP_ON_CPU = HERE.parents[1] / "src/swift/__main__.py", HERE / "fsdp_on_cpu.py"
SETTINGS = {
    "learning_rate": "1e-3", "max_steps": "4", "logging_steps": "1", "save_steps": "2", "split_dataset_ratio": "0.1",
    "per_device_train_batch_size": "2", "gradient_accumulation_steps": "2", "add_version": "false",
    "dataloader_num_workers": "0", "report_to": "none", "average_tokens_across_devices": "true", "optim": "adamw_torch",
    "torch_dtype": "float32", "lora_dropout": "0",
}  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(64))
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    return swift(place, "whole", processes=1, tuner_type="full", gradient_accumulation_steps=4)


@pytest.fixture(scope="module")
def adapter(place: Path) -> Path:
    return swift(place, "adapter", processes=1, gradient_accumulation_steps=4)


def started(
    place: Path, name: str, processes: int = 2, program: Path | None = None, **settings: object
) -> subprocess.CompletedProcess[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    values = {"model": place / "model", **SETTINGS, **settings}
    if values.get("tuner_type") == "full":
        del values["lora_dropout"]
    words = [str(word) for flag, value in values.items() for word in (f"--{flag}", value)]
    line = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    program = program or (FSDP_ON_CPU if "fsdp" in settings else SWIFT)
    line = [*line, str(program)] if processes > 1 else [sys.executable, str(program)]
    line += ["sft", "--dataset", str(place / "rows.jsonl")]
    line += ["--output_dir", str(place / name), *words]
    return subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def swift(place: Path, name: str, processes: int = 2, **settings: object) -> Path:
    """Train, and return the folder of the run."""
    done = started(place, name, processes, **settings)
    assert done.returncode == 0, done.stderr[-4000:]
    return place / name


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
    names = ["loss", "token_acc", "eval_loss", "learning_rate", *([] if run.name == "zero0" else ["grad_norm"])]
    for name in names:
        assert logged(run, name) == pytest.approx(logged(alone, name), rel=1e-4), name
    ours, theirs = weights(run), weights(alone)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < tolerance


def require_loadable(run: Path, model: Path) -> None:
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


def require_resumed(place: Path, run: Path, processes: int = 2, **settings: object) -> None:
    """From the checkpoint in the middle, the rest of the run comes out as it did."""
    again = swift(
        place, f"{run.name}-in-{processes}", processes, resume_from_checkpoint=run / "checkpoint-2", **settings
    )
    assert logged(again, "loss") == pytest.approx(logged(run, "loss")[2:], rel=1e-5)
    ours, theirs = weights(again), weights(run)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


# ---------------------------------------------------------------------------------------------------------------- FSDP2


@pytest.mark.parameter("fsdp")
def test_fsdp_trains_what_one_process_trains_and_resumes(place: Path, whole: Path) -> None:
    settings = {"fsdp": "fsdp2", "tuner_type": "full"}
    run = swift(place, "fsdp", **settings)
    require_same(run, whole)
    require_loadable(run, place / "model")
    require_resumed(place, run, **settings)


@pytest.mark.parameter("fsdp")
def test_fsdp_trains_the_adapter_that_one_process_trains_and_resumes(place: Path, adapter: Path) -> None:
    run = swift(place, "fsdp-adapter", fsdp="fsdp2")
    require_same(run, adapter)
    require_loadable(run, place / "model")
    require_resumed(place, run, fsdp="fsdp2")
    require_resumed(place, run, processes=1, fsdp="fsdp2", gradient_accumulation_steps=4)


@pytest.mark.parameter("fsdp")
def test_fsdp_without_an_accelerator_is_refused_instead_of_being_left_out(place: Path) -> None:
    done = started(place, "none", processes=1, program=SWIFT, fsdp="fsdp2")
    assert done.returncode == 1
    assert "--fsdp needs an accelerator" in done.stderr


# ------------------------------------------------------------------------------------------------------------ DeepSpeed


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
@pytest.mark.parametrize("preset", ["zero0", "zero1", "zero2", "zero3"])
def test_zero_trains_what_one_process_trains(place: Path, whole: Path, preset: str) -> None:
    run = swift(place, preset, deepspeed=preset, tuner_type="full")
    require_same(run, whole)
    require_loadable(run, place / "model")


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
@pytest.mark.parametrize("preset", ["zero2", "zero3"])
def test_zero_trains_the_adapter_that_one_process_trains_and_resumes(place: Path, adapter: Path, preset: str) -> None:
    run = swift(place, f"{preset}-adapter", deepspeed=preset)
    require_same(run, adapter)
    require_loadable(run, place / "model")
    require_resumed(place, run, deepspeed=preset)


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
def test_zero_3_resumes_whole_models_and_says_who_can(place: Path) -> None:
    settings = {"deepspeed": "zero3", "tuner_type": "full"}
    run = swift(place, "resumed", **settings)
    require_resumed(place, run, **settings)
    checkpoint = run / "checkpoint-2"
    for changes, words in (
        ({"processes": 1}, "saved by 2 processes, and there are 1 now"),
        ({"deepspeed": "zero2"}, "saved with ZeRO stage 3, and --deepspeed is stage 2"),
    ):
        done = started(place, "other", resume_from_checkpoint=checkpoint, **{**settings, **changes})
        assert done.returncode != 0
        assert words in done.stderr


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
def test_packs_are_kept_apart_when_weights_are_divided(place: Path) -> None:
    settings = {"packing": "true", "packing_length": 128, "per_device_train_batch_size": 1}
    alone = swift(place, "packs", processes=1, gradient_accumulation_steps=4, **settings)
    require_same(swift(place, "packs-zero3", deepspeed="zero3", **settings), alone)


@pytest.mark.extra
@pytest.mark.parameter("deepspeed")
def test_experts_are_gathered_together(place: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    dense = tiny.model().config.to_dict()
    kept = {name: dense[name] for name in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")}
    config = Qwen3MoeConfig(
        **kept, head_dim=16, num_hidden_layers=2, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2,
        decoder_sparse_step=1, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).save_pretrained(place / "moe")
    tiny.tokenizer().save_pretrained(place / "moe")
    settings = {"model": place / "moe", "max_steps": 2, "tuner_type": "full"}
    done = started(place, "moe-zero3", deepspeed="zero3", **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ZeRO-3 gathers each Qwen3MoeSparseMoeBlock as one" in done.stderr
    alone = swift(place, "moe-alone", processes=1, gradient_accumulation_steps=4, **settings)
    assert logged(place / "moe-zero3", "loss") == pytest.approx(logged(alone, "loss"), rel=1e-4)
