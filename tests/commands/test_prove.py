"""`swift prove` from the command line: what holds is shown to hold, and what is broken is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from swift import cli

SCALED = """
from swift.callbacks import TrainerCallback, callbacks_map

class Scaled(TrainerCallback):
    def __init__(self, args, trainer):
        pass

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= args.gradient_accumulation_steps

callbacks_map["scaled"] = Scaled
"""
ROWWISE = """
from swift.loss import loss_map

def rowwise(outputs, labels, **_):
    learns = (labels[:, 1:] != -100).sum(-1).clamp(min=1)
    return (outputs.loss.sum(-1) / learns).mean()

loss_map["rowwise"] = rowwise
"""
FORGETFUL = """
from swift.callbacks import TrainerCallback, callbacks_map

class Forgetful(TrainerCallback):
    def __init__(self, args, trainer):
        self.calls = 0

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.calls += 1
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.calls

callbacks_map["forgetful"] = Forgetful
"""
LOSSY = """
from pathlib import Path
from safetensors.torch import load_file, save_file
from swift.callbacks import TrainerCallback, callbacks_map

class Lossy(TrainerCallback):
    def __init__(self, args, trainer):
        pass

    def on_save(self, args, state, control, **_):
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "adapter_model.safetensors"
        save_file({name: 1.1 * value for name, value in load_file(file).items()}, file)

callbacks_map["lossy"] = Lossy
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prove")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(24))
    for name, text in (("scaled", SCALED), ("rowwise", ROWWISE), ("forgetful", FORGETFUL), ("lossy", LOSSY)):
        (folder / f"{name}.py").write_text(text)
    return folder


def prove(place: Path, file: Path, *words: str) -> tuple[int, list[dict]]:
    line = ["prove", *words, "--model", str(place / "model"), "--dataset", str(place / "rows.jsonl"),
            "--output_dir", str(place / "out"), "--steps", "3", "--json", str(file)]  # fmt: skip
    code = cli.main(line)
    return code, json.loads(file.read_text()) if file.is_file() else []


def plugin(place: Path, name: str) -> list[str]:
    return ["--external_plugins", str(place / f"{name}.py"), "--callbacks", name]


def failed(report: dict) -> dict[str, set[str]]:
    """Finding -> the quantities that are beyond their limit."""
    return {
        finding["name"]: {difference["what"] for difference in finding["differences"] if not difference["holds"]}
        for finding in report["findings"]
        if not finding["holds"]
    }


@pytest.mark.slow
def test_a_sound_training_of_an_adapter_is_proven_and_its_output_folder_is_not_touched(place, tmp_path, capsys):
    code, reports = prove(
        place, tmp_path / "found.json", "all", "sft", "--tiny", "true", "--split_dataset_ratio", "0.1"
    )
    assert code == 0, capsys.readouterr().out
    batch, resume, merge = reports
    compared = {finding["name"] for finding in batch["findings"] if finding["differences"]}
    assert compared == {
        "batches of 2 x 2", "batches of 4 x 1", "rows laid end to end (padding_free)", "all logits at once",
        "activations kept", "2 processes", "packed",
    }  # fmt: skip
    assert any("--lora_dropout 0.05" in note for note in batch["notes"])
    assert any("--average_tokens_across_devices" in note for note in batch["notes"])
    [finding] = resume["findings"]
    assert all(difference["found"] == difference["limit"] == 0 for difference in finding["differences"])
    assert {difference["what"] for difference in finding["differences"]} >= {
        "rows and their order", "loss", "weights after 3 steps", "state of the optimizer", "learning rate",
    }  # fmt: skip
    assert ["merged" in finding["name"] for finding in merge["findings"]] == [False, True]
    assert not (place / "out").exists()
    page = capsys.readouterr().out
    assert page.count("everything holds") == 3
    assert "on a small copy of model" in page


@pytest.mark.slow
def test_a_gradient_that_depends_on_accumulation_is_found_by_the_proof_of_batches(place, tmp_path, capsys):
    code, [report] = prove(place, tmp_path / "found.json", "batch", *plugin(place, "scaled"))
    assert code == 1
    found = failed(report)
    assert {"batches of 2 x 2", "batches of 4 x 1", "2 processes"} <= set(found)
    assert "gradient of step 1" in found["batches of 4 x 1"]
    assert "all logits at once" not in found  # the same batches
    page = capsys.readouterr().out
    assert "FAILED: batches of 4 x 1: gradient of step 1 differs from that of one row at a time by 0.75" in page
    assert "lora_B" in page


@pytest.mark.slow
def test_a_loss_that_is_a_mean_over_what_lies_in_a_batch_is_found_by_the_proof_of_batches(place, tmp_path, capsys):
    words = ["--external_plugins", str(place / "rowwise.py"), "--loss_type", "rowwise"]
    code, [report] = prove(place, tmp_path / "found.json", "batch", *words)
    assert code == 1
    found = failed(report)
    assert {"loss", "gradient of step 1"} <= found["rows laid end to end (padding_free)"]  # rows become one row
    assert {"loss", "gradient of step 1"} <= found["packed"]
    assert "activations kept" not in found  # the same batches
    assert "loss differs from that of one row at a time" in capsys.readouterr().out


@pytest.mark.slow
def test_a_callback_with_a_state_that_no_checkpoint_keeps_is_found_by_the_proof_of_resuming(place, tmp_path, capsys):
    code, [report] = prove(place, tmp_path / "found.json", "resume", *plugin(place, "forgetful"))
    assert code == 1
    [quantities] = failed(report).values()
    assert {"weights after 3 steps", "state of the optimizer"} <= quantities
    assert not {"rows and their order", "learning rate", "step it goes on from"} & quantities
    assert "weights after 3 steps differs from that of uninterrupted" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_that_are_saved_wrongly_are_found_by_the_proof_of_merging(place, tmp_path):
    code, [report] = prove(place, tmp_path / "found.json", "merge", *plugin(place, "lossy"))
    assert code == 1
    assert len(failed(report)) == 2


@pytest.mark.slow
def test_a_whole_model_has_nothing_to_merge_and_is_read_back(place, tmp_path, capsys):
    code, [report] = prove(place, tmp_path / "found.json", "merge", "--tuner_type", "full")
    assert code == 0
    assert [finding["left_out"] for finding in report["findings"]] == ["--tuner_type full leaves nothing to merge", ""]
    assert report["findings"][1]["differences"][0]["found"] <= 1e-6
    assert "not proven: merged: --tuner_type full leaves nothing to merge" in capsys.readouterr().out


def test_mistakes_are_exit_code_2_before_anything_is_loaded(place, tmp_path, capsys):
    assert cli.main(["prove", "bach", "infer", "--steps", "1", "--tiny", "maybe"]) == 2
    said = capsys.readouterr().err
    assert "swift prove: 4 problems" in said
    assert "did you mean batch?" in said
    assert "--steps 1: must be >= 2" in said
    assert prove(place, tmp_path / "found.json", "batch", "--lora_rnk", "3") == (2, [])
    assert "did you mean --lora_rank?" in capsys.readouterr().err


def test_the_help_is_there_in_both_languages(capsys):
    assert cli.main(["prove", "--help"]) == 0
    english = capsys.readouterr().out
    assert cli.main(["prove", "batch", "--help", "--lang", "zh"]) == 0
    chinese = capsys.readouterr().out
    for page in (english, chinese):
        assert all(word in page for word in ("batch", "resume", "merge", "all", "--tiny", "--steps", "--json"))
    assert "optimizer steps" in english
    assert "优化步数" in chinese
