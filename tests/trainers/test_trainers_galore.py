"""GaLore: what is projected, how, when the projection is made anew, and that any optimizer works on it."""

from __future__ import annotations

import gc
import importlib
import math
from itertools import pairwise

import pytest
import runs
import torch

import tiny
from swift.core.errors import UsageError
from swift.core.logs import get_logger
from swift.options.optimizers import OptimizerOptions
from swift.trainers.galore import GaLore
from swift.trainers.optimizers import galore_targets, projecting
from swift.trainers.projection import Lazily, Projecting, Quantized, low_shape, pack, project, project_back, read

GALORE = {"use_galore": True, "galore_rank": 4, "galore_update_proj_gap": 2}
STEP = {"max_steps": 1, "optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "learning_rate": 0.5}


def of_rank(rows: int, columns: int, values: list[float], seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values."""
    torch.manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(size, len(values)))[0] for size in (rows, columns))
    return left @ torch.diag(torch.tensor(values)) @ right.T


def moved(run: runs.Run) -> dict[str, torch.Tensor]:
    start = dict(tiny.model().named_parameters())
    return {name: value - start[name] for name, value in run.weights().items()}


def projected(run: runs.Run) -> set[str]:
    """The names of the weights that are projected."""
    names = {id(parameter): name for name, parameter in run.trainer.model.named_parameters()}
    groups = run.trainer.optimizer.optimizer.param_groups
    return {names[id(p)] for group in groups if group["is_projected"] for p in group["params"]}


# ------------------------------------------------------------------------------------------------------ the projection


@pytest.mark.parametrize("kind", ["std", "reverse_std", "left", "right", "full"])
@pytest.mark.parametrize("shape", [(10, 6), (6, 10)])
def test_the_projection_keeps_the_leading_part_of_the_gradient(kind, shape):
    gradient = of_rank(*shape, [9.0, 5.0, 2.0, 1.0])
    how, state = Projecting(2, 50, kind), {}
    low = project(gradient, state, how)
    assert tuple(low.shape) == low_shape(*shape, how)
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    best = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
    torch.testing.assert_close(project_back(low, state), best, atol=1e-4, rtol=1e-4)


def test_the_kinds_differ_in_the_side_that_is_cut():
    shapes = {
        kind: low_shape(10, 6, Projecting(2, 1, kind)) for kind in ("std", "reverse_std", "left", "right", "full")
    }
    assert shapes == {"std": (10, 2), "reverse_std": (2, 6), "left": (2, 6), "right": (10, 2), "full": (2, 2)}
    assert low_shape(6, 10, Projecting(2, 1, "std")) == (2, 10)
    assert low_shape(6, 10, Projecting(99, 1, "full")) == (6, 6)  # a rank above that of the matrix


def test_a_projection_serves_for_its_gap():
    how, state = Projecting(2, 3), {}
    made = []
    for seed in range(7):
        project(of_rank(8, 5, [3.0, 1.0], seed), state, how)
        made.append(read(state["right"], torch.ones(())).clone())
    assert [torch.equal(a, b) for a, b in pairwise(made)] == [True, True, False, True, True, False]


def test_the_gap_grows_while_the_leading_direction_stays_and_only_then():
    same, turning = {}, {}
    how = Projecting(2, 1, lazily=Lazily(threshold=0.9, growth=2.0, memory=3))
    for seed in range(20):
        project(of_rank(8, 5, [3.0, 1.0]) * (-1) ** seed, same, how)  # the opposite gradient has the same directions
        project(of_rank(40, 30, [3.0, 1.0], seed), turning, how)
    assert same["gap"] == 16  # twice as long with the fourth projection and with each of the three after it
    assert turning["gap"] == 1
    assert len(turning["similar"]) == 3


@pytest.mark.parametrize(("bits", "group"), [(8, 16), (4, 16), (4, 7), (2, 64)])
def test_quantized_values_are_within_half_a_step_of_what_they_were(bits, group):
    torch.manual_seed(0)
    values = torch.randn(9, 11)
    stored = pack(values, Quantized(bits, group))
    again = read(stored, values)
    bound = stored["step"].repeat_interleave(group)[: values.numel()].view_as(values) / 2
    assert ((again - values).abs() <= bound * 1.001).all()
    assert stored["codes"].numel() == math.ceil(99 * bits / 8)
    assert len(again.unique()) > 2


# --------------------------------------------------------------------------------------------------------- a training


@pytest.mark.parameter("use_galore")
@pytest.mark.parameter("galore_rank")
@pytest.mark.parameter("galore_scale")
def test_a_step_of_descent_is_the_leading_part_of_the_gradient(tmp_path):
    plain = moved(runs.train(tmp_path / "plain", **STEP))
    run = runs.train(tmp_path / "galore", optimizer="galore", galore={**GALORE, "galore_scale": 0.25}, **STEP)
    targets = projected(run)
    assert {name.split(".")[-2] for name in targets} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    for name, step in moved(run).items():
        if name not in targets:
            assert torch.equal(step, plain[name])
            continue
        left, values, right = torch.linalg.svd(plain[name], full_matrices=False)
        torch.testing.assert_close(step, 0.25 * left[:, :4] @ torch.diag(values[:4]) @ right[:4], atol=1e-6, rtol=1e-3)
        assert torch.linalg.matrix_rank(step, rtol=1e-2) == 4


def test_the_states_of_adam_are_those_of_the_projected_gradient_by_hand(tmp_path):
    """Algorithm 2 of arXiv 2403.03507 on gradients that are recorded during the run."""
    run = runs.prepare(tmp_path, optimizer="galore", galore=GALORE, max_steps=5, learning_rate=1e-2, weight_decay=0.1)
    weight, seen = run.trainer.model.model.layers[1].mlp.up_proj.weight, []
    start = weight.detach().clone()

    from transformers import TrainerCallback

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, *_, **__):
            seen.append(weight.grad.clone())

    run.trainer.add_callback(Note())
    run.session.run(run.trainer, None, {})
    expected, first, second = start, 0.0, 0.0
    for t, gradient in enumerate(seen):
        if t % 2 == 0:
            basis = torch.linalg.svd(gradient, full_matrices=False)[2][:4]  # 128 x 64: the right side is cut
        low = gradient @ basis.T
        first, second = 0.9 * first + 0.1 * low, 0.95 * second + 0.05 * low**2
        update = (first / (1 - 0.9 ** (t + 1))) / ((second / (1 - 0.95 ** (t + 1))).sqrt() + 1e-8)
        expected = expected * (1 - 1e-2 * 0.1) - 1e-2 * update @ basis
    torch.testing.assert_close(weight.detach(), expected, atol=2e-5, rtol=1e-3)


@pytest.mark.parameter("galore_update_proj_gap")
@pytest.mark.parameter("galore_proj_type")
@pytest.mark.parameter("galore_quantization")
@pytest.mark.parameter("galore_proj_quant")
@pytest.mark.parameter("galore_proj_bits")
@pytest.mark.parameter("galore_proj_group_size")
@pytest.mark.parameter("galore_cos_threshold")
@pytest.mark.parameter("galore_gamma_proj")
@pytest.mark.parameter("galore_queue_size")
def test_each_option_of_the_projection_changes_what_is_kept(tmp_path):
    def states(name: str, **options):
        run = runs.train(tmp_path / name, optimizer="galore", galore={**GALORE, **options}, max_steps=7)
        inner = run.trainer.optimizer.optimizer
        weight = run.trainer.model.model.layers[0].mlp.up_proj.weight  # 128 x 64
        return inner.state[weight]

    plain = states("plain")
    assert (plain["gap"], plain["age"], set(plain)) == (2, 1, {"right", "gap", "age"})
    assert states("gap", galore_update_proj_gap=4)["age"] == 3
    assert {"left", "right"} <= states("full", galore_proj_type="full").keys()
    lazy = {"galore_quantization": True, "galore_cos_threshold": 0.0, "galore_queue_size": 1}
    assert states("grown", **lazy)["gap"] == 8  # looked at in steps 3 and 7
    assert states("growth", galore_gamma_proj=3.0, **lazy)["gap"] == 6
    assert states("queue", **{**lazy, "galore_queue_size": 4})["gap"] == 2
    assert states("threshold", **{**lazy, "galore_cos_threshold": 1.0})["gap"] == 2
    packed = {"galore_quantization": True, "galore_proj_quant": True}
    stored = states("packed", **packed, galore_proj_bits=2, galore_proj_group_size=64)["right"]
    assert (stored["bits"], stored["codes"].dtype, stored["codes"].numel()) == (2, torch.uint8, 4 * 64 // 4)
    assert len(stored["step"]) == 4
    assert states("four", **packed)["right"]["codes"].numel() == 4 * 64 // 2


@pytest.mark.parameter("galore_target_modules")
@pytest.mark.parameter("galore_with_embedding")
def test_the_weights_to_project_are_named(tmp_path):
    run = runs.train(tmp_path, optimizer="galore", max_steps=1,
                     galore={**GALORE, "galore_target_modules": ["q_proj", "mlp"], "galore_with_embedding": True})  # fmt: skip
    kinds = {name.split(".")[-2] for name in projected(run)}
    assert kinds == {"q_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"}
    with pytest.raises(UsageError, match=r"--galore_target_modules qq_proj.*down_proj, gate_proj"):
        galore_targets(tiny.model(), ["qq_proj", "mlp"], False)
    with pytest.raises(UsageError, match="none of the weights to project is trained"):
        galore_targets(tiny.model().requires_grad_(False), None, False)


@pytest.mark.parameter("galore_optim_per_parameter")
def test_an_optimizer_for_each_weight_gives_the_same_weights(tmp_path):
    together = runs.train(tmp_path / "a", optimizer="galore", galore=GALORE, lr_scheduler_type="cosine")
    apart = runs.train(tmp_path / "b", optimizer="galore", lr_scheduler_type="cosine",
                       galore={**GALORE, "galore_optim_per_parameter": True})  # fmt: skip
    assert runs.equal(together.weights(), apart.weights())
    assert len(together.trainer.optimizer.optimizer.inner) == 1
    assert len(apart.trainer.optimizer.optimizer.inner) == 1 + len(projected(apart))


def test_states_are_as_small_as_the_rank(tmp_path):
    def size(run: runs.Run) -> int:
        gc.collect()
        saved = run.trainer.optimizer.state_dict()
        found, rest = 0, [saved]
        while rest:
            item = rest.pop()
            if isinstance(item, torch.Tensor):
                found += item.numel() * item.element_size()
            elif isinstance(item, (dict, list)):
                rest += item.values() if isinstance(item, dict) else item
        return found

    frozen = {"galore_with_embedding": True}
    plain = size(runs.train(tmp_path / "a", max_steps=1))
    low = size(runs.train(tmp_path / "b", optimizer="galore", galore={**GALORE, **frozen}, max_steps=1))
    packed = {"galore_quantization": True, "galore_proj_quant": True}
    lower = size(runs.train(tmp_path / "c", optimizer="galore", galore={**GALORE, **frozen, **packed}, max_steps=1))
    assert low < plain / 5
    assert lower < 0.95 * low  # the moments, which are not quantized, are most of it


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop", "adagrad"])
def test_any_optimizer_works_on_projections(tmp_path, optim):
    run = runs.train(tmp_path, optimizer="galore", galore=GALORE, optim=optim, max_steps=3)
    assert isinstance(run.trainer.optimizer.optimizer, GaLore)
    assert runs.distance(run.weights(), dict(tiny.model().named_parameters())) > 1e-5


@pytest.mark.parameter("galore_quantization")
def test_it_is_said_that_q_galore_keeps_the_type_of_the_weights(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)
    caplog.set_level("INFO")
    run = runs.train(tmp_path, optimizer="galore", galore={**GALORE, "galore_quantization": True}, max_steps=1)
    assert "--galore_quantization: weights keep their type" in caplog.text
    assert {value.dtype for value in run.weights().values()} == {torch.float32}


def test_options_become_a_way_to_project():
    assert projecting(OptimizerOptions(use_galore=True)) == Projecting(128, 50, "std", None, None)


@pytest.mark.extra
@pytest.mark.parametrize("kind", ["std", "reverse_std", "left", "right", "full"])
def test_steps_are_those_of_galore_torch(kind):
    theirs = importlib.import_module("galore_torch").GaLoreAdamW
    torch.manual_seed(0)
    start, gradients = torch.randn(12, 20), [torch.randn(12, 20) for _ in range(6)]
    first, second = (torch.nn.Parameter(start.clone()) for _ in range(2))
    # projected on both sides a new gradient is diagonal up to rounding, which Adam must not take for a gradient
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-4}
    group = {"rank": 5, "update_proj_gap": 2, "scale": 0.3, "proj_type": kind}
    other = theirs([{"params": [second], **group}], weight_decay=0.0, no_deprecation_warning=True, **settings)
    mine = GaLore([{"params": [first], "lr": 0.01, "weight_decay": 0.0, "is_projected": True}],
                  lambda groups: torch.optim.AdamW(groups, **settings), Projecting(5, 2, kind), 0.3)  # fmt: skip
    for gradient in gradients:
        first.grad, second.grad = gradient.clone(), gradient.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-3)


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit", "lion_8bit"])
def test_states_in_8_bits_resume_to_the_last_bit(tmp_path, optim):
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "optimizer": "galore", "optim": optim}
    wide = {**GALORE, "galore_rank": 64}  # bitsandbytes keeps small states in 32 bits
    whole = runs.train(tmp_path / "a", galore=wide, **saving)
    again = runs.train(tmp_path / "b", galore=wide, resume=tmp_path / "a" / "checkpoint-3", **saving)
    assert runs.equal(whole.weights(), again.weights())
