"""What each parameter of training does to a run."""

from __future__ import annotations

import math

import pytest
import runs
import torch

import tiny
from swift.core.errors import UsageError
from swift.options.general import GeneralOptions
from swift.options.training import TrainingOptions
from swift.trainers.arguments import training_arguments, without_evaluation

SGD = {"optim": "sgd", "max_steps": 1, "learning_rate": 0.5, "weight_decay": 0.0, "max_grad_norm": 0.0}


def moved(run: runs.Run) -> dict[str, torch.Tensor]:
    """How far one training moved each parameter of the tiny model."""
    start = tiny.model().state_dict()
    return {name: value - start[name] for name, value in run.weights().items()}


# ------------------------------------------------------------------------------------------------------- the optimizer


@pytest.mark.parameter("learning_rate")
def test_a_step_of_gradient_descent_is_as_long_as_the_learning_rate_says(tmp_path):
    short = moved(runs.train(tmp_path / "a", **{**SGD, "learning_rate": 0.1}))
    long = moved(runs.train(tmp_path / "b", **{**SGD, "learning_rate": 0.3}))
    for name, step in short.items():
        torch.testing.assert_close(long[name], 3 * step, atol=1e-6, rtol=1e-4)


@pytest.mark.parameter("weight_decay")
def test_weight_decay_pulls_matrices_towards_zero_and_leaves_norms_alone(tmp_path):
    free = moved(runs.train(tmp_path / "a", **SGD))
    pulled = moved(runs.train(tmp_path / "b", **{**SGD, "weight_decay": 0.2}))
    for name, start in tiny.model().named_parameters():
        decay = 0.0 if "norm" in name else 0.2
        torch.testing.assert_close(pulled[name] - free[name], -0.5 * decay * start.detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parameter("max_grad_norm")
def test_a_long_gradient_is_cut_to_its_longest_allowed_length(tmp_path):
    run = runs.train(tmp_path, **{**SGD, "max_grad_norm": 0.01})
    length = math.sqrt(sum(float(step.square().sum()) for step in moved(run).values()))
    assert length == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert run.logged("grad_norm")[0] > 0.01  # the norm before it was cut


@pytest.mark.parameter("adam_beta1")
@pytest.mark.parameter("adam_beta2")
@pytest.mark.parametrize(("changed", "position"), [("adam_beta1", 0), ("adam_beta2", 1)])
def test_the_betas_of_adam_reach_its_averages(tmp_path, changed, position):
    base = {"adam_beta1": 0.9, "adam_beta2": 0.95, "max_steps": 3}
    first = runs.train(tmp_path / "a", **base)
    second = runs.train(tmp_path / "b", **{**base, changed: 0.5})
    assert second.trainer.optimizer.param_groups[0]["betas"][position] == 0.5
    assert not runs.equal(first.weights(), second.weights())


@pytest.mark.parameter("optim")
@pytest.mark.parameter("optim_args")
def test_the_named_optimizer_is_built_with_its_arguments(tmp_path):
    run = runs.train(tmp_path, **{**SGD, "optim_args": "momentum=0.7, nesterov=true"})
    inner = run.trainer.optimizer.optimizer
    assert isinstance(inner, torch.optim.SGD)
    assert (inner.param_groups[0]["momentum"], inner.param_groups[0]["nesterov"]) == (0.7, True)


@pytest.mark.parameter("lr_scheduler_type")
@pytest.mark.parameter("lr_scheduler_kwargs")
@pytest.mark.parameter("warmup_ratio")
def test_the_schedule_of_the_learning_rate(tmp_path):
    def rates(name: str, **options):
        return runs.train(tmp_path / name, max_steps=4, learning_rate=0.4, **options).logged("learning_rate")

    assert rates("linear", lr_scheduler_type="linear") == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert rates("warm", lr_scheduler_type="linear", warmup_ratio=0.5) == pytest.approx([0, 0.2, 0.4, 0.2])
    assert rates("all", lr_scheduler_type="linear", warmup_ratio=1.0) == pytest.approx([0, 0.1, 0.2, 0.3])
    floor = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.2}}
    assert rates("floor", **floor)[-1] > 0.2 > rates("cosine", lr_scheduler_type="cosine")[-1]


@pytest.mark.parameter("neftune_noise_alpha")
def test_neftune_disturbs_training_and_not_evaluation(tmp_path):
    val = {"val": runs.samples(3), "eval_strategy": "steps", "eval_on_start": True, "eval_steps": 9, "max_steps": 1}
    plain = runs.train(tmp_path / "a", **val)
    noisy = runs.train(tmp_path / "b", neftune_noise_alpha=50.0, **val)
    assert noisy.logged("loss")[0] != pytest.approx(plain.logged("loss")[0], rel=1e-3)
    assert noisy.logged("eval_loss")[0] == plain.logged("eval_loss")[0]


# ------------------------------------------------------------------------------------------------- recomputed activations


def calls_of_layers(tmp_path, **options) -> list[int]:
    """How often each layer's MLP is run in a training step of one batch."""
    model, calls = tiny.model(layers=4), [0] * 4
    run = runs.prepare(tmp_path, model=model, max_steps=1, gradient_accumulation_steps=1, **options)
    for i, layer in enumerate(model.model.layers):  # after the trainer has tried how its loss is computed
        layer.mlp.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    run.session.run(run.trainer, None, {})
    return calls


@pytest.mark.parameter("gradient_checkpointing")
@pytest.mark.parameter("gradient_checkpointing_kwargs")
def test_gradient_checkpointing_runs_layers_twice_and_gives_the_same_gradient(tmp_path):
    assert calls_of_layers(tmp_path / "off") == [1, 1, 1, 1]
    assert calls_of_layers(tmp_path / "on", gradient_checkpointing=True) == [2, 2, 2, 2]
    every_other = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"every_n_layers": 2}}
    assert sum(calls_of_layers(tmp_path / "every", **every_other)) == 6
    plain = runs.train(tmp_path / "a", max_steps=2)
    recomputed = runs.train(tmp_path / "b", max_steps=2, gradient_checkpointing=True)
    assert runs.equal(plain.weights(), recomputed.weights())


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_reentrant_checkpointing_still_reaches_an_adapter_over_frozen_embeddings(tmp_path):
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    run = runs.train(tmp_path / "a", model=runs.lora(), max_steps=1, **reentrant)
    plain = runs.train(tmp_path / "b", model=runs.lora(), max_steps=1)
    assert run.logged("grad_norm") == pytest.approx(plain.logged("grad_norm"), rel=1e-5)
    assert run.logged("grad_norm")[0] > 0


def test_training_leaves_the_models_own_config_as_it_was(tmp_path):
    run = runs.train(tmp_path, max_steps=1)
    assert run.trainer.model.config.use_cache is tiny.model().config.use_cache


# ---------------------------------------------------------------------------------------------------- steps and logs


@pytest.mark.parameter("num_train_epochs")
@pytest.mark.parameter("max_steps")
def test_the_number_of_steps(tmp_path):
    assert runs.train(tmp_path / "a", max_steps=-1, num_train_epochs=2.0).outcome.global_step == 8
    assert runs.train(tmp_path / "b", max_steps=-1, num_train_epochs=0.5).outcome.global_step == 2
    assert runs.train(tmp_path / "c", max_steps=5, num_train_epochs=2.0).outcome.global_step == 5


@pytest.mark.parameter("logging_steps")
@pytest.mark.parameter("logging_first_step")
def test_the_steps_that_are_logged(tmp_path):
    def steps(name: str, **options):
        history = runs.train(tmp_path / name, max_steps=5, **options).history
        return [entry["step"] for entry in history if "loss" in entry]

    assert steps("a", logging_steps=2, logging_first_step=True) == [1, 2, 4]
    assert steps("b", logging_steps=2, logging_first_step=False) == [2, 4]


@pytest.mark.parameter("eval_strategy")
@pytest.mark.parameter("eval_steps")
@pytest.mark.parameter("eval_on_start")
def test_the_steps_at_which_is_evaluated(tmp_path):
    def steps(name: str, **options):
        history = runs.train(tmp_path / name, max_steps=5, val=runs.samples(2), **options).history
        return [entry["step"] for entry in history if "eval_loss" in entry]

    assert steps("no", eval_strategy="no") == []
    assert steps("steps", eval_strategy="steps", eval_steps=2) == [2, 4, 5]
    assert steps("share", eval_strategy="steps", eval_steps=0.5) == [3, 5]
    assert steps("epoch", eval_strategy="epoch") == [4, 5]
    assert steps("start", eval_strategy="steps", eval_steps=9, eval_on_start=True) == [0, 5]


@pytest.mark.parameter("acc_strategy")
def test_the_accuracy_that_is_logged(tmp_path):
    val = {"val": runs.samples(4), "eval_strategy": "steps", "eval_steps": 4}
    token = runs.train(tmp_path / "a", acc_strategy="token", **val)
    sequence = runs.train(tmp_path / "b", acc_strategy="seq", **val)
    assert len(token.logged("token_acc")) == 4
    assert len(token.logged("eval_token_acc")) == 1
    assert len(sequence.logged("seq_acc")) == 4
    assert not sequence.logged("token_acc")
    assert len(sequence.logged("eval_seq_acc")) == 1


def test_accuracy_is_the_share_of_all_tokens_since_the_last_log(tmp_path):
    """A model that repeats the one token it is taught is always right about it, and wrong about the other."""
    from swift.chat.render import Sample

    same, other = Sample([7] * 9, [-100] + [7] * 8), Sample([7, 9, 9, 9], [-100, 9, 9, 9])
    taught = runs.train(tmp_path / "a", train=[same] * 8, max_steps=20, learning_rate=1e-2).trainer.model
    run = runs.train(tmp_path / "b", model=taught, train=[same, other] * 4, max_steps=2, learning_rate=1e-12,
                     logging_steps=2, logging_first_step=False)  # fmt: skip
    assert run.logged("token_acc") == [pytest.approx(8 * 4 / (8 * 4 + 3 * 4))]


# -------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parameter("train_dataloader_shuffle")
def test_rows_are_read_in_their_own_order_without_shuffling(tmp_path):
    def order(name: str, shuffle: bool):
        run = runs.prepare(tmp_path / name, train_dataloader_shuffle=shuffle)
        return [row.tolist() for batch in run.trainer.get_train_dataloader() for row in batch["input_ids"]]

    def unpadded(rows):
        return [[token for token in row if token] for row in rows]

    own = [sample.input_ids for sample in runs.samples()]
    assert unpadded(order("a", shuffle=False)) == own
    shuffled = unpadded(order("b", shuffle=True))
    assert shuffled != own
    assert sorted(shuffled) == sorted(own)


@pytest.mark.parameter("dataloader_num_workers")
@pytest.mark.parameter("dataloader_prefetch_factor")
@pytest.mark.parameter("dataloader_persistent_workers")
def test_workers_read_the_same_batches_and_stay_if_they_should(tmp_path):
    settings = {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 3, "dataloader_persistent_workers": True}
    run = runs.prepare(tmp_path, **settings)
    loader = run.trainer.get_train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor) == (1, 3)
    workers = []
    for _ in range(2):
        iterator = iter(loader)
        list(iterator)
        inner = loader.base_dataloader if hasattr(loader, "base_dataloader") else loader
        workers.append(id(inner._iterator))
    assert workers[0] == workers[1]


@pytest.mark.parameter("dataloader_pin_memory")
def test_memory_is_pinned_for_an_accelerator_when_asked(tmp_path):
    for wanted in (True, False):
        run = runs.prepare(tmp_path / str(wanted), dataloader_pin_memory=wanted, extra={"use_cpu": False})
        assert run.trainer.get_train_dataloader().pin_memory is wanted


@pytest.mark.parameter("seed")
def test_the_seed_decides_dropout(tmp_path):
    def weights(name: str, seed: int):
        run = runs.train(tmp_path / name, model=runs.lora(0.5), seed=seed, train_dataloader_shuffle=False, max_steps=1)
        return run.weights()

    assert runs.equal(weights("a", 1), weights("b", 1))
    assert not runs.equal(weights("c", 2), weights("d", 1))


@pytest.mark.parameter("full_determinism")
def test_full_determinism_forbids_algorithms_that_are_not_repeatable(tmp_path):
    try:
        runs.prepare(tmp_path, full_determinism=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


# --------------------------------------------------------------------------------------------- what transformers refuses


def arguments(tmp_path, extra=None, **options):
    return training_arguments(
        TrainingOptions(**{**runs.PLAIN, **options}), GeneralOptions(), output_dir=tmp_path, precision="no",
        extra=extra or {},
    )  # fmt: skip


def test_extra_arguments_reach_transformers(tmp_path):
    made = arguments(tmp_path, {"adam_epsilon": 1e-5, "warmup_steps": 3.0, "dataloader_drop_last": True})
    assert (made.adam_epsilon, made.get_warmup_steps(100), made.dataloader_drop_last) == (1e-5, 3, True)


@pytest.mark.parametrize(
    ("options", "extra", "flag"),
    [
        ({"optim": "adam_of_tomorrow"}, {}, "--optim"),
        ({"lr_scheduler_type": "zigzag"}, {}, "--lr_scheduler_type"),
        ({}, {"logging_strategy": "sometimes"}, "--logging_strategy"),
        ({}, {"torch_empty_cache_steps": -1}, "--torch_empty_cache_steps"),
    ],
)
def test_what_transformers_refuses_is_told_with_its_flag(tmp_path, options, extra, flag):
    with pytest.raises(UsageError, match=flag):
        arguments(tmp_path, extra, **options)


def test_a_metric_that_evaluation_does_not_report_is_refused_before_training(tmp_path):
    with pytest.raises(UsageError, match=r"--metric_for_best_model rouge.*loss and token_acc"):
        runs.prepare(tmp_path, val=runs.samples(2), eval_strategy="steps", eval_steps=2, metric_for_best_model="rouge")


def test_a_run_that_has_nothing_to_evaluate_on_does_not_evaluate(tmp_path):
    made = without_evaluation(arguments(tmp_path, eval_strategy="steps", eval_steps=2, eval_on_start=True))
    assert (made.eval_strategy, made.eval_on_start) == ("no", False)


def test_nothing_calls_a_hub_or_a_tracker_by_itself(tmp_path):
    made = arguments(tmp_path)
    assert made.report_to == []
    assert not made.push_to_hub
    assert made.remove_unused_columns is False
