"""Models that plugins declare are recognised, loaded by their own loader, and kept apart from all others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny
from swift.catalog.families_text import FAMILIES
from swift.catalog.parts import PARTS
from swift.commands.begin import load_plugin
from swift.core.errors import ModelError, UsageError
from swift.core.logs import get_logger
from swift.export.folder import companions
from swift.hub.models import needed
from swift.model import (
    MODEL_ARCH_MAPPING,
    Model,
    ModelGroup,
    ModelLoader,
    ModelMeta,
    MultiModelKeys,
    RemoteCodeLoader,
    register_model,
    register_model_arch,
)
from swift.models.families import family_named, layout_for
from swift.models.info import model_info
from swift.models.load import load_config, load_model
from swift.models.loader import saved_files
from swift.models.processor import load_tokenizer
from swift.models.quantize import kept_modules
from swift.options.model import ModelOptions
from swift.options.template import TemplateOptions

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "model.py"
IDS_BT = torch.arange(5, 17)[None]
BARE = SimpleNamespace(chat_template=None)


@pytest.fixture(autouse=True)
def _tables_as_they_were():
    """What a test registers is gone after it, and so are the plugins that registered it: another test loads them anew."""
    families, parts, modules = dict(FAMILIES), dict(PARTS), set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("swift_plugin"):
            del sys.modules[name]
    FAMILIES.clear()
    FAMILIES.update(families)
    for name in set(PARTS) - set(parts):
        del PARTS._entries[name]


def load(folder, **options):
    chosen = ModelOptions(model=str(folder), **options)
    return load_model(model_info(chosen), chosen, training=False)


def rewritten(folder, **changes):
    """Change config.json of a checkpoint."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.mark.parameter("external_plugins")
@pytest.mark.parameter("init_strategy")
@pytest.mark.parameter("model_type")
def test_the_example_reads_a_checkpoint_of_qwen3_and_is_the_same_model_at_first(tmp_path):
    load_plugin(EXAMPLE)
    folder = tiny.checkpoint(tmp_path / "m")
    model = load(folder, model_type="tinted", init_strategy="zero")
    assert type(model).__name__ == "TintedForCausalLM"
    torch.testing.assert_close(model(IDS_BT).logits, load(folder)(IDS_BT).logits)
    with pytest.raises(ModelError, match=r"lacks 1 of the weights .*model.tint.weight"):
        load(folder, model_type="tinted")
    torch.nn.init.eye_(model.model.tint.weight)
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")  # by its architecture
    torch.testing.assert_close(again(IDS_BT).logits, model(IDS_BT).logits)
    assert layout_for(model_info(ModelOptions(model=str(tmp_path / "saved"))), TemplateOptions(), BARE).name == (
        "qwen3_nothinking"
    )


class Counting(ModelLoader):
    """Says what it was given."""

    def get_model(self, model_dir, config, processor, model_kwargs):
        model = super().get_model(model_dir, config, processor, model_kwargs)
        model.given = (model_dir, config.max_position_embeddings, len(processor), sorted(model_kwargs))
        return model

    def get_processor(self, model_dir, config):
        tokenizer = super().get_processor(model_dir, config)
        tokenizer.add_tokens(["<mine>"])
        return tokenizer


@pytest.mark.parameter("external_plugins")
def test_a_loader_is_given_config_tokenizer_and_options_and_makes_the_tokenizer(tmp_path):
    folder = tiny.checkpoint(tmp_path / "counted-1b")
    register_model(ModelMeta("counted", [ModelGroup([Model("o/Counted-1B")])], loader=Counting, torch_dtype="bfloat16"))
    model = load(folder, max_model_len=256, attn_impl="eager", model_type="counted")
    length = len(tiny.tokenizer()) + 1
    assert model.given[:3] == (str(folder), 256, length)
    assert {"dtype", "device_map", "attn_implementation"} <= set(model.given[3])
    assert model.dtype == torch.bfloat16
    info = model_info(ModelOptions(model=str(folder), model_type="counted"))
    assert len(load_tokenizer(info)) == length


def test_what_a_loader_of_ones_own_reads_is_checked_like_any_other(tmp_path):
    register_model(ModelMeta("counted", loader=Counting, architectures=["Qwen3ForCausalLM"]))
    folder = rewritten(tiny.checkpoint(tmp_path / "m"), num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(ModelError, match="lacks 11 of the weights"):
        load(folder, model_type="counted")


def test_checkpoints_are_recognised_by_the_names_of_their_groups(tmp_path):
    groups = [
        ModelGroup([Model("org/Mine-1B", "other/mine-1b-hf")], template="chatml"),
        ModelGroup([Model(model_path="/models/Mine-Chat[2]")], template="qwen"),
    ]
    register_model(ModelMeta("mine", groups, template="llama3", ignore_patterns=["*.zip", "old/*"]))
    for name, template in (("mine-1b", "chatml"), ("mine-1b-hf", "chatml"), ("Mine-Chat[2]", "qwen")):
        folder = tiny.checkpoint(tmp_path / name, chat_template=None)
        info = model_info(ModelOptions(model=str(folder)))
        assert info.family == "mine"
        assert layout_for(info, TemplateOptions(), BARE).name == template
    row = family_named("org/Mine-1B", None)
    assert row is not None
    paths = ["a.zip", "old/x", "model.gguf", "config.json"]
    assert needed(paths, row.ignored_files) == ["model.gguf", "config.json"]


def test_a_name_is_taken_once_and_mistakes_are_told_at_once():
    register_model(ModelMeta("mine", architectures=["Mine"]))
    with pytest.raises(UsageError, match="'mine' is registered already"):
        register_model(ModelMeta("mine", architectures=["Mine"]))
    register_model(ModelMeta("mine", architectures=["Other"]), exist_ok=True)
    assert FAMILIES["mine"].architectures == ("Other",)
    with pytest.raises(UsageError) as caught:
        register_model(ModelMeta("wrong", model_arch="none", loader=print, task_type="dance"))
    for part in ("model_arch 'none'", "derived from swift.model.ModelLoader", "task_type", "nothing tells"):
        assert part in str(caught.value)


def test_files_that_a_family_wants_are_copied_beside_saved_weights(tmp_path):
    folder = tiny.checkpoint(tmp_path / "m")
    (folder / "codes.bin").write_text("x")
    (folder / "notes.md").write_text("x")
    wanted = ["codes.*", "absent.json"]
    register_model(ModelMeta("kept", architectures=["Qwen3ForCausalLM"], additional_saved_files=wanted))
    info = model_info(ModelOptions(model=str(folder), model_type="kept"))
    assert saved_files(info) == [folder / "codes.bin"]
    assert companions(folder, [], saved_files(info))["codes.bin"] == folder / "codes.bin"


def test_a_module_group_keeps_its_senses_from_being_quantized(tmp_path):
    folder = tiny.checkpoint(tmp_path / "m")
    keys = MultiModelKeys("seeing", language_model="model", aligner="bridge", vision_tower=["eyes", "ears"])
    register_model(ModelMeta("seer", model_arch=keys, architectures=["Qwen3ForCausalLM"]))
    assert MODEL_ARCH_MAPPING["seeing"].vision_tower == ("eyes", "ears")
    kept = kept_modules(model_info(ModelOptions(model=str(folder), model_type="seer")))
    assert kept is not None
    assert {"eyes", "ears", "bridge", "lm_head"} <= set(kept)
    with pytest.raises(UsageError, match="already"):
        register_model_arch(keys)


@pytest.mark.parameter("local_repo_path")
def test_a_loader_imports_from_the_clone_of_its_repository(tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "tiny_vendor_code.py").write_text("SCALE = 0.5\n")

    class Vendored(ModelLoader):
        def get_config(self, model_dir):
            from tiny_vendor_code import SCALE

            config = super().get_config(model_dir)
            config.vendor_scale = SCALE
            return config

    monkeypatch.setattr(sys, "path", list(sys.path))
    url = "https://example.org/vendor/code"
    register_model(ModelMeta("vendored", loader=Vendored, architectures=["Qwen3ForCausalLM"], repository=url))
    folder = tiny.checkpoint(tmp_path / "m")
    with pytest.raises(ModelError, match=f"git clone {url}, and pass its folder with --local_repo_path"):
        load(folder, model_type="vendored")
    chosen = ModelOptions(model=str(folder), model_type="vendored", local_repo_path=str(clone))
    assert load_config(model_info(chosen)).vendor_scale == 0.5
    with pytest.raises(ModelError, match=r"--local_repo_path .* has no effect"):
        load(tiny.checkpoint(tmp_path / "other"), local_repo_path=str(clone))


REMOTE = """
from transformers import Qwen3Config, Qwen3ForCausalLM

class FarConfig(Qwen3Config):
    model_type = "far"

class FarForCausalLM(Qwen3ForCausalLM):
    config_class = FarConfig
"""


def test_code_of_a_checkpoint_runs_only_when_a_plugin_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tiny.checkpoint(tmp_path / "far")
    plain = load(folder)(IDS_BT).logits
    (folder / "far.py").write_text(REMOTE)
    auto = {"AutoConfig": "far.FarConfig", "AutoModelForCausalLM": "far.FarForCausalLM"}
    rewritten(folder, model_type="far", architectures=["FarForCausalLM"], auto_map=auto)
    with pytest.raises(ModelError, match="register the model with loader=RemoteCodeLoader"):
        load(folder)
    register_model(ModelMeta("far", loader=RemoteCodeLoader, architectures=["FarForCausalLM"]))
    model = load(folder)
    assert type(model).__name__ == "FarForCausalLM"
    torch.testing.assert_close(model(IDS_BT).logits, plain)


def test_a_package_that_a_family_wants_and_is_not_there_is_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)
    needs = ["torch>=1.0", "transformers<1", "no-such-package>=2"]
    register_model(ModelMeta("needy", architectures=["Qwen3ForCausalLM"], requires=needs))
    load(tiny.checkpoint(tmp_path / "m"), model_type="needy")
    assert "pip install 'transformers<1' 'no-such-package>=2'" in caplog.text
