"""Trainings that must be the same training: accumulated, padded or not, resumed, evaluated in between."""

from __future__ import annotations

import pytest
import runs
import torch

import tiny
from swift.chat.render import Sample
from swift.data.collate import Flattened, Padded


@pytest.mark.parameter("gradient_accumulation_steps")
@pytest.mark.parameter("per_device_train_batch_size")
@pytest.mark.parametrize("weighted", [False, True])
def test_one_batch_of_eight_equals_eight_of_one_and_four_of_two(tmp_path, weighted):
    trained = {}
    for size, steps in ((8, 1), (1, 8), (2, 4)):
        shape = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trained[size] = runs.train(tmp_path / str(size), train=runs.samples(24, weighted), max_steps=3, **shape)
    for size in (1, 2):
        assert trained[size].logged("loss") == pytest.approx(trained[8].logged("loss"), rel=1e-5)
        assert trained[size].logged("grad_norm") == pytest.approx(trained[8].logged("grad_norm"), rel=1e-4)
        assert runs.distance(trained[size].weights(), trained[8].weights()) < 1e-4  # three steps of Adam at 1e-3
    assert runs.distance(trained[8].weights(), dict(tiny.model().named_parameters())) > 1e-3


def test_the_last_step_of_an_epoch_counts_only_the_batches_it_has(tmp_path):
    ragged = runs.samples(10)
    accumulated = runs.train(tmp_path / "a", train=ragged, max_steps=-1, num_train_epochs=1, per_device_train_batch_size=1,
                             gradient_accumulation_steps=4)  # fmt: skip
    whole = runs.train(tmp_path / "b", train=ragged, max_steps=-1, num_train_epochs=1, per_device_train_batch_size=4,
                       gradient_accumulation_steps=1)  # fmt: skip
    assert len(accumulated.logged("loss")) == 3
    assert accumulated.logged("loss") == pytest.approx(whole.logged("loss"), rel=1e-5)


@pytest.mark.parameter("padding_free")
@pytest.mark.parameter("padding_side")
@pytest.mark.parametrize("weighted", [False, True])
def test_padded_left_or_right_and_padding_free_batches_give_the_same_loss_and_gradient(tmp_path, weighted):
    collators = {"right": Padded(0), "left": Padded(0, "left"), "free": Flattened()}
    trained = {
        name: runs.train(tmp_path / name, train=runs.samples(16, weighted), collate=collate, max_steps=2,
                         per_device_train_batch_size=4)
        for name, collate in collators.items()
    }  # fmt: skip
    for name in ("left", "free"):
        assert trained[name].logged("loss") == pytest.approx(trained["right"].logged("loss"), rel=1e-5)
        assert trained[name].logged("grad_norm") == pytest.approx(trained["right"].logged("grad_norm"), rel=1e-4)
        assert trained[name].logged("token_acc") == trained["right"].logged("token_acc")


def test_the_loss_of_a_step_is_that_of_transformers_on_the_same_rows(tmp_path):
    rows = runs.samples(4)
    run = runs.train(tmp_path, train=rows, max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    batch = Padded(0)(rows)
    reference = tiny.model()(**batch, use_cache=False).loss
    assert run.logged("loss")[0] == pytest.approx(float(reference.detach()), rel=1e-5)


@pytest.mark.parameter("per_device_eval_batch_size")
def test_evaluation_is_a_mean_over_all_tokens_whatever_the_size_of_its_batches(tmp_path):
    val = runs.samples(11, weighted=True, seed=5)
    results, batches = {}, {}
    for size, collate in ((1, Padded(0)), (4, Padded(0)), (11, Padded(0)), (3, Flattened())):
        run = runs.prepare(tmp_path / f"{size}", val=val, collate=collate, per_device_eval_batch_size=size)
        results[size] = run.trainer.evaluate()
        batches[size] = len(run.trainer.get_eval_dataloader())
    assert batches == {1: 11, 4: 3, 11: 1, 3: 4}
    losses, tokens = 0.0, 0
    for sample in val:
        batch = Padded(0)([sample])
        logits = tiny.model()(batch["input_ids"]).logits[0, :-1].double()
        picked = -logits.log_softmax(-1).gather(-1, batch["input_ids"][0, 1:, None]).squeeze(-1)
        learns = batch["labels"][0, 1:] != -100
        losses += float((picked * batch["loss_weights"][0, 1:])[learns].sum().detach())
        tokens += int(learns.sum())
    for result in results.values():
        assert result["eval_loss"] == pytest.approx(losses / tokens, rel=1e-5)


def test_a_run_with_evaluations_equals_one_without(tmp_path):
    val = {"val": runs.samples(4, seed=9), "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    plain = runs.train(tmp_path / "plain", model=runs.lora(0.3))
    evaluated = runs.train(tmp_path / "evaluated", model=runs.lora(0.3), **val)
    assert plain.logged("loss") == evaluated.logged("loss")
    assert runs.equal(plain.weights(), evaluated.weights())


@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parameter("dataloader_num_workers")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [3, 5, 8], ids=["inside the first epoch", "at its end", "inside the second epoch"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_resumed_run_is_the_uninterrupted_run_to_the_last_bit(tmp_path, kind, stop, workers):
    """18 samples in batches of 2, 2 accumulated: 5 steps per epoch, the last of one batch."""

    def model():
        return tiny.model(attention_dropout=0.2) if kind == "full" else runs.lora(0.2)

    settings = {
        "train": runs.samples(18), "val": runs.samples(3, seed=4), "max_steps": 11, "save_strategy": "steps",
        "save_steps": stop, "eval_strategy": "steps", "eval_steps": 5, "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.2, "dataloader_num_workers": workers,
    }  # fmt: skip
    whole = runs.train(tmp_path / "whole", model=model(), **settings)
    checkpoint = tmp_path / "whole" / f"checkpoint-{stop}"
    resumed = runs.train(tmp_path / "resumed", model=model(), resume=checkpoint, **settings)
    assert runs.equal(resumed.weights(), whole.weights())
    for name in ("loss", "grad_norm", "learning_rate", "eval_loss", "epoch"):
        assert resumed.logged(name) == whole.logged(name)
    assert [entry["global_step/max_steps"] for entry in resumed.journal() if "loss" in entry] == [
        f"{step}/11" for step in range(stop + 1, 12)
    ]


def test_a_resumed_run_logs_and_saves_as_it_is_asked_to_now(tmp_path):
    runs.train(tmp_path / "a", save_strategy="steps", save_steps=2, max_steps=2)
    again = runs.train(tmp_path / "b", resume=tmp_path / "a" / "checkpoint-2", save_strategy="steps", save_steps=3,
                       logging_steps=2, max_steps=6)  # fmt: skip
    assert [entry["step"] for entry in again.history if "loss" in entry] == [1, 2, 4, 6]
    assert sorted(path.name for path in (tmp_path / "b").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


def test_a_sample_that_learns_nothing_does_not_stop_the_training(tmp_path):
    silent = [Sample([5, 6, 7, 8], [-100] * 4)] * 8
    run = runs.train(tmp_path, train=silent, max_steps=1)
    assert run.logged("loss") == [0]


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tmp_path):
    model = tiny.model()
    run = runs.prepare(tmp_path, model=model, max_steps=2)
    before = run.weights()
    model.model.norm.register_forward_hook(lambda *call: call[2] * float("nan"))
    run.session.run(run.trainer, None, {})
    assert runs.equal(before, run.weights())
    assert [entry["loss"] for entry in run.journal() if "loss" in entry] == [None, None]
    assert not torch.isfinite(torch.tensor(run.logged("grad_norm"))).any()
