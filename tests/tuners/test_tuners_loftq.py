"""LoRA that begins with what quantization has lost: nearer to the model, and an adapter for the plain weights as well."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from swift.core.errors import ModelError, UsageError
from swift.models.info import model_info
from swift.models.load import load_model
from swift.models.stored import stored_weights
from swift.options.model import ModelOptions, QuantizationOptions
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach, load_adapters
from swift.tuners.loftq import quantization_of, quantized_weight
from swift.tuners.merge import merge, relative_errors
from swift.tuners.request import Run
from swift.tuners.residual import read_residual
from trainers import runs

IDS_BT = torch.arange(5, 17)[None]
LAYER = "model.layers.0.self_attn.q_proj"


class RoundedQuantLinear(nn.Linear):
    """A linear layer whose weight has few values, as that of a quantized model has."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("loftq") / "model")


def plain(folder):
    options = ModelOptions(model=str(folder))
    return load_model(model_info(options), options, training=False)


def rounded(folder, levels: int = 8):
    """The model with the weights of its layers rounded to a few values each."""
    model = plain(folder)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            coarse = RoundedQuantLinear(module.in_features, module.out_features, bias=False)
            step = module.weight.detach().abs().max() / (levels / 2)
            coarse.weight = nn.Parameter((module.weight.detach() / step).round() * step, requires_grad=False)
            model.set_submodule(name, coarse)
    model.config.quantization_config = {"quant_method": "rounded", "levels": levels}
    return model


def begun(model, folder, adapters=(), **options):
    torch.manual_seed(0)
    wanted = TunerOptions(init_weights="loftq", **{"lora_rank": 4, "lora_dropout": 0.0, **options})
    return attach(model, TunerChoice(), wanted, adapters=adapters, run=Run(stored=stored_weights(folder)))


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS_BT).logits[0].float()


def train(place, model, **settings):
    return runs.train(place, model=model, train=runs.samples(8), max_steps=4, learning_rate=1e-2,
                      save_strategy="steps", save_steps=2, **settings)  # fmt: skip


@pytest.mark.parameter("init_weights")
@pytest.mark.parametrize("rank", [2, 16])
def test_the_adapter_begins_with_the_best_approximation_of_what_was_lost(folder, rank):
    model = begun(rounded(folder), folder, lora_rank=rank)
    layer = model.get_submodule(f"base_model.model.{LAYER}")
    weight = plain(folder).get_submodule(LAYER).weight.detach()
    lost = weight - layer.base_layer.weight
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    missing = torch.linalg.matrix_norm(lost - layer.scaling["default"] * b @ a)
    assert float(missing) == pytest.approx(float(torch.linalg.svdvals(lost)[rank:].norm()), rel=1e-4)
    exact, without = logits(plain(folder)), relative_errors(logits(plain(folder)), logits(rounded(folder))).mean()
    assert relative_errors(exact, logits(model)).mean() < (0.9 if rank > 2 else 1.0) * without


@pytest.mark.parameter("init_weights")
@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parameter("adapters")
@pytest.mark.parameter("merge_lora")
def test_it_learns_resumes_and_answers_on_quantized_and_on_plain_weights(tmp_path, folder):
    whole = train(tmp_path / "whole", begun(rounded(folder), folder))
    halfway, last = (tmp_path / "whole" / f"checkpoint-{step}" for step in (2, 4))
    assert whole.logged("loss")[-1] < whole.logged("loss")[0] - 0.05
    again = begun(rounded(folder), folder, adapters=[str(halfway)])
    resumed = train(tmp_path / "again", again, resume=halfway)
    assert runs.equal(resumed.weights(), whole.weights())

    served = load_adapters(rounded(folder), [last])
    torch.testing.assert_close(logits(served), logits(whole.trainer.model), rtol=1e-5, atol=1e-5)
    assert read_residual(last).quantization == quantization_of(rounded(folder))
    on_plain = load_adapters(plain(folder), [last])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(plain(folder), last)
    torch.testing.assert_close(logits(theirs), logits(on_plain), rtol=0, atol=0)
    assert relative_errors(logits(on_plain), logits(merge(plain(folder), [last]))).max() < 1e-5
    learnt = relative_errors(logits(plain(folder)), logits(on_plain)).mean()
    assert relative_errors(logits(served), logits(on_plain)).mean() < 0.5 * learnt, "both have learnt the same"


@pytest.mark.parameter("adapters")
def test_it_is_trained_on_with_plain_weights_and_not_with_others_that_are_quantized(tmp_path, folder):
    run = train(tmp_path, begun(rounded(folder), folder))
    last = tmp_path / "checkpoint-4"
    going_on = begun(plain(folder), folder, adapters=[str(last)])
    torch.testing.assert_close(logits(going_on), logits(load_adapters(plain(folder), [last])), rtol=1e-4, atol=1e-4)
    assert {name for name, p in going_on.named_parameters() if p.requires_grad} == {
        name for name, p in run.trainer.model.named_parameters() if p.requires_grad
    }
    with pytest.raises(ModelError, match=r'"levels": 8.*and these are quantized as .*"levels": 16'):
        begun(rounded(folder, 16), folder, adapters=[str(last)])
    assert logits(load_adapters(rounded(folder, 16), [last])).isfinite().all()  # as a change of the plain weights


def test_a_beginning_that_was_taken_out_of_plain_weights_is_not_trained_on_with_quantized_ones(tmp_path, folder):
    torch.manual_seed(0)
    train(tmp_path, attach(plain(folder), TunerChoice(), TunerOptions(init_weights="pissa", lora_rank=4)))
    with pytest.raises(ModelError, match="was trained on weights that are not quantized, and these are quantized as"):
        begun(rounded(folder), folder, adapters=[str(tmp_path / "checkpoint-4")])
    assert logits(load_adapters(rounded(folder), [tmp_path / "checkpoint-4"])).isfinite().all()


def test_what_it_cannot_begin_with_is_said(tmp_path, folder):
    with pytest.raises(ModelError, match=r"no adapted layer is quantized\. Add --quant_method"):
        begun(plain(folder), folder)
    with pytest.raises(ModelError, match="A checkpoint that is quantized already has them no more"):
        attach(rounded(folder), TunerChoice(), TunerOptions(init_weights="loftq", lora_rank=4))
    with pytest.raises(ModelError, match=r"--lora_rank 64 is more than the weight of .*k_proj"):
        begun(rounded(folder), folder, lora_rank=64)
    with pytest.raises(ModelError, match="q_proj in the checkpoint is not the one that the model computes with"):
        begun(rounded(folder), tiny.checkpoint(tmp_path / "other", seed=5))
    short = tmp_path / "short"
    short.mkdir()
    kept = {name: value for name, value in load_file(folder / "model.safetensors").items() if ".layers.1." not in name}
    save_file(kept, short / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds no weight of the name model.layers.1"):
        begun(rounded(folder), short)
    with pytest.raises(UsageError, match="--target_parameters cannot begin with"):
        begun(rounded(folder), folder, target_parameters=["mlp.gate_proj.weight"], target_modules=["q_proj"])


@pytest.mark.parametrize("form", ["safetensors", "bin", "without the outer name"])
def test_single_weights_are_read_by_the_name_they_have_in_the_model(tmp_path, folder, form):
    place, tensors = folder, load_file(folder / "model.safetensors")
    if form != "safetensors":
        place = tmp_path
        cut = {name.removeprefix("model."): value for name, value in tensors.items()}
        torch.save(tensors if form == "bin" else cut, place / "pytorch_model.bin")
    read = stored_weights(place)(f"{LAYER}.weight")
    assert torch.equal(read, tensors[f"{LAYER}.weight"])


@pytest.mark.extra
@pytest.mark.parameter("init_weights")
@pytest.mark.parameter("quant_method")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(("method", "bits"), [("bnb", 4), ("bnb", 8), ("hqq", 2), ("hqq", 4), ("quanto", 4)])
def test_real_quantizers_lose_less_with_it_and_their_adapters_come_back(tmp_path, folder, method, bits):
    options, quantization = ModelOptions(model=str(folder)), QuantizationOptions(quant_method=method, quant_bits=bits)

    def quantized():
        return load_model(model_info(options), options, quantization, training=True)

    base = quantized()
    exact = logits(plain(folder))
    layer, weight = base.get_submodule(LAYER), plain(folder).get_submodule(LAYER).weight.detach()
    read = quantized_weight(layer, base.dtype)
    inputs = torch.randn(3, 64)
    # 8 bits of bitsandbytes round inputs too
    torch.testing.assert_close(layer(inputs), inputs @ read.T, rtol=2e-2, atol=2e-2 if bits == 8 else 1e-4)
    without = relative_errors(exact, logits(base)).mean()
    model = begun(quantized(), folder, lora_rank=16)
    assert relative_errors(exact, logits(model)).mean() < without
    assert float((weight - read).norm()) < 0.7 * float(weight.norm())

    whole = train(tmp_path, model)
    assert whole.logged("loss")[-1] < whole.logged("loss")[0]
    last = tmp_path / "checkpoint-4"
    torch.testing.assert_close(logits(load_adapters(quantized(), [last])), logits(whole.trainer.model))
    on_plain = logits(load_adapters(plain(folder), [last]))
    assert relative_errors(on_plain, logits(merge(plain(folder), [last]))).max() < 1e-5
