"""Trainings with our own methods: what moves, that they resume to the same numbers, and that LISA draws its layers."""

from __future__ import annotations

import pytest
import runs
import torch

import own_tuning
import tiny
from own_tuning import logits, tuned
from swift.core.errors import UsageError
from swift.data.collate import Flattened, Padded
from swift.trainers.lisa import Lisa
from swift.trainers.outputs import Continuation
from swift.tuners.attach import load_adapters
from swift.tuners.own.longlora import shift_attention

METHODS = list(own_tuning.VARIANTS)


@pytest.mark.parameter("tuner_type")
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_while_the_model_stays(tmp_path, method):
    model = tuned(method)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    learnt = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    run = runs.train(tmp_path, model=model, train=runs.samples(2), max_steps=30, learning_rate=3e-2,
                     gradient_checkpointing=True, save_strategy="steps", save_steps=30, weight_decay=0.1)  # fmt: skip
    assert run.logged("loss")[-1] < 0.95 * run.logged("loss")[0]
    now = run.weights()
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert not any(torch.equal(now[name], value) for name, value in learnt.items())
    checkpoint = tmp_path / "checkpoint-30"
    assert not (checkpoint / "model.safetensors").exists()
    assert torch.equal(logits(load_adapters(tiny.model(), [checkpoint])), logits(model.eval()))


@pytest.mark.parameter("gradient_checkpointing")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_recomputed_activations_give_the_same_training(tmp_path, method):
    plain = runs.train(tmp_path / "a", model=tuned(method), max_steps=2)
    again = runs.train(tmp_path / "b", model=tuned(method), max_steps=2, gradient_checkpointing=True)
    assert runs.distance(plain.weights(), again.weights()) < 1e-6
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    third = runs.train(tmp_path / "c", model=tuned(method), max_steps=2, **reentrant)
    assert third.logged("grad_norm") == pytest.approx(plain.logged("grad_norm"), rel=1e-4)


@pytest.mark.parameter("padding_free")
@pytest.mark.parametrize("method", METHODS)
def test_padded_and_flattened_batches_give_the_same_training(tmp_path, method):
    trained = [
        runs.train(tmp_path / str(number), model=tuned(method), collate=collate, max_steps=2)
        for number, collate in enumerate((Padded(0), Padded(0, "left"), Flattened()))
    ]
    for other in trained[1:]:
        assert other.logged("loss") == pytest.approx(trained[0].logged("loss"), rel=1e-5)
        assert other.logged("grad_norm") == pytest.approx(trained[0].logged("grad_norm"), rel=1e-4)


@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_uninterrupted_run_to_the_last_bit(tmp_path, method):
    settings = {"max_steps": 7, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "cosine"}
    variants = {"reft_args": {"dropout": 0.1}} if method == "reft" else {}
    whole = runs.train(tmp_path / "whole", model=tuned(method, **variants), **settings)
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    resumed = runs.train(
        tmp_path / "resumed",
        model=tuned(method, adapters=[checkpoint], seed=3, **variants),
        resume=checkpoint,
        **settings,
    )
    assert runs.equal(resumed.weights(), whole.weights())
    assert resumed.logged("loss") == whole.logged("loss")


@pytest.mark.parametrize("method", METHODS)
def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path, method):
    model = tuned(method)
    run = runs.train(tmp_path, model=model, val=runs.samples(4, seed=9), max_steps=4, learning_rate=0.5, eval_strategy="steps",
                     eval_steps=1, save_strategy="steps", save_steps=1, extra={"load_best_model_at_end": True})  # fmt: skip
    best = run.outcome.best
    assert best is not None
    assert torch.equal(logits(load_adapters(tiny.model(), [best])), logits(model.eval()))


@pytest.mark.parametrize("collate", [Padded(0), Padded(0, "left")])
def test_shifted_attention_trains_and_is_evaluated_in_full(tmp_path, collate):
    model, val = tiny.model(), runs.samples(4, seed=9)
    shift_attention(model, 16, None)
    run = runs.train(tmp_path / "a", model=model, collate=collate, train=runs.samples(8), val=val, max_steps=20,
                     eval_strategy="steps", eval_steps=20, eval_on_start=True)  # fmt: skip
    assert run.logged("loss")[-1] < 0.8 * run.logged("loss")[0]
    plain = runs.train(tmp_path / "b", collate=collate, val=val, max_steps=1, eval_strategy="steps", eval_on_start=True)
    assert run.logged("eval_loss")[0] == pytest.approx(plain.logged("eval_loss")[0], rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- LISA


def lisa(folder, *, layers=4, count=2, interval=2, resume=None, seed=42, **options):
    """A full training of a model with few layers active at a time; the run, and which layers moved in each step."""
    model = tiny.model(layers=layers)
    watch = Lisa(model.model.layers, count, interval)
    run = runs.prepare(folder, model=model, seed=seed, **{"weight_decay": 0.1, **options})
    run.trainer.add_callback(watch)
    moved: list[set[int]] = []

    class Watch(type(watch).__mro__[1]):
        def on_step_begin(self, args, state, control, **_):
            self.before = [[p.detach().clone() for p in layer.parameters()] for layer in model.model.layers]
            self.head = model.model.embed_tokens.weight.detach().clone()

        def on_step_end(self, args, state, control, **_):
            changed = [
                any(not torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
                for before, layer in zip(self.before, model.model.layers, strict=True)
            ]
            moved.append({number for number, has_moved in enumerate(changed) if has_moved})
            assert not torch.equal(self.head, model.model.embed_tokens.weight)
            self.states = sum(parameter in run.trainer.optimizer.state for parameter in model.parameters())

    watcher = Watch()
    run.trainer.add_callback(watcher)
    run.outcome = run.session.run(run.trainer, None if resume is None else Continuation(resume), {})
    return run, moved, watcher


@pytest.mark.parameter("lisa_activated_layers")
@pytest.mark.parameter("lisa_step_interval")
@pytest.mark.parametrize(("count", "interval"), [(1, 3), (2, 2), (4, 5)])
def test_a_few_layers_are_trained_at_a_time_and_others_after_the_interval(tmp_path, count, interval):
    run, moved, watcher = lisa(tmp_path, count=count, interval=interval, max_steps=6 * interval)
    turns = [moved[start : start + interval] for start in range(0, len(moved), interval)]
    for turn in turns:
        assert all(step == turn[0] for step in turn)
        assert len(turn[0]) == count
    if count < 4:
        assert len({frozenset(turn[0]) for turn in turns}) > 1, "they change"
    per_layer = len(list(run.trainer.model.model.layers[0].parameters()))
    assert watcher.states == 2 + count * per_layer, "states of embedding, norm, and of the layers in turn"
    assert all(parameter.requires_grad for parameter in run.trainer.model.parameters()), "as it was found"


@pytest.mark.parameter("lisa_step_interval")
@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_draws_the_same_layers_and_is_the_same_run(tmp_path, stop):
    settings = {"max_steps": 9, "save_strategy": "steps", "save_steps": stop, "count": 1}
    whole, moved, _ = lisa(tmp_path / "whole", **settings)
    resumed, again, _ = lisa(tmp_path / "resumed", resume=tmp_path / "whole" / f"checkpoint-{stop}", **settings)
    assert again == moved[stop:]
    assert runs.equal(resumed.weights(), whole.weights())


def test_the_seed_decides_which_layers_are_drawn():
    layers = tiny.model(layers=8).model.layers
    one, other = ([Lisa(layers, 2, 1).drawn(turn, seed) for turn in range(10)] for seed in (1, 2))
    assert one == [Lisa(layers, 2, 1).drawn(turn, 1) for turn in range(10)]
    assert one != other


def test_lisa_leaves_alone_what_was_frozen(tmp_path):
    model = tiny.model(layers=4)
    for layer in model.model.layers:
        layer.mlp.requires_grad_(False)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    run = runs.prepare(tmp_path, model=model, max_steps=4)
    run.trainer.add_callback(Lisa(model.model.layers, 4, 2))
    run.session.run(run.trainer, None, {})
    assert torch.equal(before, model.model.layers[0].mlp.up_proj.weight)


def test_more_layers_than_there_are_cannot_be_drawn():
    with pytest.raises(UsageError, match="--lisa_activated_layers 3: the model has 2 layers"):
        Lisa(tiny.model().model.layers, 3, 2)
