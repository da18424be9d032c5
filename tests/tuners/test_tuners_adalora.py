"""AdaLoRA: ranks that shrink where they matter least, on a schedule, and triplets that are kept apart."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

import tiny
from swift.core.errors import UsageError
from swift.options.tuner import TunerChoice, TunerOptions
from swift.options.tuner_variants import TunerVariantOptions
from swift.trainers.adapters import penalty
from swift.tuners.adalora import STATE, allocate, orthogonality, triplet_layers
from swift.tuners.attach import attach
from trainers import runs

IDS_BT = torch.arange(5, 17)[None]
MATRICES = 14
"""Linear layers of the tiny model."""


def adalora(steps=10, seed=0, adapters=(), asked=(), **variants) -> PeftModel:
    torch.manual_seed(seed)
    chosen = {"adalora_init_r": 4, "adalora_target_r": 2, **variants}
    return attach(
        tiny.model(), TunerChoice(tuner_type="adalora"), TunerOptions(), adapters=adapters, asked=asked,
        variants=TunerVariantOptions(**chosen), run=runs_of(steps),
    )  # fmt: skip


def runs_of(steps):
    from swift.tuners.request import Run

    return Run(total_steps=steps)


def values(model):
    return torch.cat([layer.lora_E["default"].detach().flatten() for _, layer in triplet_layers(model)])


def ranks_left(steps=10, **variants):
    """How many triplets have a value after each step, with values that an optimizer moves after each."""
    model, left = adalora(steps, **variants), []
    for step in range(1, steps + 1):
        for _, layer in triplet_layers(model):
            layer.lora_E["default"].data += 0.1 * torch.randn_like(layer.lora_E["default"])
        model.zero_grad()
        model(IDS_BT).logits.square().mean().backward()
        allocate(model, step)
        left.append(int((values(model) != 0).sum()))
    return left


@pytest.mark.parameter("adalora_init_r")
@pytest.mark.parameter("adalora_target_r")
def test_ranks_shrink_from_the_first_number_to_the_other():
    left = ranks_left(adalora_init_r=5, adalora_target_r=3)
    assert left[0] < 5 * MATRICES
    assert left == sorted(left, reverse=True)
    assert left[-1] == 3 * MATRICES
    assert len({int((layer.lora_E["default"] != 0).sum()) for _, layer in triplet_layers(adalora(2))}) == 1


@pytest.mark.parameter("adalora_tinit")
def test_no_rank_goes_in_the_first_steps():
    left = ranks_left(adalora_tinit=4)
    assert left[:4] == [4 * MATRICES] * 4
    assert left[4] < 4 * MATRICES


@pytest.mark.parameter("adalora_tfinal")
def test_in_the_last_steps_the_ranks_are_what_they_end_with():
    left = ranks_left(adalora_tfinal=4)
    assert left[5:] == [2 * MATRICES] * 5
    assert left[2] > 2 * MATRICES


@pytest.mark.parameter("adalora_deltaT")
def test_ranks_change_at_every_third_step_only():
    left = ranks_left(adalora_deltaT=3)
    assert [count == 4 * MATRICES for count in left[:9]] == [True, True, False] * 3
    assert left[-1] == 2 * MATRICES


@pytest.mark.parameter("adalora_beta1")
@pytest.mark.parameter("adalora_beta2")
def test_importance_is_smoothed_as_told():
    model = adalora(adalora_beta1=0.3, adalora_beta2=0.6)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    model(IDS_BT).logits.square().mean().backward()
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    matrix = layer.lora_A["default"]
    sensitivity = (matrix * matrix.grad).abs().detach()
    allocate(model, 1)
    allocator, name = model.base_model.rankallocator, "model.layers.0.self_attn.q_proj.lora_A.default"
    torch.testing.assert_close(allocator.exp_avg_ipt[name], 0.7 * sensitivity)
    torch.testing.assert_close(allocator.exp_avg_unc[name], 0.4 * (sensitivity - 0.7 * sensitivity).abs())


@pytest.mark.parameter("adalora_orth_reg_weight")
def test_the_loss_has_the_penalty_once_however_the_step_is_divided(tmp_path):
    def first_loss(name, weight, batch, accumulation):
        run = runs.train(
            tmp_path / name, model=adalora(2, adalora_orth_reg_weight=weight), train=runs.samples(8), max_steps=2,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        return run.logged("loss")[0]

    without, whole, divided = first_loss("a", 0.0, 4, 1), first_loss("b", 0.5, 4, 1), first_loss("c", 0.5, 1, 4)
    expected = 0.5 * by_hand(adalora(2))
    assert whole - without == pytest.approx(expected, rel=1e-4)
    assert divided == pytest.approx(whole, rel=1e-4)
    assert penalty(tiny.model(), 1) == 0.0


def by_hand(model):
    """The mean distance of A A^T and B^T B from the identity."""
    norms = []
    for _, layer in triplet_layers(model):
        a, b = layer.lora_A["default"].detach(), layer.lora_B["default"].detach()
        norms += [torch.norm(a @ a.T - torch.eye(4)), torch.norm(b.T @ b - torch.eye(4))]
    return float(sum(norms) / len(norms))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_penalty_is_that_of_peft():
    model = adalora(adalora_orth_reg_weight=0.25)
    labelled = model(IDS_BT, labels=IDS_BT).loss
    plain = tiny.model()(IDS_BT, labels=IDS_BT).loss
    torch.testing.assert_close(labelled - plain, orthogonality(model), rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_no_number_says_nothing_about_importance():
    model = adalora()
    model(IDS_BT).logits.square().mean().backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(float("nan"))
    allocate(model, 1)
    assert all(torch.isfinite(value).all() for value in model.base_model.rankallocator.exp_avg_ipt.values())


@pytest.mark.parametrize(("steps", "tinit", "tfinal"), [(1, 0, 0), (10, 5, 4), (10, 0, 12)])
def test_a_run_without_time_to_shrink_is_refused(steps, tinit, tfinal):
    with pytest.raises(UsageError, match=f"of the {steps} steps of this run, --adalora_tinit {tinit}"):
        adalora(steps, adalora_tinit=tinit, adalora_tfinal=tfinal)


@pytest.mark.parameter("adapters")
@pytest.mark.parametrize("with_state", [True, False])
def test_a_new_run_goes_on_with_the_adapter_and_a_schedule_of_its_own(tmp_path, with_state):
    run = runs.train(tmp_path, model=adalora(4), max_steps=4, learning_rate=1e-2, save_strategy="steps", save_steps=4)
    folder = tmp_path / "checkpoint-4"
    if not with_state:
        (folder / STATE).unlink()
    again = adalora(20, adapters=[str(folder)], adalora_target_r=1)
    with torch.no_grad():
        torch.testing.assert_close(
            again.eval()(IDS_BT).logits, run.trainer.model.eval()(IDS_BT).logits, rtol=1e-5, atol=1e-6
        )
    assert (again.peft_config["default"].total_step, again.peft_config["default"].target_r) == (20, 1)
    assert len(values(again)) == 4 * MATRICES, "all ranks may come back"
