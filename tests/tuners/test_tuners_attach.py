"""What each option of the adapter does to the model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import tiny
from swift.core.errors import ModelError, UsageError
from swift.core.logs import get_logger
from swift.options.model import ModelOptions
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach, load_adapters

IDS_BT = torch.arange(5, 17)[None]
LORA = TunerChoice()


def lora(model=None, seed=0, **options):
    """A model with a new adapter, not in training."""
    torch.manual_seed(seed)
    return attach(model or tiny.model(), LORA, TunerOptions(**options)).eval()


def stirred(model):
    """The same model after its trained parameters moved, as after some steps of training."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def layer(model):
    return model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")


@pytest.mark.parameter("tuner_type")
def test_lora_trains_its_matrices_only_and_changes_nothing_at_first():
    model = lora()
    assert all("lora_" in name for name in trained(model))
    torch.testing.assert_close(model(IDS_BT).logits, tiny.model()(IDS_BT).logits, rtol=0, atol=0)


@pytest.mark.parameter("tuner_type")
def test_full_gives_the_model_itself():
    model = tiny.model()
    assert attach(model, TunerChoice(tuner_type="full"), TunerOptions()) is model
    assert len(trained(model)) == len(list(model.parameters()))


@pytest.mark.parameter("lora_rank")
def test_the_rank_is_the_inner_dimension():
    weights = layer(lora(lora_rank=3))
    assert (weights.lora_A["default"].weight.shape, weights.lora_B["default"].weight.shape) == ((3, 64), (64, 3))


@pytest.mark.parameter("lora_alpha")
@pytest.mark.parameter("use_rslora")
@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 6 / 4), (True, 6 / math.sqrt(4))])
def test_the_adapter_adds_b_a_scaled_by_alpha_over_the_rank(use_rslora, scale):
    model = stirred(lora(lora_rank=4, lora_alpha=6, use_rslora=use_rslora))
    adapted = layer(model)
    x = torch.randn(5, 64)
    added = x @ adapted.lora_A["default"].weight.T @ adapted.lora_B["default"].weight.T
    torch.testing.assert_close(adapted(x), adapted.base_layer(x) + scale * added)


@pytest.mark.parameter("lora_dropout")
def test_dropout_makes_training_random_and_inference_not():
    model = stirred(lora(lora_dropout=0.5))
    torch.testing.assert_close(model(IDS_BT).logits, model(IDS_BT).logits, rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(IDS_BT).logits, model(IDS_BT).logits)
    without = stirred(lora(lora_dropout=0.0)).train()
    torch.testing.assert_close(without(IDS_BT).logits, without(IDS_BT).logits, rtol=0, atol=0)


@pytest.mark.parameter("lora_bias")
def test_biases_are_trained_along_when_asked():
    def biased():
        return tiny.model(attention_bias=True)

    assert not [name for name in trained(lora(biased())) if name.endswith("bias")]
    biases = [name for name in trained(lora(biased(), lora_bias="all")) if name.endswith("bias")]
    assert len(biases) == 2 * 4


@pytest.mark.parameter("lora_dtype")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_adapter_has_a_type_of_its_own(dtype):
    if dtype == "float16" and torch.cuda.is_available():
        pytest.skip("refused where training is in fp16")
    model = lora(tiny.model().bfloat16(), lora_dtype=dtype, modules_to_save=["norm"])
    matrices = {parameter.dtype for name, parameter in model.named_parameters() if "lora_" in name}
    assert matrices == {getattr(torch, dtype)}
    assert layer(model).base_layer.weight.dtype == torch.bfloat16


@pytest.mark.parameter("lora_dtype")
def test_without_a_type_the_adapter_of_a_half_model_is_kept_in_float32():
    assert {parameter.dtype for parameter in trained(lora(tiny.model().bfloat16())).values()} == {torch.float32}


@pytest.mark.parametrize("choice", [LORA, TunerChoice(tuner_type="full")])
def test_trained_float16_parameters_become_float32(choice):
    model = attach(tiny.model().half(), choice, TunerOptions())
    assert {parameter.dtype for parameter in trained(model).values()} == {torch.float32}


@pytest.mark.parameter("use_dora")
def test_dora_learns_a_magnitude_for_each_output():
    model = lora(use_dora=True)
    magnitude = layer(model).lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude, layer(model).base_layer.weight.norm(dim=1))
    assert any("lora_magnitude_vector" in name for name in trained(model))
    torch.testing.assert_close(model(IDS_BT).logits, tiny.model()(IDS_BT).logits)


@pytest.mark.parameter("init_weights")
def test_initial_weights():
    def matrices(init):
        adapted = layer(lora(init_weights=init, lora_rank=32))
        return adapted.lora_A["default"].weight.detach(), adapted.lora_B["default"].weight.detach()

    kaiming, zero = matrices("true")
    assert zero.abs().max() == 0
    assert kaiming.abs().max() <= 1 / math.sqrt(64) + 1e-6, "uniform within the bound of Kaiming with a = sqrt(5)"
    normal, zero = matrices("gaussian")
    assert zero.abs().max() == 0
    assert float(normal.std()) == pytest.approx(1 / 32, rel=0.1)
    assert normal.abs().max() > 2.5 / 32, "a normal distribution has tails"
    assert matrices("false")[1].abs().max() > 0


@pytest.mark.parameter("modules_to_save")
def test_modules_to_save_are_trained_and_saved_whole(tmp_path):
    from safetensors.torch import load_file

    model = stirred(lora(modules_to_save=["norm"]))
    (name,) = [
        name
        for name in trained(model)
        if "modules_to_save" in name and name.endswith("model.norm.modules_to_save.default.weight")
    ]
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    torch.testing.assert_close(saved["base_model.model.model.norm.weight"], trained(model)[name].detach())


@pytest.mark.parameter("modules_to_save")
@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_a_tied_embedding_is_trained_as_one_matrix(modules):
    model = stirred(lora(modules_to_save=modules))
    inner = model.get_base_model()
    assert inner.lm_head.weight.data_ptr() == inner.model.embed_tokens.weight.data_ptr()
    assert len([name for name in trained(model) if "modules_to_save" in name]) == 1


def test_a_saved_adapter_is_the_same_in_plain_peft(tmp_path):
    folder = tiny.checkpoint(tmp_path / "model")
    model = stirred(lora(AutoModelForCausalLM.from_pretrained(folder)))
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)
    assert config["task_type"] == "CAUSAL_LM"
    expected = model(IDS_BT).logits
    torch.testing.assert_close(load_adapters(tiny.model(), [tmp_path / "adapter"])(IDS_BT).logits, expected)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    torch.testing.assert_close(plain.eval()(IDS_BT).logits, expected)


@pytest.mark.parameter("adapters")
def test_training_goes_on_with_an_adapter_as_it_was_made(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)
    first = stirred(lora(lora_rank=3, target_modules=["q_proj"]))
    first.save_pretrained(tmp_path)
    again = attach(tiny.model(), LORA, TunerOptions(lora_rank=5), adapters=[str(tmp_path)]).eval()
    torch.testing.assert_close(again(IDS_BT).logits, first(IDS_BT).logits)
    assert trained(again).keys() == trained(first).keys()
    assert "lora_rank = 3, as the adapter was made with" in caplog.text


def test_training_does_not_go_on_with_an_adapter_of_another_shape_than_asked_for(tmp_path):
    lora(lora_rank=3, target_modules=["q_proj"]).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"--lora_rank 5 \(it has 3\)"):
        attach(tiny.model(), LORA, TunerOptions(lora_rank=5), adapters=[str(tmp_path)], asked=["lora_rank"])


@pytest.mark.parameter("adapters")
def test_adapters_that_cannot_be_trained_on_are_refused(tmp_path):
    lora().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"exactly one adapter \(got 2\)"):
        attach(tiny.model(), LORA, TunerOptions(), adapters=[str(tmp_path), str(tmp_path)])
    with pytest.raises(UsageError, match="cannot be trained with --tuner_type full"):
        attach(tiny.model(), TunerChoice(tuner_type="full"), TunerOptions(), adapters=[str(tmp_path)])


@pytest.mark.parameter("adapters")
def test_several_adapters_add_up(tmp_path):
    base = tiny.model()(IDS_BT, output_hidden_states=False).logits
    for name, target in (("a", "q_proj"), ("b", "down_proj")):
        stirred(lora(target_modules=[f"layers.1.{'self_attn' if name == 'a' else 'mlp'}.{target}"])).save_pretrained(
            tmp_path / name
        )
    both = load_adapters(tiny.model(), [tmp_path / "a", tmp_path / "b"])
    one_by_one = load_adapters(tiny.model(), [tmp_path / "a"]).merge_and_unload()
    one_by_one = load_adapters(one_by_one, [tmp_path / "b"]).merge_and_unload()
    torch.testing.assert_close(both(IDS_BT).logits, one_by_one(IDS_BT).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both(IDS_BT).logits, base, atol=1e-3)


def test_no_adapters_leave_the_model_alone():
    model = tiny.model()
    assert load_adapters(model, []) is model


def other_model():
    return GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2))


@pytest.mark.parametrize("made", ["another architecture", "another width", "fewer layers", "more layers"])
def test_an_adapter_of_another_model_is_refused(tmp_path, made):
    lora().save_pretrained(tmp_path)
    model = {
        "another architecture": other_model,
        "another width": lambda: tiny.model(hidden_size=32),
        "fewer layers": lambda: tiny.model(layers=1),
        "more layers": lambda: tiny.model(layers=3),
    }[made]()
    with pytest.raises(ModelError, match=rf"--adapters {tmp_path} does not fit the model"):
        load_adapters(model, [tmp_path])


def test_the_options_of_the_model_group_are_enough_to_load(tmp_path):
    from swift.models.info import model_info
    from swift.models.load import load_model

    options = ModelOptions(model=str(tiny.checkpoint(tmp_path / "m")))
    model = attach(load_model(model_info(options), options, training=True), LORA, TunerOptions())
    assert isinstance(model, PeftModel)
