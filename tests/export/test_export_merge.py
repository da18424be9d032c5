"""`swift merge-lora`: from a checkpoint to a folder that stands alone, or to nothing at all."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from swift.commands import export
from swift.core.errors import ModelError, RunError, UsageError
from swift.export.folder import appearing
from swift.export.weights import shard_size
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.weights import weight_files
from swift.options.model import ModelOptions
from swift.options.parse import parse
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach, load_adapters

IDS_BT = torch.arange(5, 17)[None]


@pytest.fixture
def base(tmp_path):
    return tiny.checkpoint(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path, base):
    """A checkpoint of a run: an adapter, the tokenizer and template it was trained with."""
    folder = tmp_path / "run" / "checkpoint-10"
    options = ModelOptions(model=str(base))
    torch.manual_seed(0)
    model = attach(
        load_model(model_info(options), options, training=True), TunerChoice(), TunerOptions(init_weights="false")
    )
    model.save_pretrained(folder)
    tiny.tokenizer(None).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }} trained")
    (folder / "args.json").write_text(json.dumps({"model": str(base), "system": "You add.", "tuner_type": "lora"}))
    return folder


def run(*words, name="merge-lora"):
    return export.run(parse(name, [str(word) for word in words]))


def logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS_BT).logits


@pytest.mark.parameter("merge_lora")
@pytest.mark.parametrize("words", [("merge-lora",), ("export", "--merge_lora", "true")])
def test_the_merged_folder_is_the_adapter_in_plain_transformers(base, adapter, words):
    output = run("--adapters", adapter, *words[1:], name=words[0])
    assert output == adapter.with_name("checkpoint-10-merged")
    options = ModelOptions(model=str(base))
    expected = load_adapters(load_model(model_info(options), options, training=False), [adapter])(IDS_BT).logits
    torch.testing.assert_close(logits(output), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, logits(base), atol=1e-3)
    assert AutoTokenizer.from_pretrained(output).chat_template == "{{ messages[0]['content'] }} trained"
    assert sorted(path.name for path in adapter.parent.iterdir()) == ["checkpoint-10", "checkpoint-10-merged"]


def test_args_json_describes_a_model_without_adapters(adapter):
    output = run("--adapters", adapter)
    args = json.loads((output / "args.json").read_text())
    assert (args["model"], args["adapters"], args["system"]) == (str(output), [], "You add.")


def test_what_the_adapter_folder_lacks_comes_from_the_base(base, adapter):
    for path in [*adapter.glob("tokenizer*"), adapter / "chat_template.jinja"]:
        path.unlink()
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "temperature": 0.5, "do_sample": True}))
    output = run("--adapters", adapter)
    assert AutoTokenizer.from_pretrained(output).chat_template == tiny.CHATML
    assert (output / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()


@pytest.mark.parameter("output_dir")
def test_output_dir_is_where_it_goes(adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = run("--adapters", adapter, "--output_dir", "some/where")
    assert output == tmp_path / "some" / "where"
    assert weight_files(output)
    assert not adapter.with_name("checkpoint-10-merged").exists()


@pytest.mark.parameter("exist_ok")
def test_a_folder_that_holds_something_is_overwritten_only_when_asked(adapter, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / "model-00001-of-00009.safetensors").write_text("old")
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"")  # found out only when weights are loaded, which is later
    with pytest.raises(RunError, match=r"exists and is not empty.* --exist_ok true"):
        run("--adapters", adapter, "--output_dir", output)
    weights.write_bytes(whole)
    run("--adapters", adapter, "--output_dir", output, "--exist_ok", "true")
    assert (output / "notes.txt").read_text() == "mine"
    assert [path.name for path in weight_files(output)] == ["model.safetensors"]
    assert not list(output.glob("model-*"))
    logits(output)


@pytest.mark.parameter("exist_ok")
@pytest.mark.parametrize("source", ["base", "adapter", "parent"])
def test_what_is_read_is_never_overwritten(base, adapter, source):
    target = {"base": base, "adapter": adapter, "parent": adapter.parent}[source]
    with pytest.raises(RunError, match="holds what is exported"):
        run("--adapters", adapter, "--output_dir", target, "--exist_ok", "true")


@pytest.mark.parameter("max_shard_size")
def test_no_file_of_weights_is_larger_than_asked(adapter):
    output = run("--adapters", adapter, "--max_shard_size", "150KB")
    files = weight_files(output)
    assert len(files) > 1
    assert all(path.stat().st_size < 150_000 + 5_000 for path in files), "the header comes on top"
    logits(output)


@pytest.mark.parameter("safe_serialization")
@pytest.mark.parametrize("size", ["5GB", "150KB"])
def test_weights_can_be_written_in_the_format_of_torch(adapter, tmp_path, size):
    safe = run("--adapters", adapter, "--output_dir", tmp_path / "safe", "--max_shard_size", size)
    plain = run(
        "--adapters", adapter, "--output_dir", tmp_path / "plain", "--max_shard_size", size,
        "--safe_serialization", "false",
    )  # fmt: skip
    assert {path.suffix for path in weight_files(safe)} == {".safetensors"}
    assert {path.suffix for path in weight_files(plain)} == {".bin"}
    assert len(weight_files(plain)) == len(weight_files(safe))
    assert not list(plain.glob("*.safetensors*"))
    torch.testing.assert_close(logits(plain), logits(safe), rtol=0, atol=0)


@pytest.mark.parameter("torch_dtype")
def test_merged_weights_are_in_the_type_that_was_asked_for(adapter):
    output = run("--adapters", adapter, "--torch_dtype", "bfloat16")
    assert model_info(ModelOptions(model=str(output))).dtype == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(output).dtype == torch.bfloat16


@pytest.mark.parametrize("text", ["5", "GB", "-1GB", "0MB", "5 parsecs"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="--max_shard_size must be a size such as 5GB"):
        shard_size(text)


def test_sizes_are_decimal_or_binary():
    assert (shard_size("5GB"), shard_size("1.5 MB"), shard_size("2KiB")) == (5_000_000_000, 1_500_000, 2048)


def test_nothing_to_do_is_refused(adapter):
    with pytest.raises(UsageError, match=r"nothing to do.* --merge_lora true"):
        run("--adapters", adapter, name="export")


def test_a_merge_without_an_adapter_is_refused(base):
    with pytest.raises(UsageError, match=r"--adapters"):
        run("--model", base)


def test_a_failure_leaves_nothing_behind(adapter, base):
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"adapter_model.safetensors is damaged"):
        run("--adapters", adapter)
    assert [path.name for path in adapter.parent.iterdir()] == ["checkpoint-10"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def interrupted():
        with appearing(tmp_path / "out") as folder:
            (folder / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with appearing(tmp_path / "out") as folder:
        (folder / "whole").write_text("")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]
