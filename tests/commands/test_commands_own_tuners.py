"""Our own methods from a command line to a checkpoint, on from there, and to replies and a merged model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from swift import cli
from swift.commands import export, infer, sft
from swift.core.errors import RunError, UsageError
from swift.options.parse import parse
from swift.tuners.attach import load_adapters
from swift.tuners.own.folder import tuning_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
IDS_BT = torch.arange(5, 25)[None]
LINES = {
    "llamapro": ("--llamapro_num_new_blocks", "2", "--llamapro_num_groups", "1"),
    "adapter": ("--adapter_length", "6", "--adapter_act", "silu"),
    "reft": ("--reft_layers", "0", "--reft_rank", "2", "--reft_intervention_type", "NoreftIntervention",
             "--reft_args", '{"dropout": 0.1}'),
    "longlora": ("--max_length", "64", "--lora_rank", "2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    tiny.checkpoint(folder / "model", layers=4)
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(16))
    return folder


def line(place: Path, output: Path, *words: str) -> list[str]:
    return ["--model", str(place / "model"), "--dataset", str(place / "rows.jsonl"), "--output_dir", str(output),
            "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--logging_steps", "1",
            "--dataloader_num_workers", "0", "--report_to", "none", "--learning_rate", "1e-2", *words]  # fmt: skip


def train(place: Path, output: Path, *words: str) -> Path:
    last = sft.run(parse("sft", line(place, output, *words)))
    assert isinstance(last, Path)
    return last


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS_BT).logits


def base(place: Path):
    return AutoModelForCausalLM.from_pretrained(place / "model")


@pytest.mark.slow
@pytest.mark.parameter("tuner_type")
@pytest.mark.parameter("adapter_length")
@pytest.mark.parameter("adapter_act")
@pytest.mark.parameter("reft_layers")
@pytest.mark.parameter("reft_rank")
@pytest.mark.parameter("reft_intervention_type")
@pytest.mark.parameter("reft_args")
@pytest.mark.parameter("llamapro_num_new_blocks")
@pytest.mark.parameter("llamapro_num_groups")
@pytest.mark.parametrize("method", LINES)
def test_from_a_command_line_to_replies_and_a_merged_model(place, tmp_path, method):
    words = ("--tuner_type", method, *LINES[method])
    whole = train(place, tmp_path / "whole", *words, "--max_steps", "6", "--save_steps", "3")
    assert not (whole / "model.safetensors").exists()
    config = json.loads((whole / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "model")
    resumed = train(
        place, tmp_path / "on", *words, "--max_steps", "6",
        "--resume_from_checkpoint", str(whole.with_name("checkpoint-3")),
    )  # fmt: skip
    name = "adapter_model.safetensors"
    assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    tuned = load_adapters(base(place), [whole])
    assert not torch.allclose(logits(tuned), logits(base(place)), atol=1e-3)
    if method == "reft":
        assert tuning_of(tuned).settings | {"num_base_layers": 4} == {
            "layers": [0], "rank": 2, "intervention_type": "NoreftIntervention", "args": {"dropout": 0.1},
            "num_base_layers": 4,
        }  # fmt: skip
    if method == "adapter":
        own = tuned.model.layers[3].mlp.bottleneck
        assert (own.down.out_features, type(own.act).__name__) == (6, "SiLUActivation")
    if method == "llamapro":
        assert sorted({int(name.split(".")[2]) for name in tuning_of(tuned).names(tuned)}) == [4, 5]
    result = infer.run(
        parse("infer", ["--adapters", str(whole), "--val_dataset", str(place / "rows.jsonl"), "--max_new_tokens", "3",
                        "--temperature", "0"])
    )  # fmt: skip
    assert result is not None
    assert len(result.read_text().splitlines()) == 16
    if method in ("llamapro", "longlora"):
        merged = export.run(parse("export", ["--adapters", str(whole), "--merge_lora", "true"]))
        plain = AutoModelForCausalLM.from_pretrained(merged)
        torch.testing.assert_close(logits(plain), logits(tuned), rtol=1e-4, atol=1e-5)
        again = infer.run(
            parse("infer", ["--model", str(merged), "--val_dataset", str(place / "rows.jsonl"), "--max_new_tokens", "3",
                            "--temperature", "0"])
        )  # fmt: skip
        replies = [[json.loads(row)["response"] for row in path.read_text().splitlines()] for path in (result, again)]
        assert replies[0] == replies[1]


@pytest.mark.parameter("adapters")
def test_an_adapter_is_trained_on_with_the_type_it_was_made_by(place, tmp_path):
    words = ("--max_steps", "1", "--tuner_type", "adapter", *LINES["adapter"])
    first = train(place, tmp_path / "a", *words)
    second = train(place, tmp_path / "b", *words, "--adapters", str(first))
    assert tuning_of(load_adapters(base(place), [second])).settings["length"] == 6
    with pytest.raises(UsageError, match="made by --tuner_type adapter"):
        train(place, tmp_path / "c", "--tuner_type", "reft", "--adapters", str(first))
    with pytest.raises(RunError, match="holds an adapter"):
        train(place, tmp_path / "d", "--tuner_type", "full", "--resume_from_checkpoint", str(first))


@pytest.mark.slow
@pytest.mark.parameter("packing")
@pytest.mark.parameter("padding_free")
@pytest.mark.parametrize("method", ["llamapro", "adapter", "reft"])
def test_rows_laid_end_to_end_are_learnt_as_padded_rows_are(place, tmp_path, method):
    words = ("--max_steps", "2", "--tuner_type", method, *LINES[method], "--save_strategy", "no")
    words = tuple(word.replace("0.1", "0.0") for word in words)
    found = {}
    for flag in ("false", "true"):
        sft.run(parse("sft", line(place, tmp_path / flag, *words, "--padding_free", flag, "--add_version", "false")))
        lines = [json.loads(text) for text in (tmp_path / flag / "logging.jsonl").read_text().splitlines()]
        found[flag] = [entry["loss"] for entry in lines if "loss" in entry]
    assert found["true"] == pytest.approx(found["false"], rel=1e-4)
    assert train(place, tmp_path / "p", "--max_steps", "1", "--tuner_type", method, *LINES[method], "--packing", "true",
                 "--packing_length", "128")  # fmt: skip


@pytest.mark.parameter("lisa_activated_layers")
@pytest.mark.parameter("lisa_step_interval")
def test_lisa_draws_layers_and_resumes_to_the_same_weights(place, tmp_path):
    words = ("--tuner_type", "full", "--lisa_activated_layers", "1", "--lisa_step_interval", "2", "--max_steps", "6")
    whole = train(place, tmp_path / "whole", *words, "--save_steps", "3")
    resumed = train(place, tmp_path / "on", *words, "--resume_from_checkpoint", str(whole.with_name("checkpoint-3")))
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    start, end = base(place).state_dict(), AutoModelForCausalLM.from_pretrained(whole).state_dict()
    moved = {name.split(".")[2] for name in start if ".layers." in name and not torch.equal(start[name], end[name])}
    assert 1 <= len(moved) <= 3
    assert not torch.equal(start["lm_head.weight"], end["lm_head.weight"])
    with pytest.raises(UsageError, match="the model has 4 layers"):
        train(place, tmp_path / "x", "--tuner_type", "full", "--lisa_activated_layers", "5", "--max_steps", "1")


@pytest.mark.parametrize("method", LINES)
def test_a_run_is_checked_before_any_weight_is_loaded(place, tmp_path, method, capsys):
    words = line(place, tmp_path, "--tuner_type", method, *LINES[method])
    assert cli.main(["check", "sft", *words]) == 0
    assert f", {method}" in capsys.readouterr().out
