"""The short way of a LoRA layer: peft's numbers and gradients, peft's files, peft's own way for all that is not plain."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach
from swift.tuners.dropout import quicken
from swift.tuners.low_rank import LowRankLinear, shorten

IDS_BT = torch.arange(5, 45).view(2, 20)
HALF = torch.bfloat16


def adapted_layer(dtype=torch.float32, *, has_bias=True, short=True, **config):
    """One linear layer with a stirred adapter, the same for every call, and the module it stands in."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(48, 80, bias=has_bias)).to(dtype)
    made = LoraConfig(target_modules=["0"], **{"r": 4, "lora_alpha": 16, "init_lora_weights": False, **config})
    if short:
        shorten(made)
    model = get_peft_model(net, made)
    quicken(model)
    return model, model.get_submodule("base_model.model.0")


def run(model, dtype, seed=11):
    """Outputs and the gradients of inputs and of what is trained, for the same inputs every time."""
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(2, 33, 48, generator=draw).to(dtype).requires_grad_()
    slopes = torch.randn(2, 33, 80, generator=draw).to(dtype)
    torch.manual_seed(seed)
    outputs = model(inputs)
    wanted = {"inputs": inputs, **{name: value for name, value in model.named_parameters() if value.requires_grad}}
    gradients = torch.autograd.grad(outputs, list(wanted.values()), slopes)
    return {"outputs": outputs.detach(), **dict(zip(wanted, gradients, strict=True))}


def apart(found, expected):
    """The distance of two tensors as a share of the second."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parameter("lora_dropout")
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("bias", ["none", "all", False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (HALF, 6e-3)])
def test_outputs_and_gradients_are_those_of_peft(dtype, tolerance, dropout, bias, use_rslora):
    has_bias = bool(bias)
    options = {"lora_dropout": dropout, "use_rslora": use_rslora, "bias": bias or "none"}
    short, layer = adapted_layer(dtype, has_bias=has_bias, **options)
    assert type(layer) is LowRankLinear
    long, theirs = adapted_layer(dtype, has_bias=has_bias, short=False, **options)
    assert type(theirs) is Linear
    found, expected = run(short, dtype), run(long, dtype)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert apart(found[name], value) < tolerance, name


def test_a_bfloat16_layer_is_as_near_to_the_truth_as_pefts_under_mixed_precision():
    """The truth is that of the same weights in float64; what mixed precision rounds, is rounded here."""
    short, _ = adapted_layer(HALF)
    long, _ = adapted_layer(HALF, short=False)
    truth = run(copy.deepcopy(long).double(), torch.float64)
    with torch.autocast("cpu", dtype=HALF):
        ours, theirs = run(short, HALF), run(long, HALF)
    for name, value in truth.items():
        assert apart(ours[name], value) < 1.2 * apart(theirs[name], value), name


@pytest.mark.parameter("lora_dtype")
@pytest.mark.parametrize("lora_dtype", ["float32", "bfloat16", None])
def test_the_matrices_and_their_gradients_keep_the_type_of_lora_dtype(lora_dtype):
    model = attach(tiny.model().to(HALF), TunerChoice(), TunerOptions(lora_dtype=lora_dtype))
    model(IDS_BT, labels=IDS_BT).loss.backward()
    learnt = [value for value in model.parameters() if value.requires_grad]
    expected = HALF if lora_dtype == "bfloat16" else torch.float32
    assert {value.dtype for value in learnt} == {expected}
    assert {value.grad.dtype for value in learnt} == {expected}


def disable(_model, layer):
    layer.enable_adapters(False)


def merge(_model, layer):
    layer.merge()


def listen(_model, layer):
    layer.lora_A["default"].register_forward_pre_hook(lambda _module, _inputs: None)


def add_another(model, layer):
    model.add_adapter("other", LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
    layer.set_adapter(["default", "other"])


def lower_the_type(_model, layer):
    layer.lora_A["default"].to(HALF)
    layer.lora_B["default"].to(HALF)


@pytest.mark.parametrize("change", [disable, merge, listen, add_another, lower_the_type])
def test_what_is_not_plain_goes_the_way_of_peft(change):
    model, layer = adapted_layer()
    change(model, layer)
    x = torch.randn(3, 48)
    assert torch.equal(layer(x), Linear.forward(layer, x))


def test_dora_goes_the_way_of_peft():
    _, layer = adapted_layer(use_dora=True)
    x = torch.randn(3, 48)
    assert torch.equal(layer(x), Linear.forward(layer, x))


def test_who_listens_to_a_layer_within_hears_every_call():
    _, layer = adapted_layer()
    heard = []
    layer.base_layer.register_forward_hook(lambda _module, inputs, _output: heard.append(inputs[0].shape))
    layer(torch.randn(3, 48))
    assert heard == [(3, 48)]


class Products(TorchDispatchMode):
    """Counts the products of layers that are run."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parameter("gradient_checkpointing")
def test_the_last_layer_of_a_block_is_not_run_again_where_activations_are_recomputed():
    model = attach(tiny.model(layers=3), TunerChoice(), TunerOptions())
    model.base_model.model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    with Products() as forward:
        loss = model(IDS_BT, labels=IDS_BT).loss
    with Products() as backward:
        loss.backward()
    assert (forward.count, backward.count) == (3 * 7, 3 * 6)


@pytest.mark.parametrize("again", [False, True])
def test_peft_reads_the_files_and_gives_the_same_logits(tmp_path, again):
    model = attach(tiny.model(), TunerChoice(), TunerOptions())
    for value in model.parameters():
        if value.requires_grad:
            value.data += 0.05 * torch.randn_like(value)
    model.save_pretrained(tmp_path / "one")
    if again:
        model = attach(tiny.model(), TunerChoice(), TunerOptions(), adapters=[str(tmp_path / "one")])
        model.save_pretrained(tmp_path / "two")
    assert {type(module) for module in model.modules() if isinstance(module, Linear)} == {LowRankLinear}
    folder = tmp_path / ("two" if again else "one")
    theirs = PeftModel.from_pretrained(tiny.model(), str(folder)).eval()
    assert {type(module) for module in theirs.modules() if isinstance(module, Linear)} == {Linear}
    torch.testing.assert_close(model.eval()(IDS_BT).logits, theirs(IDS_BT).logits)
    plain = get_peft_model(tiny.model(), LoraConfig.from_pretrained(str(folder)))
    plain.save_pretrained(tmp_path / "plain")
    one, other = (load_file(each / "adapter_model.safetensors") for each in (folder, tmp_path / "plain"))
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
