"""Folders are pushed to both hubs, here to a server that keeps them; failures say what to do and lose nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

import tiny
from swift.commands import export, sft
from swift.core.errors import RunError, UsageError
from swift.hub.pushing import Target, open_repository, push
from swift.options.parse import parse
from swift.trainers.pushing import Pushes

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(params=[True, False], ids=["huggingface", "modelscope"])
def use_hf(request, fakes, monkeypatch):
    """Each of the two hubs, at the address of the server."""
    if not request.param:
        pytest.importorskip("modelscope_hub")
    monkeypatch.setattr(constants, "ENDPOINT", fakes.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", fakes.url)
    fakes.writers.add("right")
    fakes.readers.add("reads")
    return request.param


def folder_of(place: Path, card: str = "base_model: owner/base") -> Path:
    place.mkdir()
    (place / "adapter_model.safetensors").write_bytes(b"weights")
    (place / "adapter_config.json").write_text("{}")
    (place / "optimizer.pt").write_bytes(b"large")
    (place / "README.md").write_text(f"---\n{card}\n---\nA card.")
    return place


def files(fakes, name="owner/pushed"):
    return fakes.repositories["model", name].revisions["main"]


def test_a_folder_is_pushed_without_what_only_training_needs(use_hf, fakes, tmp_path):
    target = open_repository(Target("owner/pushed", use_hf, True, "right"))
    push(target, folder_of(tmp_path / "one"), "first")
    assert set(files(fakes)) == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    assert files(fakes)["adapter_model.safetensors"] == b"weights"
    assert fakes.private["owner/pushed"]
    assert [message.split(" (")[0] for message in fakes.messages] == ["first"]  # ModelScope's client adds its batch


def test_a_card_that_names_a_folder_of_this_machine_stays_here(use_hf, fakes, tmp_path):
    target = open_repository(Target("owner/pushed", use_hf, False, "right"))
    push(target, folder_of(tmp_path / "one", f"base_model: {tmp_path}"), "first")
    assert "README.md" not in files(fakes)
    assert not fakes.private["owner/pushed"]


@pytest.mark.parameter("hub_token")
@pytest.mark.parametrize(("token", "says"), [("wrong", "not valid"), ("reads", "may not write"), (None, "--hub_token")])
def test_a_token_that_opens_nothing_is_told_before_anything_is_done(use_hf, fakes, token, says):
    with pytest.raises(RunError, match=says) as caught:
        open_repository(Target("owner/pushed", use_hf, False, token))
    assert token is None or token not in str(caught.value).replace("may read", "")


def test_an_id_of_modelscope_has_an_owner(fakes):
    with pytest.raises(UsageError, match="owner/name"):
        open_repository(Target("pushed", False, False, "right"))


def test_on_hugging_face_a_bare_name_is_that_of_the_own_account(fakes, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", fakes.url)
    fakes.writers.add("right")
    assert open_repository(Target("pushed", True, False, "right", fakes.url)).id == "me/pushed"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pushing")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(8))
    return folder


def train(place: Path, output: Path, use_hf: bool, *more: str, token: str = "right") -> Path:
    line = ["--model", str(place / "model"), "--dataset", str(place / "rows.jsonl"), "--output_dir", str(output),
            "--gradient_accumulation_steps", "2", "--dataloader_num_workers", "0", "--report_to", "none",
            "--max_steps", "3", "--save_steps", "1", "--push_to_hub", "true", "--hub_model_id", "owner/pushed",
            "--use_hf", str(use_hf).lower(), "--hub_token", token, *more]  # fmt: skip
    last = sft.run(parse("sft", line))
    assert isinstance(last, Path)
    return last


@pytest.mark.parameter("push_to_hub")
@pytest.mark.parameter("hub_model_id")
@pytest.mark.parameter("hub_private_repo")
@pytest.mark.parameter("use_hf")
def test_checkpoints_of_a_training_are_pushed_and_the_last_one_stands(use_hf, fakes, place, tmp_path):
    last = train(place, tmp_path, use_hf, "--hub_private_repo", "true", "--save_total_limit", "1")
    stored = files(fakes)
    assert stored["adapter_model.safetensors"] == (last / "adapter_model.safetensors").read_bytes()
    assert "optimizer.pt" not in stored
    assert json.loads(stored["args.json"])["hub_token"] is None
    assert fakes.messages[-1].startswith("step 3")
    assert fakes.private["owner/pushed"]
    assert not list(last.parent.glob(".push-*"))


@pytest.mark.parameter("push_to_hub")
def test_a_wrong_token_ends_the_command_before_anything_is_trained(use_hf, fakes, place, tmp_path):
    with pytest.raises(RunError, match="not valid"):
        train(place, tmp_path, use_hf, token="wrong")
    assert not list(tmp_path.glob("*/checkpoint-*"))


def test_a_hub_that_is_lost_costs_a_warning_each_time_and_an_error_at_the_end_and_no_checkpoint(fakes, place, tmp_path):
    fakes.writers.add("right")
    target = open_repository(Target("owner/pushed", True, False, "right", fakes.url))
    run = tmp_path / "run"
    run.mkdir()
    last = folder_of(run / "checkpoint-3")
    pushes = Pushes(target, run)
    fakes.writers.clear()
    pushes.on_save(None, State(3), None)
    with pytest.raises(
        RunError, match=f"swift export --adapters {last} --push_to_hub true --hub_model_id owner/pushed"
    ):
        pushes.finish(last)
    assert (last / "optimizer.pt").exists()
    assert not list(run.glob(".push-*"))
    assert fakes.messages == []


def test_of_checkpoints_that_wait_the_newest_is_pushed_even_when_its_folder_is_gone(fakes, tmp_path, monkeypatch):
    fakes.writers.add("right")
    target = open_repository(Target("owner/pushed", True, False, "right", fakes.url))
    pushes = Pushes(target, tmp_path)
    seen = []

    def slowly(target, folder, message):
        time.sleep(0.3)
        push(target, folder, message)
        seen.append(message)

    monkeypatch.setattr("swift.trainers.pushing.push", slowly)
    for step in (1, 2, 3):
        folder_of(tmp_path / f"checkpoint-{step}")
        pushes.on_save(None, State(step), None)
    for file in (tmp_path / "checkpoint-1").iterdir():
        file.unlink()
    pushes.finish(tmp_path / "checkpoint-3")
    assert seen == ["step 1", "step 3"]
    assert files(fakes)["adapter_model.safetensors"] == b"weights"


class State:
    """What a callback is told of a training."""

    is_world_process_zero = True

    def __init__(self, step: int) -> None:
        self.global_step = step


@pytest.mark.parameter("push_to_hub")
@pytest.mark.parameter("hub_model_id")
@pytest.mark.parameter("commit_message")
def test_export_pushes_a_checkpoint_or_what_it_has_merged(use_hf, fakes, place, tmp_path):
    adapter = folder_of(tmp_path / "adapter")
    common = ["--push_to_hub", "true", "--use_hf", str(use_hf).lower(), "--hub_token", "right", "--load_args", "false"]
    export.run(parse("export", ["--adapters", str(adapter), "--model", str(place / "model"), *common,
                                "--hub_model_id", "owner/adapter", "--commit_message", "mine"]))  # fmt: skip
    assert files(fakes, "owner/adapter")["adapter_model.safetensors"] == b"weights"
    assert [message.split(" (")[0] for message in fakes.messages] == ["mine"]
    export.run(parse("export", ["--model", str(place / "model"), *common, "--hub_model_id", "owner/model"]))
    assert files(fakes, "owner/model")["model.safetensors"] == (place / "model" / "model.safetensors").read_bytes()
