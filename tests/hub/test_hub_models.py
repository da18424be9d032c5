"""Names of models and adapters become folders: those on this machine first, then copies of what a hub has."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import tiny
from swift.commands import begin
from swift.core.errors import MissingPackage, ModelError
from swift.hub.huggingface import HuggingFace
from swift.hub.models import Access, access, hub_named, name_of, needed
from swift.hub.modelscope import ModelScope
from swift.models.info import adapter_folder, base_of_adapter, model_info
from swift.options.general import GeneralOptions
from swift.options.model import ModelOptions
from swift.options.parse import parse


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parameter("use_hf")
def test_use_hf_chooses_the_hub():
    assert isinstance(access(GeneralOptions(use_hf=True)).hub, HuggingFace)
    assert isinstance(access(GeneralOptions(use_hf=False)).hub, ModelScope)
    assert "secret" not in repr(access(GeneralOptions(hub_token="secret")))


@pytest.mark.parameter("model")
@pytest.mark.parameter("model_revision")
def test_a_model_of_a_hub_is_read_like_a_folder_and_keeps_its_name(hub, fakes, tmp_path):
    fakes.add("model", "owner/Tiny-1.5B", contents(tiny.checkpoint(tmp_path / "made")))
    fakes.add("model", "owner/Tiny-1.5B", {"config.json": '{"model_type": "other"}'}, revision="v2")
    info = model_info(ModelOptions(model="owner/Tiny-1.5B"), Access(hub, None))
    assert (info.name, info.model_type, info.vocab_size) == ("Tiny-1.5B", "qwen3", 400)
    assert (info.path / "model.safetensors").is_file()
    other = model_info(ModelOptions(model="owner/Tiny-1.5B", model_revision="v2"), Access(hub, None))
    assert other.model_type == "other"


@pytest.mark.parameter("adapters")
def test_an_adapter_of_a_hub_brings_the_model_it_was_trained_on(hub, fakes, tmp_path):
    fakes.add("model", "owner/model", contents(tiny.checkpoint(tmp_path / "made")))
    fakes.add("model", "owner/adapter", {
        "adapter_config.json": json.dumps({"base_model_name_or_path": "owner/model"}), "adapter_model.safetensors": "",
        "optimizer.pt": "large",
    })  # fmt: skip
    info = model_info(ModelOptions(adapters=["owner/adapter"]), Access(hub, None))
    assert info.name == "model"
    assert name_of(info.adapters[0]) == "adapter"
    assert not (info.adapters[0] / "optimizer.pt").exists()


def test_a_folder_of_that_name_wins_and_nothing_is_asked(hub, fakes, tmp_path, monkeypatch):
    tiny.checkpoint(tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    assert model_info(ModelOptions(model="owner/model"), Access(hub, None)).path == tmp_path / "owner" / "model"
    assert fakes.asked == []


def test_without_a_hub_only_folders_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ModelError, match=r"--model owner/model: there is no such folder. .* holds: runs"):
        model_info(ModelOptions(model="owner/model"))


def test_a_slip_in_the_name_of_a_folder_is_answered_without_asking_modelscope(fakes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    with pytest.raises(ModelError, match=r"has the form owner/name. .* holds: my-model"):
        adapter_folder("my-modle", access(GeneralOptions()))


def test_the_base_of_an_adapter_is_a_folder_if_one_is_named_and_else_an_id(tmp_path):
    adapter = tmp_path / "run" / "checkpoint-1"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/gone/snapshots/abc"}))
    assert base_of_adapter(adapter) == "/gone/snapshots/abc"
    (adapter / "args.json").write_text(json.dumps({"model": "owner/model"}))
    assert base_of_adapter(adapter) == "owner/model"
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    assert base_of_adapter(adapter) == str(tmp_path)


def test_weights_are_fetched_in_one_format_and_states_of_training_not_at_all():
    paths = ["config.json", "pytorch_model.bin", "tf_model.h5", "consolidated.00.pth", "model.gguf", "onnx/model.onnx"]
    assert needed(paths) == ["config.json", "pytorch_model.bin"]
    assert needed([*paths, "model.safetensors"]) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/c/models--Qwen--Qwen3-0.6B/snapshots/0123abc", "Qwen3-0.6B"),
        ("/c/models/Qwen--Qwen3-0.6B/snapshots/master", "Qwen3-0.6B"),
        ("/c/hub/models/Qwen/Qwen2___5-0___5B", "Qwen2.5-0.5B"),
        ("/home/me/my-model", "my-model"),
    ],
)
def test_a_copy_is_called_as_its_repository(tmp_path, folder, name):
    assert name_of(tmp_path / folder[1:]) == name


def test_without_the_client_of_modelscope_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(MissingPackage, match=r"pip install 'swiftlet\[modelscope\]' .*--use_hf true"):
        model_info(ModelOptions(model="owner/model"), Access(hub_named(False), None))


@pytest.mark.slow
@pytest.mark.parametrize("use_hf", [True, False])
def test_a_command_line_fetches_its_model_and_answers(fakes, tmp_path, use_hf):
    fakes.add("model", "owner/model", contents(tiny.checkpoint(tmp_path / "made")), token="open-sesame")
    questions = tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(2))
    places = {"HF_ENDPOINT": fakes.url, "MODELSCOPE_ENDPOINT": fakes.url, "HF_HOME": str(tmp_path / "hf"),
              "MODELSCOPE_CACHE": str(tmp_path / "ms"), "HF_HUB_OFFLINE": "0"}  # fmt: skip
    line = ["infer", "--model", "owner/model", "--use_hf", str(use_hf), "--hub_token", "open-sesame", "--val_dataset",
            str(questions), "--max_new_tokens", "2", "--result_path", str(tmp_path / "out.jsonl")]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "swift", *line], env={**os.environ, **places}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    assert "sesame" not in done.stdout + done.stderr


@pytest.mark.parameter("load_args")
def test_what_an_adapter_of_a_hub_was_trained_with_is_read_back(hub, fakes, monkeypatch):
    told = {"model": "owner/model", "system": "Be brief.", "use_hf": True, "model_revision": "v2"}
    fakes.add("model", "owner/adapter", {"adapter_config.json": "{}", "args.json": json.dumps(told)})
    monkeypatch.setattr(begin, "access", lambda general: Access(hub, general.hub_token))
    line = ["--adapters", "owner/adapter", "--seed", "7"]
    command = begin.begin(parse("infer", line), GeneralOptions())
    assert (command.template.system, command.model.model, command.general.seed) == ("Be brief.", "owner/model", 7)
    assert (command.general.use_hf, command.model.model_revision) == (True, "v2")
    assert command.model.adapters == ["owner/adapter"], "a checkpoint of another run names what the user named"
    other = begin.begin(parse("infer", [*line, "--model", "owner/other"]), GeneralOptions())
    assert (other.general.use_hf, other.model.model_revision) == (False, None)
    kept = begin.begin(parse("infer", [*line, "--load_args", "false", "--model", "owner/other"]), GeneralOptions())
    assert kept.template.system is None
