"""What each of our own methods does to a model, and that it comes back as it was saved."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

import architectures
import own_tuning
import tiny
from own_tuning import IDS_BT, logits, stirred, trained, tuned
from swift.core.errors import ModelError, UsageError
from swift.core.logs import get_logger
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach, load_adapters
from swift.tuners.merge import merge
from swift.tuners.own.folder import tuning_of
from swift.tuners.own.llamapro import LlamaProConfig, places
from swift.tuners.request import Run

METHODS = list(own_tuning.VARIANTS)
DENSE = ["qwen2", "qwen3", "llama", "gpt2", "mistral", "cohere2", "gemma2", "gemma3_text"]
EXPERTS = ["qwen3_moe", "mixtral", "gpt_oss", "phimoe", "qwen2_moe"]


def saved(folder, method, model=None, **settings):
    """A saved adapter that changes the model, and the model it was saved from."""
    made = stirred(tuned(method, model, **settings))
    tuning_of(made).save(made, folder)
    return made


def own_names(model):
    """Names of parameters that the plain model does not have."""
    return {name for name, _ in model.named_parameters()} - {name for name, _ in tiny.model().named_parameters()}


# ------------------------------------------------------------------------------------------------------- all methods


@pytest.mark.parameter("tuner_type")
@pytest.mark.parametrize("method", ["adapter", "reft"])
def test_what_is_added_is_trained_and_nothing_else(method):
    model = tuned(method)
    assert trained(model).keys() == own_names(model)
    model(IDS_BT, labels=IDS_BT).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == own_names(model)


@pytest.mark.parameter("tuner_type")
@pytest.mark.parametrize("method", ["adapter", "llamapro"])
@pytest.mark.parametrize("family", [*DENSE, *EXPERTS])
def test_a_new_adapter_changes_nothing_and_a_trained_one_does(method, family):
    def model():
        return architectures.model(family, eos_token_id=2)

    made = tuned(method, model())
    torch.testing.assert_close(logits(made), logits(model()), rtol=0, atol=0)
    assert not torch.allclose(logits(stirred(made)), logits(model()), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("modules", [[], ["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], ["all-norm"]])
def test_a_saved_adapter_comes_back_as_it_was(tmp_path, method, tied, modules):
    def model():
        return tiny.model(tie_word_embeddings=tied)

    made = saved(tmp_path, method, model(), modules_to_save=modules)
    assert torch.equal(logits(load_adapters(model(), [tmp_path])), logits(made))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert len(stored) == len(trained(made))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["swift_type"], config["num_base_layers"]) == (method, 2)


@pytest.mark.parameter("modules_to_save")
@pytest.mark.parametrize("method", METHODS)
def test_modules_to_save_are_trained_along(method):
    plain, more = tuned(method), tuned(method, modules_to_save=["embed_tokens"])
    assert trained(more).keys() - trained(plain).keys() == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_a_half_model_works_in_its_type(tmp_path, method):
    made = saved(tmp_path, method, tiny.model().bfloat16())
    assert logits(made).dtype == torch.bfloat16
    assert torch.equal(logits(load_adapters(tiny.model().bfloat16(), [tmp_path])), logits(made))
    if method != "llamapro":
        assert {parameter.dtype for parameter in trained(made).values()} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_generated_from_a_cache_is_what_is_read_in_one_go(method):
    model = stirred(tuned(method))
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, past_key_values=cache, use_cache=True).logits for piece in IDS_BT.split([7, 1, 12], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), logits(model), atol=1e-5, rtol=1e-4)
    reply = model.generate(IDS_BT, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy = IDS_BT
    for _ in range(8):
        greedy = torch.cat([greedy, model(greedy, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(reply, greedy)


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_a_training_can_be_told_without_weights(method):
    with torch.device("meta"):
        empty = tiny.model()
    counted = sum(parameter.numel() for parameter in trained(tuned(method, empty)).values())
    assert counted == sum(parameter.numel() for parameter in trained(tuned(method)).values())


@pytest.mark.parameter("adapters")
@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_in_the_shape_that_was_saved(tmp_path, method, caplog, monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)
    made = saved(tmp_path, method)
    other = {"llamapro": {"llamapro_num_groups": 1}, "adapter": {"adapter_length": 5}, "reft": {"reft_rank": 7}}[method]
    again = tuned(method, adapters=[tmp_path], **other)
    assert torch.equal(logits(again), logits(made))
    assert trained(again).keys() == trained(made).keys()
    assert "as the adapter was made with" in caplog.text
    (option,) = other
    with pytest.raises(UsageError, match=rf"another shape than --{option}"):
        tuned(method, adapters=[tmp_path], asked=[option], **other)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("changes", "why"),
    [({"layers": 1}, "2 layers, and the model has 1"), ({"layers": 4}, "2 layers"), ({"hidden_size": 32}, "has shape")],
)
def test_an_adapter_of_another_model_is_refused(tmp_path, method, changes, why):
    saved(tmp_path, method)
    with pytest.raises(ModelError, match=rf"--adapters {tmp_path} does not fit the model: .*{why}"):
        load_adapters(tiny.model(**changes), [tmp_path])


def test_every_weight_has_its_place_and_every_place_its_weight(tmp_path):
    saved(tmp_path, "adapter")
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    first = min(weights)
    save_file({name: value for name, value in weights.items() if name != first}, file)
    with pytest.raises(ModelError, match=f"lacks 1 weights, {first}"):
        load_adapters(tiny.model(), [tmp_path])
    save_file({**weights, "model.layers.9.x": torch.zeros(1)}, file)
    with pytest.raises(ModelError, match=r"1 of its weights have no place there, model\.layers\.9\.x"):
        load_adapters(tiny.model(), [tmp_path])
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ModelError, match="damaged"):
        load_adapters(tiny.model(), [tmp_path])


def test_adapters_of_different_kinds_are_not_mixed_up(tmp_path):
    saved(tmp_path / "reft", "reft")
    attach(tiny.model(), TunerChoice(), TunerOptions()).save_pretrained(tmp_path / "lora")
    with pytest.raises(ModelError, match="one at a time"):
        load_adapters(tiny.model(), [tmp_path / "reft", tmp_path / "lora"])
    with pytest.raises(UsageError, match=r"made by --tuner_type reft \(got adapter\)"):
        tuned("adapter", adapters=[tmp_path / "reft"])
    with pytest.raises(UsageError, match="was not made by --tuner_type reft"):
        tuned("reft", adapters=[tmp_path / "lora"])
    with pytest.raises(UsageError, match="Give the --tuner_type that it was made by"):
        attach(tiny.model(), TunerChoice(), TunerOptions(), adapters=[str(tmp_path / "reft")])
    with pytest.raises(UsageError, match="exactly one adapter"):
        tuned("reft", adapters=[tmp_path / "reft", tmp_path / "reft"])


@pytest.mark.parametrize(
    ("method", "why"), [("adapter", "an activation of its own"), ("reft", "where the model has no")]
)
def test_what_no_weight_can_hold_is_not_merged(tmp_path, method, why):
    saved(tmp_path, method)
    with pytest.raises(ModelError, match=f"cannot be merged: .*{why}"):
        merge(tiny.model(), [tmp_path])


def test_new_tokens_need_an_embedding_that_learns():
    def attached(*modules):
        options = TunerOptions(modules_to_save=list(modules))
        return attach(tiny.model(), TunerChoice(tuner_type="reft"), options, run=Run(new_token_ids=[399]))

    with pytest.raises(UsageError, match="--modules_to_save embed_tokens lm_head"):
        attached()
    assert attached("embed_tokens", "lm_head").model.embed_tokens.weight.requires_grad


# ----------------------------------------------------------------------------------------------------------- llamapro


@pytest.mark.parameter("llamapro_num_new_blocks")
@pytest.mark.parameter("llamapro_num_groups")
@pytest.mark.parametrize(
    ("blocks", "groups", "new"),
    [(4, 4, [1, 3, 5, 7]), (4, 2, [2, 3, 6, 7]), (2, 1, [4, 5]), (6, 2, [2, 3, 4, 7, 8, 9])],
)
def test_new_layers_stand_behind_the_last_of_each_group(blocks, groups, new):
    model = tuned("llamapro", tiny.model(layers=4), llamapro_num_new_blocks=blocks, llamapro_num_groups=groups)
    assert sorted({int(name.split(".")[2]) for name in trained(model)}) == new
    assert model.config.num_hidden_layers == len(model.model.layers) == 4 + blocks
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(4 + blocks))
    assert len(model.config.layer_types) == 4 + blocks
    torch.testing.assert_close(logits(model), logits(tiny.model(layers=4)), rtol=0, atol=0)


def test_a_new_layer_is_a_copy_but_for_the_ends_of_its_branches():
    model = tuned("llamapro")
    old, new = (dict(model.model.layers[number].named_parameters()) for number in (0, 1))
    differing = {name for name in old if not torch.equal(old[name], new[name])}
    assert differing == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    assert all(not new[name].any() for name in differing)


def test_groups_are_as_equal_as_they_can_be():
    assert places(8, LlamaProConfig(3, 3)) == [1, 4, 7]
    assert places(7, LlamaProConfig(2, 2)) == [2, 6]
    with pytest.raises(UsageError, match="--llamapro_num_groups 5: the model has 4 layers"):
        places(4, LlamaProConfig(5, 5))
    with pytest.raises(UsageError, match="4 is no multiple of --llamapro_num_groups 3"):
        places(4, LlamaProConfig(4, 3))


@pytest.mark.parameter("merge_lora")
@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2", "gemma3_text", "mixtral", "qwen2_moe"])
def test_a_merged_expansion_is_a_model_with_more_layers(tmp_path, family):
    def model():
        return architectures.model(family, eos_token_id=2)

    made = saved(tmp_path / "adapter", "llamapro", model())
    merge(model(), [tmp_path / "adapter"]).save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), logits(made), rtol=0, atol=1e-6)
    assert plain.config.num_hidden_layers == made.config.num_hidden_layers


@pytest.mark.parametrize("family", ["qwen3_next", "mamba", "falcon"])
def test_layers_without_attention_are_expanded_too(family):
    model = architectures.model(family)
    before = logits(model)
    torch.testing.assert_close(logits(tuned("llamapro", model)), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "why"), [("llama4_text", "layers of several kinds, in an order"), ("bamba", "attn_layer_indices")]
)
def test_an_architecture_whose_config_could_not_describe_it_is_refused(family, why):
    with pytest.raises(ModelError, match=f"--tuner_type llamapro: .*{why}"):
        tuned("llamapro", architectures.model(family))


# ------------------------------------------------------------------------------------------------------------ adapter


@pytest.mark.parameter("tuner_type")
def test_a_bottleneck_adds_up_act_down_to_what_the_mlp_says():
    plain, model = tiny.model(), stirred(tuned("adapter", adapter_length=6, adapter_act="relu"))
    x = torch.randn(2, 5, 64)
    own = model.model.layers[0].mlp.bottleneck
    hidden = plain.model.layers[0].mlp(x)
    added = torch.relu(hidden @ own.down.weight.T + own.down.bias) @ own.up.weight.T + own.up.bias
    torch.testing.assert_close(model.model.layers[0].mlp(x), hidden + added)
    assert own.down.weight.shape == (6, 64)


def test_an_unknown_activation_and_a_layer_without_mlp_are_refused():
    with pytest.raises(UsageError, match=r"--adapter_act gelo is no activation of transformers. Did you mean gelu"):
        tuned("adapter", adapter_act="gelo")
    with pytest.raises(ModelError, match="has no module named mlp"):
        tuned("adapter", architectures.model("mamba"))


# --------------------------------------------------------------------------------------------------------------- reft


def edit(model, layer=0):
    return model.model.layers[layer].reft


def formula(kind, own, h):
    """The edits as the paper writes them; R and W2 have their directions as rows."""
    rows = own.directions().T
    w, b = (None, own.source) if isinstance(own.source, torch.nn.Parameter) else (own.source.weight, own.source.bias)
    if kind == "LoreftIntervention" or kind == "NoreftIntervention":
        return h + (h @ w.T + b - h @ rows.T) @ rows
    if kind == "ConsreftIntervention":
        return h + (b - h @ rows.T) @ rows
    if kind == "LobireftIntervention":
        return h + b @ rows
    return h + (h @ w.T + b) @ rows


@pytest.mark.parameter("reft_intervention_type")
@pytest.mark.parameter("reft_rank")
@pytest.mark.parametrize(
    ("kind", "orthonormal"),
    [
        ("LoreftIntervention", True), ("NoreftIntervention", False), ("ConsreftIntervention", True),
        ("LobireftIntervention", True), ("DireftIntervention", True), ("NodireftIntervention", False),
    ],
)  # fmt: skip
def test_each_kind_of_intervention_is_its_formula(tmp_path, kind, orthonormal):
    model = stirred(tuned("reft", reft_intervention_type=kind, reft_rank=3), scale=0.3)
    own, h = edit(model), torch.randn(2, 5, 64)
    torch.testing.assert_close(own(h), formula(kind, own, h), rtol=1e-4, atol=1e-5)
    gram = own.directions().T @ own.directions()
    assert gram.shape == (3, 3)
    assert torch.allclose(gram, torch.eye(3), atol=1e-5) is orthonormal, "also after it has moved"
    tuning_of(model).save(model, tmp_path)
    assert torch.equal(logits(load_adapters(tiny.model(), [tmp_path])), logits(model))


def test_the_output_of_a_layer_is_edited_at_every_position():
    model, seen = stirred(tuned("reft", reft_layers=[1])), {}
    layer = model.model.layers[1]
    layer.reft.register_forward_hook(lambda _, inputs, output: seen.update(before=inputs[0], after=output))
    model(IDS_BT)
    assert seen["before"].shape == (1, 20, 64)
    assert ((seen["after"] - seen["before"]).abs().amax(-1) > 1e-4).all()
    torch.testing.assert_close(model.lm_head(model.model.norm(seen["after"])), logits(model))


def test_weight_decay_does_not_bend_orthonormal_directions():
    own = edit(stirred(tuned("reft")))
    before = own.directions().detach()
    own.directions.weight.data *= 0.7
    torch.testing.assert_close(own.directions(), before)


@pytest.mark.parameter("reft_layers")
def test_the_layers_that_are_edited():
    assert sorted({int(name.split(".")[2]) for name in trained(tuned("reft", tiny.model(layers=4)))}) == [0, 1, 2, 3]
    model = tuned("reft", tiny.model(layers=4), reft_layers=[2, 0])
    assert sorted({int(name.split(".")[2]) for name in trained(model)}) == [0, 2]
    with pytest.raises(UsageError, match="--reft_layers 4 9: the model has layers 0 to 3"):
        tuned("reft", tiny.model(layers=4), reft_layers=[1, 4, 9])
    with pytest.raises(UsageError, match="--reft_rank 65: hidden states have 64 channels"):
        tuned("reft", reft_rank=65)


@pytest.mark.parameter("reft_args")
def test_further_arguments_of_an_intervention():
    h = torch.randn(1, 4, 64)
    own = edit(stirred(tuned("reft", reft_args={"act_fn": "relu"})))
    rows, source = own.directions().T, own.source
    expected = h + (torch.relu(h @ source.weight.T + source.bias) - h @ rows.T) @ rows
    torch.testing.assert_close(own(h), expected, rtol=1e-4, atol=1e-5)
    dropped = edit(tuned("reft", reft_args={"dropout": 0.5})).train()
    assert (dropped(h) == 0).float().mean() > 0.3
    biased = edit(stirred(tuned("reft", reft_intervention_type="NoreftIntervention", reft_args={"add_bias": True})))
    assert biased.bias.any()
    torch.testing.assert_close(biased(h), formula("NoreftIntervention", biased, h) - biased.bias @ biased.directions().T,
                               rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "args", "said"),
    [
        ("LoreftIntervention", {"add_bias": True}, "add_bias has no effect on LoreftIntervention"),
        ("ConsreftIntervention", {"act_fn": "relu"}, "act_fn has no effect on ConsreftIntervention"),
        ("LoreftIntervention", {"embed_dim": 3}, "embed_dim has no effect"),
        ("LoreftIntervention", {"dropout": 2}, "dropout = 2"),
        ("LoreftIntervention", {"act_fn": "rely"}, "act_fn = 'rely'"),
    ],
)
def test_arguments_without_a_meaning_are_refused(kind, args, said):
    with pytest.raises(UsageError, match=said):
        tuned("reft", reft_intervention_type=kind, reft_args=args)
