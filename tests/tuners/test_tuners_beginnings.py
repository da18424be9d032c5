"""What LoRA begins with when it is computed: from the weights, or from gradients of the training loss."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from swift.core.errors import DataError, ModelError, RunError, UsageError
from swift.data.collate import Padded
from swift.options.tuner import TunerChoice, TunerOptions
from swift.options.tuner_variants import TunerVariantOptions
from swift.trainers.gradients import backward_on, first_batches, loss
from swift.tuners.attach import attach, load_adapters
from swift.tuners.beginnings import DIRECTIONS, SCALES, lora_ga
from swift.tuners.merge import relative_errors
from swift.tuners.request import Run
from swift.tuners.residual import STATE, estimated_gradients, linear_layers, read_residual
from trainers import runs

IDS_BT = torch.arange(5, 17)[None]


def begun(init, model=None, run=None, variants=None, seed=0, **options):
    torch.manual_seed(seed)
    return attach(
        model or tiny.model(), TunerChoice(), TunerOptions(init_weights=init, **{"lora_rank": 4, **options}),
        run=run, variants=TunerVariantOptions(**(variants or {})),
    ).eval()  # fmt: skip


def ga(variants=None, seed=0, count=8, **options):
    chosen = TunerVariantOptions(**(variants or {}))
    batches = first_batches(runs.samples(count), Padded(0), chosen, seed=7)
    return begun("lora-ga", run=Run(backward=backward_on(batches)), variants=variants, seed=seed, **options)


def factors(model, name="base_model.model.model.layers.0.self_attn.q_proj"):
    layer = model.get_submodule(name)
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach(), layer.scaling["default"]


def logits(model):
    with torch.no_grad():
        return model(IDS_BT).logits[0]


@pytest.mark.parameter("init_weights")
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "lora-ga"])
def test_what_is_in_the_adapter_was_taken_out_of_the_weights(init, options):
    model = ga(**options) if init == "lora-ga" else begun(init, **options)
    assert all(factors(model)[1].abs().max() > 0 for _ in linear_layers(model))
    torch.testing.assert_close(logits(model), logits(tiny.model()), rtol=1e-4, atol=1e-5)


@pytest.mark.parameter("init_weights")
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_matrices_computed_from_weights_are_those_of_peft(init):
    ours = begun(init, target_modules=["q_proj"], seed=3)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj"], init_lora_weights=init, task_type="CAUSAL_LM")
    torch.manual_seed(3)
    theirs = get_peft_model(tiny.model(), config)
    (a, b, scale), (their_a, their_b, their_scale) = factors(ours), factors(theirs)
    assert scale == their_scale
    if init == "pissa_niter_4":  # the random start differs, the subspace that is found does not
        torch.testing.assert_close(b @ a, their_b @ their_a, rtol=0.1, atol=0.05)
    else:
        torch.testing.assert_close(a, their_a)
        torch.testing.assert_close(b, their_b)


@pytest.mark.parameter("init_weights")
def test_pissa_is_the_best_approximation_of_its_rank():
    a, b, scale = factors(begun("pissa", lora_rank=3))
    weight = tiny.model().model.layers[0].self_attn.q_proj.weight.detach()
    error = torch.linalg.matrix_norm(weight - scale * b @ a)
    assert float(error) == pytest.approx(float(torch.linalg.svdvals(weight)[3:].norm()), rel=1e-5)
    roomier = factors(begun("pissa_niter_16", lora_rank=3))
    assert float(torch.linalg.matrix_norm(weight - scale * roomier[1] @ roomier[0])) < 1.001 * float(error)


def test_weights_that_are_stored_transposed_begin_the_same_way():
    def gpt2():
        torch.manual_seed(0)
        size = {"vocab_size": 99, "n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
        return GPT2LMHeadModel(GPT2Config(**size)).eval()

    model = begun("pissa", model=gpt2())
    torch.testing.assert_close(logits(model), logits(gpt2()), rtol=1e-4, atol=1e-5)


def test_a_saved_beginning_says_what_it_is_and_has_twice_the_rank(tmp_path):
    runs.train(tmp_path, model=begun("pissa", use_rslora=True), max_steps=1, save_strategy="steps", save_steps=1)
    folder = tmp_path / "checkpoint-1"
    assert read_residual(folder).r == 4
    config = load_adapters(tiny.model(), [folder]).peft_config["default"]
    assert (config.r, config.init_lora_weights) == (8, True)
    assert config.lora_alpha / math.sqrt(config.r) == pytest.approx(32 / math.sqrt(4))


def test_without_its_state_a_beginning_is_continued_but_not_resumed(tmp_path):
    run = runs.train(tmp_path, model=begun("pissa"), max_steps=1, save_strategy="steps", save_steps=1)
    folder = tmp_path / "checkpoint-1"
    (folder / STATE).unlink()
    again = attach(tiny.model(), TunerChoice(), TunerOptions(lora_rank=4), adapters=[str(folder)]).eval()
    assert relative_errors(logits(run.trainer.model.eval()), logits(again)).max() < 1e-5
    assert again.peft_config["default"].r == 4
    with pytest.raises(RunError, match=rf"it lacks {STATE}"):
        runs.train(tmp_path / "again", model=again, resume=folder)


def test_a_saved_change_rounded_to_half_precision_is_still_the_change(tmp_path):
    """The principal part of a weight is large, and what training added to it small."""
    model = begun("pissa")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 1e-3 * torch.randn_like(parameter)
    run = runs.prepare(tmp_path, model=model)
    run.trainer.save_model(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    plain, changed = logits(tiny.model()), logits(model.eval())
    rounded = logits(load_adapters(tiny.model(), [tmp_path]))
    assert float((rounded - changed).norm() / (changed - plain).norm()) < 0.02


def test_continuing_with_another_rank_than_it_is_trained_with_is_refused(tmp_path):
    runs.train(tmp_path, model=begun("olora"), max_steps=1, save_strategy="steps", save_steps=1)
    again = {"adapters": [str(tmp_path / "checkpoint-1")], "asked": ["lora_rank"]}
    with pytest.raises(UsageError, match=r"--lora_rank 8 \(it has 4\)"):
        attach(tiny.model(), TunerChoice(), TunerOptions(lora_rank=8), **again)
    attach(tiny.model(), TunerChoice(), TunerOptions(lora_rank=4), **again)


def test_a_model_is_not_brought_to_a_checkpoint_that_began_otherwise(tmp_path):
    runs.train(tmp_path / "a", model=begun("pissa"), max_steps=1, save_strategy="steps", save_steps=1)
    with pytest.raises(ModelError, match="began otherwise"):
        runs.train(tmp_path / "b", model=begun("olora"), max_steps=2, resume=tmp_path / "a" / "checkpoint-1")


def test_an_adapter_with_a_beginning_of_another_model_is_refused(tmp_path):
    runs.train(tmp_path, model=begun("pissa"), max_steps=1, save_strategy="steps", save_steps=1)
    with pytest.raises(ModelError, match="does not fit the model"):
        attach(tiny.model(hidden_size=32), TunerChoice(), TunerOptions(), adapters=[str(tmp_path / "checkpoint-1")])


def test_ranks_that_a_weight_does_not_have_are_refused():
    with pytest.raises(ModelError, match=r"--lora_rank 40 is more than the weight of .*k_proj, of shape \(32, 64\)"):
        begun("pissa", lora_rank=40)
    with pytest.raises(ModelError, match=r"twice as many singular vectors as --lora_rank 20"):
        ga(lora_rank=20)


def test_half_precision_loses_no_more_than_its_rounding():
    model = begun("pissa", model=tiny.model().bfloat16())
    assert relative_errors(logits(tiny.model().bfloat16()).float(), logits(model).float()).median() < 4e-2


# ------------------------------------------------------------------------------------------------------------- LoRA-GA


def test_the_gradients_are_those_of_autograd_and_leave_no_trace():
    model = begun("true")
    batches = first_batches(runs.samples(8), Padded(0), TunerVariantOptions(), seed=7)
    found = estimated_gradients(model, dict(linear_layers(model)), backward_on(batches))
    plain = tiny.model()
    for batch in batches:
        labels = batch["labels"]
        logits_BTV = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    for name, gradient in found.items():
        weight = plain.get_submodule(name.removeprefix("base_model.model.")).weight
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if "lora_" in name
    }


def test_the_first_step_of_lora_ga_goes_where_full_training_goes():
    """Of the gradient that the weight would follow, more of it is reached than from a random beginning."""
    batch = Padded(0)(runs.samples(8))
    plain = tiny.model()
    loss(plain, batch).backward()
    wanted = -plain.model.layers[0].self_attn.q_proj.weight.grad.flatten()

    def followed(model):
        loss(model, batch).backward()
        layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        change = -(b.grad @ a.detach() + b.detach() @ a.grad).flatten()
        return float(torch.cosine_similarity(change, wanted, dim=0))

    batches = Run(backward=backward_on([batch]))
    assert followed(begun("lora-ga", run=batches)) > followed(begun("true")) + 0.2


@pytest.mark.parameter("lora_ga_direction")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_and_b_take_singular_vectors_of_the_gradient(direction):
    torch.manual_seed(1)
    gradient, rank = torch.diag(torch.arange(12.0, 0, -1)), 3
    options = TunerVariantOptions(lora_ga_direction=direction, lora_ga_scale="unit")
    a, b = lora_ga(torch.randn(12, 12), gradient, rank, 2.0, options)
    of_a, of_b = a.abs().argmax(1).tolist(), b.abs().argmax(0).tolist()
    expected = {"ArBr": ([1, 3, 5], [0, 2, 4]), "A2rBr": ([3, 4, 5], [0, 1, 2]), "ArB2r": ([0, 1, 2], [3, 4, 5])}
    if direction == "random":
        assert sorted(of_a + of_b) == list(range(6))
    else:
        assert (of_a, of_b) == expected[direction]
    torch.testing.assert_close(a @ a.T, torch.eye(rank))


@pytest.mark.parameter("lora_ga_scale")
@pytest.mark.parameter("lora_ga_stable_gamma")
def test_scales_multiply_the_vectors():
    weight = 5 * torch.eye(16)
    assert SCALES["unit"](weight, 2, 4.0, 16) == 1
    assert SCALES["gd"](weight, 2, 4.0, 16) == 1 / 4
    assert SCALES["stable"](weight, 2, 4.0, 16) == 16**0.25 / 16**0.5
    assert SCALES["weightS"](weight, 2, 4.0, 16) == pytest.approx(math.sqrt(5 / 4), rel=1e-4)
    small, large = (factors(ga({"lora_ga_stable_gamma": gamma}))[0].norm() for gamma in (64, 16))
    assert float(large / small) == pytest.approx(2, rel=1e-4)
    assert float(factors(ga({"lora_ga_scale": "unit"}))[0].norm()) == pytest.approx(2, rel=1e-4)


@pytest.mark.parameter("lora_ga_batch_size")
@pytest.mark.parameter("lora_ga_iters")
@pytest.mark.parameter("lora_ga_max_length")
def test_gradients_are_taken_on_so_many_batches_of_so_many_rows_of_such_length():
    options = TunerVariantOptions(lora_ga_batch_size=3, lora_ga_iters=2, lora_ga_max_length=9)
    batches = first_batches(runs.samples(12), Padded(0), options, seed=0)
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3]
    assert max(batch["input_ids"].shape[1] for batch in batches) == 9
    other = first_batches(runs.samples(12), Padded(0), options, seed=1)
    assert not torch.equal(batches[0]["input_ids"][:, :2], other[0]["input_ids"][:, :2]), "rows are drawn"
    with pytest.raises(DataError, match="--lora_ga_max_length 1 cuts off all that is learnt"):
        first_batches(runs.samples(4), Padded(0), TunerVariantOptions(lora_ga_max_length=1), seed=0)


def test_lora_ga_without_rows_is_refused():
    with pytest.raises(ModelError, match="computes gradients on rows"):
        begun("lora-ga")


def test_lora_ga_learns_resumes_and_answers_on_the_original_model(tmp_path):
    settings = {
        "train": runs.samples(8),
        "learning_rate": 1e-2,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = runs.train(tmp_path / "whole", model=ga(seed=4), **settings)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    model = attach(tiny.model(), TunerChoice(), TunerOptions(lora_rank=4), adapters=[str(checkpoint)])
    resumed = runs.train(tmp_path / "again", model=model, resume=checkpoint, **settings)
    assert runs.equal(resumed.weights(), whole.weights())
    losses = whole.logged("loss")
    assert sum(losses[4:]) < sum(losses[:4]), "the second epoch shows the rows of the first"
    answers = logits(load_adapters(tiny.model(), [tmp_path / "whole" / "checkpoint-8"]))
    assert relative_errors(logits(whole.trainer.model.eval()), answers).max() < 1e-5


def test_a_file_that_lost_its_header_is_an_ordinary_adapter(tmp_path):
    runs.train(tmp_path, model=begun("pissa"), max_steps=1, save_strategy="steps", save_steps=1)
    file = tmp_path / "checkpoint-1" / "adapter_model.safetensors"
    before = logits(load_adapters(tiny.model(), [file.parent]))
    save_file(load_file(file), file, metadata={"format": "pt"})
    again = attach(tiny.model(), TunerChoice(), TunerOptions(), adapters=[str(file.parent)]).eval()
    torch.testing.assert_close(logits(again), before)
    assert again.peft_config["default"].r == 8
