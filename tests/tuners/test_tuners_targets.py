"""Which modules an option means."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from torch import nn

import tiny
from swift.core.errors import ModelError, UsageError
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach
from swift.tuners.targets import all_linear, is_linear, modules_to_save, target_modules, unique_suffixes

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
GPT2 = {
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK = {
    **SIZES, **MOE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8,
    "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
ARCHITECTURES = {
    "Llama": (SIZES, ATTENTION | MLP),
    "Qwen2": ({**SIZES, "tie_word_embeddings": True}, ATTENTION | MLP),
    "Gemma2": ({**SIZES, "head_dim": 16}, ATTENTION | MLP),
    "Qwen3Moe": ({**SIZES, **MOE, "head_dim": 16, "num_experts": 4}, ATTENTION),
    "Phi3": (SIZES, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "GPT2": (GPT2, {"c_attn", "c_proj", "c_fc"}),
    "DeepseekV3": (DEEPSEEK, {"kv_a_proj_with_mqa", "q_b_proj", "o_proj", "kv_b_proj", "q_a_proj"}),
}


def build(name):
    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name][0])
    model_class = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    return model_class(config).eval()


def adapted(model, **options):
    """The names of the modules that got an adapter."""
    tuned = attach(model, TunerChoice(), TunerOptions(**options))
    inner = tuned.get_base_model()
    return {name for name, module in inner.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.parameter("target_modules")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_linear_reaches_every_linear_layer_but_the_output(name):
    model = build(name)
    expected = ARCHITECTURES[name][1]
    assert set(target_modules(model, TunerOptions())) == expected
    linear = {n for n, m in model.named_modules() if is_linear(m) and m is not model.get_output_embeddings()}
    if name == "DeepseekV3":  # its dense and shared layers are named like the insides of its fused experts
        linear = {n for n in linear if n.rpartition(".")[2] not in MLP}
    assert adapted(model) == linear


@pytest.mark.parameter("target_modules")
def test_every_adapted_layer_learns():
    model = attach(build("Llama"), TunerChoice(), TunerOptions(init_weights="false"))
    model(torch.arange(9)[None]).logits.logsumexp(-1).sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())


def test_a_suffix_grows_until_it_names_linear_layers_only():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(2, 2)
            self.norm = nn.ModuleDict({"proj": nn.LayerNorm(2)})
            self.list = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])

    model = nn.Sequential(Block(), Block())
    found = unique_suffixes(model, lambda _, module: isinstance(module, nn.Linear))
    named = {n for n, _ in model.named_modules() if any(n == s or n.endswith(f".{s}") for s in found)}
    assert named == {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}


@pytest.mark.parameter("target_modules")
def test_suffixes_choose_modules():
    assert adapted(tiny.model(), target_modules=["q_proj"]) == {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)}
    assert adapted(tiny.model(), target_modules=["layers.1.mlp.up_proj"]) == {"model.layers.1.mlp.up_proj"}
    assert adapted(tiny.model(), target_modules=["all-embedding"]) == {"model.embed_tokens"}
    everything = adapted(tiny.model(), target_modules=["all-linear", "all-embedding"])
    assert everything == adapted(tiny.model()) | {"model.embed_tokens"}


@pytest.mark.parameter("target_regex")
def test_a_regular_expression_chooses_whole_names_above_the_list():
    found = adapted(tiny.model(), target_modules=["all-linear"], target_regex=r"model\.layers\.0\.self_attn\.[qv]_proj")
    assert found == {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_modules": ["q_prj"]}, r"--target_modules q_prj names no module of the model. Near it are: q_proj"),
        ({"target_modules": ["zzz"]}, r"The model's modules end in: .*q_proj"),
        ({"target_modules": ["mlp"]}, r"Qwen3MLP, which no adapter can be added to.* Inside it are: gate_proj"),
        ({"target_modules": []}, "--target_modules is empty"),
        ({"target_regex": "layers"}, r"matches no module: it must match whole names, such as model.layers.0"),
        ({"target_regex": ".*norm"}, "which no adapter can be added to"),
        ({"modules_to_save": ["lm_hed"]}, "--modules_to_save lm_hed names no module .* lm_head"),
    ],
)
def test_what_names_nothing_is_refused_with_what_is_there(options, words):
    with pytest.raises(ModelError, match=words):
        attach(tiny.model(), TunerChoice(), TunerOptions(**options))


def test_a_broken_regular_expression_is_refused():
    with pytest.raises(UsageError, match=r"--target_regex is no regular expression: .* at position"):
        target_modules(tiny.model(), TunerOptions(target_regex="(q_proj"))


@pytest.mark.parametrize("options", [{"target_modules": ["gate_proj"]}, {"target_regex": r".*(gate|up)_proj"}])
def test_names_that_would_reach_experts_in_place_of_layers_are_refused(options):
    with pytest.raises(ModelError, match="as one fused parameter"):
        attach(build("DeepseekV3"), TunerChoice(), TunerOptions(**options))


@pytest.mark.parameter("modules_to_save")
def test_modules_to_save_knows_embeddings_and_norms():
    model = tiny.model()
    assert modules_to_save(model, TunerOptions(modules_to_save=["all-embedding"])) == ["embed_tokens"]
    norms = modules_to_save(model, TunerOptions(modules_to_save=["all-norm"]))
    assert set(norms) == {"input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm"}


def test_a_model_without_linear_layers_has_no_all_linear():
    class Bare(transformers.PreTrainedModel):
        config_class = transformers.LlamaConfig

        def __init__(self):
            super().__init__(transformers.LlamaConfig(**SIZES))
            self.table = nn.Embedding(3, 3)

    with pytest.raises(ModelError, match="the model has no linear layers"):
        all_linear(Bare())
