"""Trainings that Ray starts: the same numbers as under torchrun, one error, one Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny
from swift.core.errors import MissingPackage
from swift.options.general import GeneralOptions
from swift.parallel.ray import Home, places, run

GROUPS = {"nproc_per_node": 2, "all": {"device": "CPU", "ranks": 2, "workers": ["default"]}}
LINE = ["sft", "--model", "model", "--dataset", "rows.jsonl", "--dataloader_num_workers", "0", "--report_to", "none",
        "--logging_steps", "1", "--torch_dtype", "float32", "--tuner_type", "full", "--learning_rate", "1e-3",
        "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2", "--ddp_backend", "gloo"]  # fmt: skip
ON_RAY = ["--use_ray", "true", "--device_groups", json.dumps(GROUPS)]


@pytest.fixture
def folder(tmp_path):
    tiny.checkpoint(tmp_path / "model")
    tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(12))
    return tmp_path


def begin(folder: Path, *argv: str, **variables: str) -> subprocess.Popen[str]:
    surroundings = {name: value for name, value in os.environ.items() if name not in ("TMPDIR", "RAY_ADDRESS")}
    return subprocess.Popen(
        [sys.executable, "-m", "swift", *argv], cwd=folder, env={**surroundings, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def swift(folder: Path, *argv: str, code: int = 0, **variables: str) -> str:
    process = begin(folder, *argv, **variables)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said[-4000:]
    return said


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parameter("use_ray")
@pytest.mark.parameter("device_groups")
@pytest.mark.parameter("ray_exp_name")
def test_a_run_on_ray_is_the_run_of_torchrun(folder):
    swift(folder, *LINE, "--max_steps", "3", "--output_dir", "torchrun", NPROC_PER_NODE="2")
    said = swift(folder, *LINE, "--max_steps", "3", "--output_dir", "ray", *ON_RAY, "--ray_exp_name", "trial")
    assert "trial rank 0" in said
    assert "trial rank 1" in said
    one, other = (load_file(next((folder / name).glob("**/model.safetensors"))) for name in ("torchrun", "ray"))
    assert all(bool((weight == other[name]).all()) for name, weight in one.items())


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parameter("use_ray")
def test_an_error_of_a_rank_ends_the_run_with_one_error(folder):
    (folder / "rows.jsonl").write_text('{"messages": "none"}\n')
    said = swift(folder, *LINE, "--max_steps", "3", *ON_RAY, code=1)
    last = said[said.rindex("swift sft: rank") :]
    assert "ended with exit code 1" in last
    assert "rows.jsonl" in last  # the reason, as the rank said it
    assert "Traceback" not in last


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parameter("use_ray")
def test_ctrl_c_saves_and_ends_every_process(folder):
    process = begin(
        folder, *LINE, "--max_steps", "100000", "--output_dir", "cut", *ON_RAY, "--ray_exp_name", "interrupted"
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not any(file.stat().st_size for file in folder.glob("cut/**/logging.jsonl")):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said[-4000:]
    assert list(folder.glob("cut/**/checkpoint-*/model.safetensors"))
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in left.splitlines() if "--output_dir cut" in line and "interrupted" in line]


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parameter("device_groups")
def test_a_cluster_that_lacks_devices_is_no_endless_wait(folder):
    groups = {"nproc_per_node": 64, "all": {"device": "GPU", "ranks": 64, "workers": ["default"]}}
    said = swift(folder, *LINE, "--use_ray", "true", "--device_groups", json.dumps(groups), code=1)
    assert "64 GPU (it has" in said


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is here")
@pytest.mark.parameter("use_ray")
def test_without_ray_its_installation_is_named():
    with pytest.raises(MissingPackage, match=r"--use_ray true needs the package ray.*swiftlet\[ray\]"):
        run("sft", [], GeneralOptions(use_ray=True, device_groups=GROUPS))


def test_processes_know_their_places_and_see_the_devices_of_their_node():
    homes = [
        Home("a", "10.0.0.1", 29000, ("3",)),
        Home("b", "10.0.0.2", 29001, ("0",)),
        Home("a", "10.0.0.1", 29002, ("5",)),
    ]
    made = places(homes, "GPU")
    assert [(each["RANK"], each["LOCAL_RANK"], each["LOCAL_WORLD_SIZE"]) for each in made] == [
        ("0", "0", "2"), ("1", "0", "1"), ("2", "1", "2"),
    ]  # fmt: skip
    assert [each["CUDA_VISIBLE_DEVICES"] for each in made] == ["3,5", "0", "3,5"]
    assert {(each["MASTER_ADDR"], each["MASTER_PORT"]) for each in made} == {("10.0.0.1", "29000")}


def test_on_one_node_processes_meet_on_its_own_address():
    made = places([Home("a", "10.0.0.1", 29000, ())] * 2, "CPU")
    assert [each["MASTER_ADDR"] for each in made] == ["127.0.0.1", "127.0.0.1"]
    assert "CUDA_VISIBLE_DEVICES" not in made[0]
