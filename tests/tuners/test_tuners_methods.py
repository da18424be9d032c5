"""Every kind of adapter: what it learns, saves, goes on from, and becomes when it is merged."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import tiny
from swift.core.errors import ModelError, UsageError
from swift.options.tuner import TunerChoice, TunerOptions
from swift.options.tuner_variants import TunerVariantOptions
from swift.tuners.attach import attach, load_adapters
from swift.tuners.merge import merge, relative_errors
from swift.tuners.methods import METHODS
from swift.tuners.request import Request, Run
from trainers import runs

IDS_BT = torch.arange(5, 17)[None]
STEPS = 6
VARIANTS = {
    "adalora": {"adalora_init_r": 4, "adalora_target_r": 2},
    "vera": {"vera_rank": 8, "vera_d_initial": 0.5},
    "boft": {},
    "fourierft": {"fourier_n_frequency": 50},
    "bone": {},
}
"""Options that fit the tiny model, by kind."""
RATES = {"lora": 1e-2, "adalora": 1e-2, "vera": 1e-1, "boft": 1e-2, "fourierft": 1e-1, "bone": 1e-2}
"""Learning rates at which the tiny model learns something in a few steps."""
KINDS = [kind for kind in METHODS if kind != "longlora"]  # LoRA with more modules, and tests of its own
CASES = {
    **{kind: {"tuner_type": kind} for kind in KINDS},
    "bone with bat": {"tuner_type": "bone", "init_weights": "bat", "lora_rank": 16},
    "bone at random, of a rank that divides nothing": {"tuner_type": "bone", "init_weights": "false", "lora_rank": 5},
    **{init: {"init_weights": init} for init in ("pissa", "pissa_niter_4", "olora")},
    "pissa with rslora": {"init_weights": "pissa", "use_rslora": True, "lora_rank": 3},
    "pissa with dora": {"init_weights": "pissa", "use_dora": True},
    "olora with norms and embeddings": {
        "init_weights": "olora", "modules_to_save": ["all-norm"], "target_modules": ["all-linear", "all-embedding"],
    },
}  # fmt: skip


def tuned(tuner_type="lora", seed=0, adapters=(), asked=(), steps=STEPS, variants=None, **options):
    """A tiny model with an adapter of a kind."""
    torch.manual_seed(seed)
    return attach(
        tiny.model(), TunerChoice(tuner_type=tuner_type), TunerOptions(**options), adapters=adapters, asked=asked,
        variants=TunerVariantOptions(**VARIANTS.get(tuner_type, {}) | (variants or {})), run=Run(total_steps=steps),
    )  # fmt: skip


def train(folder, model, kind, **settings):
    return runs.train(
        folder, model=model, train=runs.samples(8), max_steps=STEPS, learning_rate=RATES[kind], **settings
    )


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS_BT).logits[0]


@pytest.mark.parameter("tuner_type")
@pytest.mark.parameter("init_weights")
@pytest.mark.parameter("adapters")
@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parameter("merge_lora")
@pytest.mark.parametrize("name", CASES)
def test_it_learns_and_its_checkpoint_resumes_answers_and_merges(tmp_path, name):
    options = CASES[name]
    kind = options.get("tuner_type", "lora")
    whole = train(tmp_path / "whole", tuned(**options), kind, save_strategy="steps", save_steps=2)
    losses = whole.logged("loss")
    assert losses[-1] < losses[0] - 0.05
    halfway, last = (tmp_path / "whole" / f"checkpoint-{step}" for step in (2, STEPS))

    resumed = train(
        tmp_path / "resumed", tuned(**options, adapters=[str(halfway)]), kind, resume=halfway, save_strategy="no"
    )
    assert resumed.logged("loss") == losses
    assert runs.equal(resumed.weights(), whole.weights())

    expected = logits(whole.trainer.model)
    loaded = logits(load_adapters(tiny.model(), [last]))
    assert relative_errors(expected, loaded).max() < 1e-5
    assert relative_errors(logits(tiny.model()), loaded).max() > 1e-3, "the adapter has an effect"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = PeftModel.from_pretrained(tiny.model(), last)
    torch.testing.assert_close(logits(plain), loaded, rtol=0, atol=0)

    assert relative_errors(loaded, logits(merge(tiny.model(), [last]))).max() < 1e-5

    again = tuned(**options, adapters=[str(last)], seed=3)
    assert relative_errors(expected, logits(again)).max() < 1e-5
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in whole.trainer.model.named_parameters() if p.requires_grad
    }


def test_an_adapter_of_another_kind_names_its_own(tmp_path):
    tuned("vera").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"is a VERA adapter. Go on with its own type: --tuner_type vera"):
        tuned("lora", adapters=[str(tmp_path)])


@pytest.mark.parametrize(
    ("kind", "option", "value", "words"),
    [
        ("adalora", "adalora_init_r", 6, r"--adalora_init_r 6 \(it has 4\)"),
        ("vera", "vera_rank", 16, r"--vera_rank 16 \(it has 8\)"),
        ("boft", "boft_block_size", 8, r"--boft_block_size 8 \(it has 4\)"),
        ("fourierft", "fourier_n_frequency", 20, r"--fourier_n_frequency 20 \(it has 50\)"),
    ],
)
def test_another_shape_than_the_adapter_has_is_refused_when_it_was_asked_for(tmp_path, kind, option, value, words):
    tuned(kind).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=words):
        tuned(kind, adapters=[str(tmp_path)], asked=[option], variants={option: value})
    tuned(kind, adapters=[str(tmp_path)], variants={option: value})


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("lora_rank", 4, r"--lora_rank 4 \(it has 8\)"), ("init_weights", "bat", r"--init_weights bat \(it has true\)")],
)
def test_another_shape_than_that_of_bone_is_refused_when_it_was_asked_for(tmp_path, option, value, words):
    tuned("bone").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=words):
        tuned("bone", adapters=[str(tmp_path)], asked=[option], **{option: value})
    tuned("bone", adapters=[str(tmp_path)], asked=["init_weights"], init_weights="true")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parameter("target_modules")
@pytest.mark.parameter("target_regex")
@pytest.mark.parameter("modules_to_save")
def test_every_kind_adapts_the_modules_that_are_named_and_trains_others_whole(kind):
    def trained(**options):
        return {name for name, p in tuned(kind, **options).named_parameters() if p.requires_grad}

    named = trained(target_modules=["q_proj"], modules_to_save=["all-norm"])
    assert {name.split(".")[5] for name in named if "modules_to_save" not in name} == {"self_attn"}
    assert any("model.norm.modules_to_save" in name for name in named)
    matched = trained(target_regex=r".*layers\.1\..*down_proj")
    assert matched
    assert all("layers.1.mlp.down_proj" in name for name in matched)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"lora", "adalora"}])
@pytest.mark.parameter("modules_to_save")
def test_kinds_that_cannot_train_a_tied_embedding_as_one_matrix_say_so(kind):
    with pytest.raises(UsageError, match=r"--modules_to_save embed_tokens: .* one matrix"):
        tuned(kind, modules_to_save=["embed_tokens"])
    with pytest.raises(UsageError, match="--new_special_tokens: only --tuner_type full and lora"):
        attach(
            tiny.model(), TunerChoice(tuner_type=kind), TunerOptions(), run=Run(new_token_ids=[399]),
            variants=TunerVariantOptions(**VARIANTS[kind]),
        )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_with_the_same_config_has_the_same_logits_and_gradients(kind):
    def stirred(model):
        torch.manual_seed(5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        return model.eval()

    ours = stirred(tuned(kind))
    variants = TunerVariantOptions(**VARIANTS.get(kind, {}))
    config = METHODS[kind].config(tiny.model(), Request(TunerOptions(), variants, Run(total_steps=STEPS)))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = stirred(get_peft_model(tiny.model(), config))
    for model in (ours, plain):
        model(IDS_BT).logits.square().mean().backward()
    # plain LoRA adds its products in another order
    near = {"rtol": 1e-3, "atol": 1e-7} if kind == "lora" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(logits(ours), logits(plain), **near)
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, **near)


# ---------------------------------------------------------------------------------------------------- options of kinds


def config_of(kind, **variants):
    return tuned(kind, variants=variants).peft_config["default"]


def layer(model):
    return model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")


@pytest.mark.parameter("vera_rank")
@pytest.mark.parameter("vera_d_initial")
def test_vera_has_one_vector_of_its_rank_per_layer_that_begins_as_told():
    vector = layer(tuned("vera", variants={"vera_rank": 5, "vera_d_initial": 0.3})).vera_lambda_d["default"]
    torch.testing.assert_close(vector.detach(), torch.full((5,), 0.3))


@pytest.mark.parameter("vera_projection_prng_key")
@pytest.mark.parametrize("saved", [True, False])
def test_the_random_matrices_of_vera_are_saved_or_drawn_again(tmp_path, saved):
    model = tuned("vera", variants={"vera_projection_prng_key": saved})
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    model.save_pretrained(tmp_path)
    assert ("base_model.vera_A" in load_file(tmp_path / "adapter_model.safetensors")) is saved
    torch.testing.assert_close(logits(load_adapters(tiny.model(), [tmp_path])), logits(model), rtol=0, atol=0)


@pytest.mark.parameter("vera_dropout")
@pytest.mark.parameter("boft_dropout")
@pytest.mark.parametrize(("kind", "option"), [("vera", "vera_dropout"), ("boft", "boft_dropout")])
def test_dropout_acts_in_training_and_not_in_inference(kind, option):
    def outputs(share):
        model = tuned(kind, variants={option: share})
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.eval()
        torch.testing.assert_close(model(IDS_BT).logits, model(IDS_BT).logits, rtol=0, atol=0)
        model.train()
        return model(IDS_BT).logits, model(IDS_BT).logits

    assert torch.equal(*outputs(0.0))
    assert not torch.equal(*outputs(0.5))


@pytest.mark.parameter("boft_block_size")
@pytest.mark.parameter("boft_block_num")
def test_the_blocks_of_boft_are_counted_or_measured():
    by_size = layer(tuned("boft", variants={"boft_block_size": 16})).boft_R["default"]
    by_number = layer(tuned("boft", variants={"boft_block_num": 2})).boft_R["default"]
    assert by_size.shape[1:] == (64 // 16, 16, 16)
    assert by_number.shape[1:] == (2, 32, 32)
    with pytest.raises(ModelError, match=r"--boft_block_num 5 does not divide the 64 inputs of model.layers.0"):
        tuned("boft", variants={"boft_block_num": 5})


@pytest.mark.parameter("fourier_n_frequency")
@pytest.mark.parameter("fourier_scaling")
def test_fourierft_learns_so_many_coefficients_and_scales_what_they_make():
    small = layer(tuned("fourierft", variants={"fourier_n_frequency": 7, "fourier_scaling": 10.0}))
    assert small.fourierft_spectrum["default"].shape == (7,)
    large = layer(tuned("fourierft", variants={"fourier_n_frequency": 7, "fourier_scaling": 30.0}))
    torch.testing.assert_close(large.get_delta_weight("default"), 3 * small.get_delta_weight("default"))
    with pytest.raises(ModelError, match=r"--fourier_n_frequency 3000 is more than the 2048 weights of .*k_proj"):
        tuned("fourierft", variants={"fourier_n_frequency": 3000})


@pytest.mark.parameter("lora_rank")
@pytest.mark.parameter("init_weights")
def test_bone_adds_one_matrix_to_all_slices_and_with_bat_one_to_each():
    torch.manual_seed(0)
    inputs = torch.randn(7, 64)
    adapted = layer(tuned("bone", lora_rank=16))
    matrix = adapted.miss_block["default"]
    assert matrix.shape == (16, 64)
    assert not matrix.any()
    matrix.data = torch.randn_like(matrix)
    change = adapted(inputs) - adapted.base_layer(inputs)
    torch.testing.assert_close(change, inputs.view(7, 4, 16).sum(1) @ matrix, rtol=1e-4, atol=1e-4)

    adapted = layer(tuned("bone", lora_rank=16, init_weights="bat"))
    blocks = adapted.miss_block["default"]
    assert blocks.shape == (4, 16, 16)
    blocks.data = 0.1 * torch.randn_like(blocks)
    weight = adapted.base_layer.weight.detach()
    expected = weight.clone()
    for i in range(4):
        for j in range(4):
            rows, columns = slice(16 * i, 16 * i + 16), slice(16 * j, 16 * j + 16)
            expected[rows, columns] += weight[rows, columns] @ blocks[i] + blocks[i]
    torch.testing.assert_close(adapted(inputs), inputs @ expected.T, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match=r"--lora_rank 24, which does not divide the 64 x 64 of model.layers.0"):
        tuned("bone", lora_rank=24, init_weights="bat")
    with pytest.raises(ModelError, match=r"--lora_rank 100 is more than the 64 inputs"):
        tuned("bone", lora_rank=100)
