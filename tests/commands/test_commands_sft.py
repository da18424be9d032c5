"""`swift sft` and `swift pt` from a command line to checkpoints, in this process."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from swift.commands import sft
from swift.commands.begin import load_plugin, settle
from swift.core.errors import DataError, MissingPackage, ModelError, RunError, UsageError
from swift.models.info import model_info
from swift.options.parse import parse

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    tiny.checkpoint(folder / "model")
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(16))
    tiny.jsonl(folder / "texts.jsonl", [{"text": text} for text in tiny.CORPUS * 4])
    return folder


def train(place: Path, output: Path, *words: str, command: str = "sft", rows: str = "rows.jsonl") -> Path | None:
    line = ["--model", str(place / "model"), "--dataset", str(place / rows), "--output_dir", str(output),
            "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--logging_steps", "1",
            "--dataloader_num_workers", "0", "--report_to", "none", *words]  # fmt: skip
    return sft.run(parse(command, line))


def test_an_adapter_is_trained_saved_and_loads_with_plain_peft(place, tmp_path, told):
    last = train(place, tmp_path, "--max_steps", "2", "--split_dataset_ratio", "0.25", "--eval_steps", "1",
                 "--learning_rate", "1e-2")  # fmt: skip
    assert last is not None
    run = last.parent
    assert (last.name, run.parent, run.name[:3]) == ("checkpoint-2", tmp_path, "v0-")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "model"), last)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), model.disable_adapter():
        before = model(ids).logits
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, before)
    assert AutoTokenizer.from_pretrained(last).chat_template == tiny.CHATML
    assert json.loads((last / "args.json").read_text())["lora_rank"] == 8
    held_back = [json.loads(line) for line in (run / "val_dataset.jsonl").read_text().splitlines()]
    assert len(held_back) == 4
    assert all("messages" in row for row in held_back)
    assert "eval_loss" in (run / "logging.jsonl").read_text()
    decided = [line.split()[0] for line in told if " = " in line]
    assert "optim" in decided
    assert "learning_rate" not in decided  # it was asked for
    assert f"try it: swift infer --adapters {last}" in told


@pytest.mark.parameter("tuner_type")
def test_a_whole_model_is_pre_trained_and_loads_by_itself(place, tmp_path, told):
    last = train(place, tmp_path, "--max_steps", "1", "--tuner_type", "full", command="pt", rows="texts.jsonl")
    assert last is not None
    trained = AutoModelForCausalLM.from_pretrained(last)
    start = AutoModelForCausalLM.from_pretrained(place / "model")
    assert not torch.equal(trained.lm_head.weight, start.lm_head.weight)
    assert f"try it: swift infer --model {last}" in told


@pytest.mark.parameter("add_version")
def test_a_version_is_added_unless_it_is_not_wanted(place, tmp_path):
    first = train(place, tmp_path / "a", "--max_steps", "1")
    second = train(place, tmp_path / "a", "--max_steps", "1")
    assert first.parent.name.startswith("v0-")
    assert second.parent.name.startswith("v1-")
    assert train(place, tmp_path / "b", "--max_steps", "1", "--add_version", "false").parent == tmp_path / "b"


@pytest.mark.parameter("resume_from_checkpoint")
def test_a_run_that_was_stopped_goes_on_from_its_folder(place, tmp_path, told):
    short = train(place, tmp_path / "short", "--max_steps", "6", "--save_steps", "3")
    again = train(
        place, tmp_path / "again", "--max_steps", "6", "--resume_from_checkpoint", str(short.parent / "checkpoint-3")
    )
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        same = (short / name).read_bytes() == (again / name).read_bytes()
        assert same, name
    with pytest.raises(RunError, match="holds an adapter"):
        train(place, tmp_path / "x", "--tuner_type", "full", "--resume_from_checkpoint", str(short))


def test_bad_data_is_reported_before_a_folder_is_made(place, tmp_path):
    (place / "bad.jsonl").write_text('{"nothing": "here"}\n')
    with pytest.raises(DataError):
        train(place, tmp_path, rows="bad.jsonl")
    assert not list(tmp_path.glob("v*"))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--attn_impl", "flash_attention_2"], "needs the package flash-attn"),
        (["--use_liger_kernel", "true"], "needs the package liger_kernel|needs a GPU"),
        (["--quant_method", "eetq", "--quant_bits", "8"], "needs a CUDA GPU"),
        (["--tuner_backend", "unsloth"], "needs a GPU|needs the package unsloth"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="all of them may be there")
def test_what_this_machine_lacks_is_said_before_rows_are_read_and_a_folder_is_made(place, tmp_path, words, wanted):
    with pytest.raises((MissingPackage, ModelError), match=wanted):
        train(place, tmp_path, *words, rows="absent.jsonl")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_told_to_the_caller_after_the_checkpoint_is_saved(place, tmp_path, told):
    class Impulse(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().endswith("checkpoint-1"):
                os.kill(os.getpid(), signal.SIGINT)

    impulse = Impulse()
    logging.getLogger("swift").addHandler(impulse)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(place, tmp_path, "--max_steps", "9", "--save_steps", "1", "--add_version", "false")
    finally:
        logging.getLogger("swift").removeHandler(impulse)
    assert (tmp_path / "checkpoint-2").is_dir()
    assert any(line.startswith("go on:") for line in told)


def test_a_generation_config_that_transformers_will_not_write_is_kept_as_it_is(place, tmp_path):
    """Published models have sampling values without do_sample: training must not die at its first checkpoint."""
    tiny.checkpoint(tmp_path / "model")
    odd = {"temperature": 0.6, "top_k": 20, "eos_token_id": [2, 0]}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(odd))
    (tmp_path / "rows.jsonl").write_text((place / "rows.jsonl").read_text())
    for kind in ("full", "lora"):
        last = train(tmp_path, tmp_path / kind, "--max_steps", "1", "--tuner_type", kind)
        assert json.loads((last / "generation_config.json").read_text()) == odd


# -------------------------------------------------------------------------------------------------------------- begin


@pytest.mark.parameter("torch_dtype")
@pytest.mark.parameter("max_length")
def test_what_the_checkpoint_decides_is_settled_and_says_why(tmp_path):
    tiny.model().half().save_pretrained(tmp_path / "half")
    command = parse("sft", ["--model", str(tmp_path / "half"), "--dataset", str(tmp_path)])
    settled, info = settle(command, model_info(command.model))
    assert (settled.model.torch_dtype, info.dtype) == ("float32", "float32")
    assert "CPU" in settled.sources["torch_dtype"].detail
    assert settled.template.max_length == 512
    asked = parse("sft", ["--model", str(tmp_path / "half"), "--dataset", str(tmp_path), "--torch_dtype", "float16"])
    with pytest.raises(UsageError, match="float16 does not train on a CPU"):
        settle(asked, model_info(asked.model))


@pytest.mark.parameter("external_plugins")
def test_a_plugin_is_imported_once(place, tmp_path):
    plugin = tmp_path / "counting.py"
    count = f"with open({str(tmp_path / 'loaded')!r}, 'a') as file:\n    file.write('x')\n"
    plugin.write_text(count)
    train(place, tmp_path / "out", "--max_steps", "1", "--external_plugins", str(plugin))
    load_plugin(plugin)
    assert (tmp_path / "loaded").read_text() == "x"
    namesake = tmp_path / "elsewhere" / "counting.py"
    namesake.parent.mkdir()
    namesake.write_text(count)
    load_plugin(namesake)
    assert (tmp_path / "loaded").read_text() == "xx"
    with pytest.raises(UsageError, match=r"--external_plugins .*absent.py is no file"):
        load_plugin(tmp_path / "absent.py")


# ------------------------------------------------------------------------------------------------- going on by itself


class Dies(logging.Handler):
    """Ends the training with an error once a checkpoint has been saved."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        self.checkpoint = checkpoint

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("saved") and record.getMessage().endswith(self.checkpoint):
            raise ZeroDivisionError


@pytest.mark.parameter("use_flash_ckpt")
def test_a_run_that_was_cut_off_is_gone_on_with_by_the_same_command(place, tmp_path, told):
    words = ["--max_steps", "6", "--save_steps", "2", "--use_flash_ckpt", "true", "--lora_dropout", "0.3"]
    whole = train(place, tmp_path / "whole", *words)
    impulse = Dies("checkpoint-2")
    logging.getLogger("swift").addHandler(impulse)
    try:
        with pytest.raises(ZeroDivisionError):
            train(place, tmp_path / "cut", *words)
    finally:
        logging.getLogger("swift").removeHandler(impulse)
    told.clear()
    last = train(place, tmp_path / "cut", *words)
    assert any(line.startswith("going on from") and "v0-" in line and "checkpoint-4" in line for line in told)
    assert last.parent.name.startswith("v1-")
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        assert (last / name).read_bytes() == (whole / name).read_bytes(), name
    # the second came to its end
    told.clear()
    train(place, tmp_path / "cut", *words)
    assert any("v1-" in line and "came to its end, so this one begins anew" in line for line in told)
    assert not any(line.startswith("going on from") for line in told)


@pytest.mark.parameter("use_flash_ckpt")
def test_a_run_with_other_options_is_not_gone_on_with_and_says_which(place, tmp_path, told):
    words = ["--max_steps", "3", "--save_steps", "1", "--use_flash_ckpt", "true"]
    impulse = Dies("checkpoint-1")
    logging.getLogger("swift").addHandler(impulse)
    try:
        with pytest.raises(ZeroDivisionError):
            train(place, tmp_path, *words)
    finally:
        logging.getLogger("swift").removeHandler(impulse)
    train(place, tmp_path, *words, "--lora_rank", "4")
    assert any("was another one" in line and "--lora_rank was 8 and is 4" in line for line in told)


@pytest.mark.parameter("resume_only_model")
@pytest.mark.parameter("ignore_data_skip")
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_weights_of_a_checkpoint_are_taken_alone(place, tmp_path, told, kind):
    words = ["--max_steps", "4", "--save_steps", "2", "--tuner_type", kind, "--save_only_model", "true"]
    first = train(place, tmp_path / "first", *words)
    with pytest.raises(RunError, match="--resume_only_model true"):
        train(place, tmp_path / "x", *words, "--resume_from_checkpoint", str(first))
    half = ["--resume_from_checkpoint", str(first.parent / "checkpoint-2"), "--resume_only_model", "true"]
    on = train(place, tmp_path / "on", *words, *half)
    anew = train(place, tmp_path / "anew", *words, *half, "--ignore_data_skip", "true")

    def steps(last: Path) -> list[str]:
        lines = (json.loads(line) for line in (last.parent / "logging.jsonl").read_text().splitlines())
        return [line["global_step/max_steps"] for line in lines if "loss" in line]

    assert steps(on) == ["3/4", "4/4"]
    assert steps(anew) == ["1/4", "2/4", "3/4", "4/4"]
    assert any("its weights alone; steps and rows begin anew" in line for line in told)


def test_a_second_training_in_a_folder_is_refused_before_anything_is_written(place, tmp_path):
    import multiprocessing

    from swift.trainers.claims import Claim

    def hold(end) -> None:
        with Claim(tmp_path).take():
            end.send(None)
            end.recv()

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(theirs,))
    process.start()
    ours.recv()
    with pytest.raises(RunError, match=f"is being written by process {process.pid}"):
        train(place, tmp_path, "--max_steps", "1", "--add_version", "false")
    assert not (tmp_path / "args.json").exists()
    process.kill()
    process.join()
    assert train(place, tmp_path, "--max_steps", "1", "--add_version", "false")


@pytest.mark.parameter("enable_channel_loss")
@pytest.mark.parameter("enable_dft_loss")
@pytest.mark.parameter("loss_type")
def test_channels_and_losses_of_ones_own_from_a_command_line(place, tmp_path):
    rows = [{**row, "channel": name} for row, name in zip(tiny.conversations(8), ["a", "b"] * 4, strict=True)]
    tiny.jsonl(place / "channels.jsonl", rows)
    plugin = Path(__file__).parents[2] / "examples" / "plugins" / "loss.py"
    focal = ["--external_plugins", str(plugin), "--loss_type", "focal"]
    for name, words in {"dft": ["--enable_dft_loss", "true"], "focal": focal, "plain": []}.items():
        last = train(place, tmp_path / name, "--max_steps", "1", "--enable_channel_loss", "true",
                     "--split_dataset_ratio", "0.5", *words, rows="channels.jsonl")  # fmt: skip
        logged = (last.parent / "logging.jsonl").read_text()
        assert all(key in logged for key in ('"loss_a"', '"loss_b"', '"eval_loss_a"', '"eval_loss_b"'))


def test_rows_are_not_padded_on_a_cpu_unless_somebody_says_so_and_learn_the_same(place, tmp_path, told):
    if torch.accelerator.is_available():
        pytest.skip("rows are padded on an accelerator")
    losses = []
    for name, words in {"a": [], "b": ["--padding_free", "false"], "c": ["--padding_side", "right"]}.items():
        told.clear()
        last = train(place, tmp_path / name, "--max_steps", "2", "--split_dataset_ratio", "0.25",
                     "--lora_dropout", "0", *words)  # fmt: skip
        rows = [json.loads(line) for line in (last.parent / "logging.jsonl").read_text().splitlines()]
        losses.append([row[key] for row in rows for key in ("loss", "eval_loss", "grad_norm") if key in row])
        assert any("laid end to end" in line for line in told) == (name == "a")
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[1] == losses[2]
