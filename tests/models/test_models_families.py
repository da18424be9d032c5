"""Which family a checkpoint is of, and which layout it takes, by what is on disk."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from transformers.models.auto import modeling_auto

from swift.catalog.families_text import ROWS
from swift.catalog.layouts import LAYOUTS
from swift.core.errors import ModelError
from swift.models.families import layout_for
from swift.models.info import model_info
from swift.options.model import ModelOptions
from swift.options.template import TemplateOptions

BARE = SimpleNamespace(chat_template=None)
NOT_BY_NAME = {"qwen3_guard", "hy_v3"}
"""Templates of families that are not among the layouts; docs/templates.md says why."""


def info_of(folder, architecture: str, *, noted: str | None = None, **options):
    """What is known of a checkpoint in this folder with this architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "any", "architectures": [architecture], "vocab_size": 9}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if noted:
        (folder / "args.json").write_text(json.dumps({"model_type": noted}), encoding="utf-8")
    return model_info(ModelOptions(model=str(folder), **options))


def test_every_row_is_one_of_a_kind_and_names_templates_that_are_known() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    named = {template for row in ROWS for template in row.templates}
    assert named - set(LAYOUTS) == NOT_BY_NAME
    for row in ROWS:
        decided = {name.partition("=")[2] for name in row.names} - {""}
        assert decided <= set(row.templates), row.name
        assert row.templates


def test_an_architecture_is_one_transformers_has_where_the_row_says_so() -> None:
    tables = [table for name, table in vars(modeling_auto).items() if name.endswith("MAPPING_NAMES")]
    known = {
        each for table in tables for names in table.values() for each in ([names] if isinstance(names, str) else names)
    }
    for row in ROWS:
        if row.architectures:
            assert bool(set(row.architectures) & known) == row.is_native, row.name


@pytest.mark.parameter("model_type")
@pytest.mark.parametrize(
    ("name", "architecture", "family", "template"),
    [
        ("Qwen3-0.6B-Base", "Qwen3ForCausalLM", "qwen3", "qwen3"),
        ("Qwen3-4B-Thinking-2507", "Qwen3ForCausalLM", "qwen3", "qwen3_thinking"),
        ("Qwen3-30B-A3B-Instruct-2507", "Qwen3MoeForCausalLM", "qwen3_moe", "qwen3_nothinking"),
        ("Qwen3-Coder-30B-A3B-Instruct", "Qwen3MoeForCausalLM", "qwen3_moe", "qwen3_coder"),
        ("Qwen3-Embedding-0.6B", "Qwen3ForCausalLM", "qwen3_emb", "qwen3_emb"),
        ("Qwen3-Reranker-4B", "Qwen3ForCausalLM", "qwen3_reranker", "qwen3_reranker"),
        ("DeepSeek-R1-0528-Qwen3-8B", "Qwen3ForCausalLM", "qwen3", "deepseek_r1"),
        ("Qwen2-7B", "Qwen2ForCausalLM", "qwen2", "qwen"),
        ("Qwen2.5-Math-7B", "Qwen2ForCausalLM", "qwen2", "qwen2_5_math"),
        ("QwQ-32B-Preview", "Qwen2ForCausalLM", "qwen2", "qwq_preview"),
        ("QwQ-32B-AWQ", "Qwen2ForCausalLM", "qwen2", "qwq"),
        ("gte-Qwen2-1.5B-instruct", "Qwen2ForCausalLM", "qwen2_gte", "dummy"),
        ("Llama-2-7b-hf", "LlamaForCausalLM", "llama", "llama"),
        ("Meta-Llama-3-8B", "LlamaForCausalLM", "llama", "llama3"),
        ("Llama-3.2-1B", "LlamaForCausalLM", "llama", "llama3_2"),
        ("Yi-1.5-6B", "LlamaForCausalLM", "yi", "chatml"),
        ("Yi-Coder-9B-Chat", "LlamaForCausalLM", "yi", "yi_coder"),
        ("openbuddy-llama3.1-8b-v22.1-131k", "LlamaForCausalLM", "openbuddy_llama", "openbuddy2"),
        ("Mistral-7B-Instruct-v0.1", "MistralForCausalLM", "mistral", "llama"),
        ("Mistral-Nemo-Instruct-2407", "MistralForCausalLM", "mistral_nemo", "mistral_nemo"),
        ("zephyr-7b-beta", "MistralForCausalLM", "zephyr", "zephyr"),
        ("Phi-3.5-mini-instruct", "Phi3ForCausalLM", "phi3", "phi3"),
        ("phi-4", "Phi3ForCausalLM", "phi4", "phi4"),
        ("DeepSeek-V3.1", "DeepseekV3ForCausalLM", "deepseek_v3", "deepseek_v3_1"),
        ("DeepSeek-R1", "DeepseekV3ForCausalLM", "deepseek_v3", "deepseek_r1"),
        ("Kimi-K2-Instruct", "DeepseekV3ForCausalLM", "deepseek_v3", "kimi_k2"),
        ("GLM-4.7", "Glm4MoeForCausalLM", "glm4_moe", "glm4_7"),
        ("GLM-4.5-Air", "Glm4MoeForCausalLM", "glm4_moe", "glm4_5"),
        ("ERNIE-4.5-21B-A3B-Thinking", "Ernie4_5_MoeForCausalLM", "ernie4_5_moe", "ernie_thinking"),
        ("OLMoE-1B-7B-0924-Instruct", "OlmoeForCausalLM", "olmoe", "olmoe_0924"),
        ("c4ai-command-r-v01", "CohereForCausalLM", "c4ai", "c4ai"),
        ("gemma-2-2b-it", "Gemma2ForCausalLM", "gemma2", "gemma"),
        ("models--Qwen--Qwen2.5-0.5B/snapshots/0123abc", "Qwen2ForCausalLM", "qwen2", "qwen2_5"),
        ("Qwen2___5-0___5B", "Qwen2ForCausalLM", "qwen2", "qwen2_5"),
    ],
)
def test_the_name_of_a_checkpoint_tells_its_family_and_its_template(
    tmp_path, name, architecture, family, template
) -> None:
    info = info_of(tmp_path / name, architecture)
    assert info.family == family
    layout = layout_for(info, TemplateOptions(), BARE)
    assert layout is not None
    assert layout.name == template


@pytest.mark.parameter("model_type")
def test_a_renamed_checkpoint_is_known_where_its_files_leave_no_doubt(tmp_path) -> None:
    assert info_of(tmp_path / "mine", "Qwen3ForCausalLM").family == "qwen3"  # the others do not write text
    assert info_of(tmp_path / "mine", "Qwen2MoeForCausalLM").family == "qwen2_moe"
    assert info_of(tmp_path / "mine", "LlamaForCausalLM").family is None
    assert info_of(tmp_path / "mine", "UnheardOfForCausalLM").family is None
    assert info_of(tmp_path / "noted", "LlamaForCausalLM", noted="yi").family == "yi"
    assert info_of(tmp_path / "noted", "LlamaForCausalLM", noted="qwen3").family is None  # it does not fit
    asked = info_of(tmp_path / "noted", "LlamaForCausalLM", noted="yi", model_type="llama")
    assert asked.family == "llama"


@pytest.mark.parameter("model_type")
def test_a_family_that_does_not_fit_is_refused_with_those_that_do(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"--model_type qwen3 does not fit .*LlamaForCausalLM \(llama, yi") as caught:
        info_of(tmp_path / "a", "LlamaForCausalLM", model_type="qwen3")
    assert "Did you mean" not in str(caught.value)
    with pytest.raises(ModelError, match=r"Did you mean llama\?"):
        info_of(tmp_path / "a", "LlamaForCausalLM", model_type="lama")
    assert info_of(tmp_path / "a", "StructBert", model_type="bert").family == "bert"


@pytest.mark.parameter("model_type")
@pytest.mark.parameter("template")
def test_the_family_decides_the_layout_where_it_speaks_one_and_else_names_those_it_speaks(tmp_path) -> None:
    unnamed = info_of(tmp_path / "mine", "LlamaForCausalLM")
    with pytest.raises(
        ModelError, match=r"speak several: llama, atom, .*chatml.*--template.*--use_chat_template false"
    ):
        layout_for(unnamed, TemplateOptions(), BARE)
    named = info_of(tmp_path / "mine", "LlamaForCausalLM", model_type="codefuse_codellama")
    assert layout_for(named, TemplateOptions(), BARE) is LAYOUTS["codefuse_codellama"]
    both = info_of(tmp_path / "mine", "DeepseekV32ForCausalLM")
    assert layout_for(both, TemplateOptions(), BARE) is LAYOUTS["deepseek_v3_1"]  # two families, one template
    with pytest.raises(ModelError, match=r"no layout is known for its architecture \(UnheardOf"):
        layout_for(info_of(tmp_path / "mine", "UnheardOfForCausalLM"), TemplateOptions(), BARE)
    with pytest.raises(ModelError, match=r"its family \(qwen3_guard\) is none"):
        layout_for(info_of(tmp_path / "Qwen3Guard-Gen-4B", "Qwen3ForCausalLM"), TemplateOptions(), BARE)


@pytest.mark.parameter("template")
def test_no_layout_is_looked_for_where_none_is_needed(tmp_path) -> None:
    info = info_of(tmp_path / "mine", "LlamaForCausalLM")
    assert layout_for(info, TemplateOptions(), SimpleNamespace(chat_template="{{ messages }}")) is None
    assert layout_for(info, TemplateOptions(template="qwen"), BARE) is None
    assert layout_for(info, TemplateOptions(use_chat_template=False), BARE) is None
