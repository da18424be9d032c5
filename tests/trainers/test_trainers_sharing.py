"""Processes that share each row train what one process trains on whole rows."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import runs
import torch

import architectures
import tiny
from swift.core.errors import ModelError, UsageError
from swift.data.collate import Filled, Flattened
from swift.trainers.isolation import isolate
from swift.trainers.sharing import Evened, share
from together import in_processes

pytestmark = pytest.mark.slow
PATIENCE = timedelta(minutes=2)
NAMES = ("loss", "grad_norm", "token_acc", "seq_acc", "eval_loss", "eval_token_acc", "eval_seq_acc", "learning_rate")
TOTAL = 8
"""Rows of an optimizer step, whoever computes them."""


def base(**changes: Any) -> Any:
    """The tiny model with an attention that keeps the sequences of a row apart."""
    model = tiny.model(**changes)
    isolate(model, None, "--sequence_parallel_size 2")
    return model


def trained(folder: Path, model: Any, **settings: Any) -> dict[str, Any]:
    """What one training says and leaves, ready to be sent."""
    made = {"train": runs.samples(24, weighted=True), "val": runs.samples(5, seed=8), "eval_strategy": "steps",
            "eval_steps": 2, "max_steps": 4, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}  # fmt: skip
    run = runs.train(folder, model=model, **{**made, **settings})
    return {"logged": {name: run.logged(name) for name in NAMES}, "weights": run.weights(), "state": run.trainer.state}


def alone(folder: Path, model: Any = None, **settings: Any) -> dict[str, Any]:
    steps = {"gradient_accumulation_steps": TOTAL // 2, "collate": Flattened()}
    return trained(folder, model or base(), **{**steps, **settings})


def shared(folder: Path, processes: int, size: int, wrap: Any = lambda model: model, changes: dict[str, Any] | None = None,
           **settings: Any) -> list[dict[str, Any]]:  # fmt: skip
    """The same training by several processes, `size` of which share each row."""

    def work(rank: int) -> dict[str, Any]:
        model = base(**(changes or {}))
        mesh = share(model, size, PATIENCE)
        steps = {"gradient_accumulation_steps": TOTAL // 2 // (processes // size), "mesh": mesh,
                 "average_tokens_across_devices": True, "collate": Filled(0, 2 * size)}  # fmt: skip
        return trained(folder / f"rank-{rank}", wrap(model), **{**steps, **settings})

    return in_processes(processes, work, folder)


def require_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name in NAMES:
        assert other["logged"][name] == pytest.approx(one["logged"][name], rel=1e-4), name
    assert one["logged"]["loss"]
    assert other["weights"].keys() == one["weights"].keys()
    assert runs.distance(one["weights"], other["weights"]) < 2e-4


@pytest.mark.parameter("sequence_parallel_size")
@pytest.mark.parametrize(("processes", "size", "heads"), [(2, 2, 2), (4, 2, 2), (4, 4, 2), (2, 2, 1)],
                         ids=["by heads", "two rows at a time", "by heads in a ring", "a ring"])  # fmt: skip
def test_losses_gradients_evaluations_and_weights_are_those_of_one_process(tmp_path, processes, size, heads):
    changes = {"num_key_value_heads": heads}
    one = alone(tmp_path / "one", base(**changes))
    answers = shared(tmp_path / "many", processes, size, changes=changes)
    for answer in answers:
        require_equal(one, answer)
        assert answer["state"].max_steps == one["state"].max_steps
        assert runs.equal(answers[0]["weights"], answer["weights"])


@pytest.mark.parameter("acc_strategy")
@pytest.mark.parameter("average_tokens_across_devices")
def test_rows_are_counted_once_in_whole_epochs_and_whole_sequences(tmp_path):
    settings = {"max_steps": -1, "num_train_epochs": 1, "acc_strategy": "seq", "train": runs.samples(21)}
    one = alone(tmp_path / "one", average_tokens_across_devices=False, **settings)
    for answer in shared(tmp_path / "two", 2, 2, **{**settings, "average_tokens_across_devices": False}):
        require_equal(one, answer)
        assert answer["state"].global_step == one["state"].global_step == 3  # 21 rows, 8 at a time
        assert answer["state"].epoch == one["state"].epoch == 1


def test_without_averaging_each_row_of_processes_counts_as_one_process(tmp_path):
    def work(rank: int) -> dict[str, Any]:
        return trained(tmp_path / f"ddp-{rank}", base(), average_tokens_across_devices=False, collate=Flattened(),
                       gradient_accumulation_steps=2)  # fmt: skip

    apart = in_processes(2, work, tmp_path / "two")
    for answer in shared(tmp_path / "four", 4, 2, average_tokens_across_devices=False):
        require_equal(apart[0], answer)


@pytest.mark.parameter("packing")
@pytest.mark.parameter("gradient_checkpointing")
@pytest.mark.parameter("group_by_length")
@pytest.mark.parametrize("settings", [
    {"gradient_checkpointing": True}, {"group_by_length": True, "max_steps": 1}, {"use_logits_to_keep": False},
], ids=lambda settings: next(iter(settings)))  # fmt: skip
def test_other_ways_of_training_are_shared_too(tmp_path, settings):
    train = Lengthy(runs.samples(21))
    one = alone(tmp_path / "one", train=train, **settings)
    for answer in shared(tmp_path / "two", 2, 2, train=train, **settings):
        require_equal(one, answer)


class Lengthy(list):
    """Samples that know their lengths, as a stored set of samples does."""

    @property
    def lengths(self) -> list[int]:
        return [len(sample) for sample in self]


@pytest.mark.parameter("packing")
def test_packs_are_shared(tmp_path):
    packs = [runs.samples(3, seed=seed) for seed in range(12)]
    settings = {"train": packs, "per_device_train_batch_size": 1, "max_steps": 2}
    one = alone(tmp_path / "one", **settings)
    for answer in shared(tmp_path / "four", 4, 4, **settings):
        require_equal(one, answer)


@pytest.mark.parameter("resume_from_checkpoint")
def test_adapters_are_trained_and_resumed(tmp_path):
    def adapter(model: Any) -> Any:
        torch.manual_seed(0)
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        return get_peft_model(model, config)

    one = alone(tmp_path / "one", adapter(base()))

    def work(rank: int) -> list[dict[str, Any]]:
        answers = []
        for name, resume in (("whole", None), ("resumed", tmp_path / "whole" / "checkpoint-2")):
            model = base()
            mesh = share(model, 2, PATIENCE)
            answers.append(
                trained(tmp_path / name, adapter(model), mesh=mesh, gradient_accumulation_steps=4, collate=Filled(0, 4),
                        average_tokens_across_devices=True, save_strategy="steps", save_steps=2, resume=resume)
            )  # fmt: skip
        return answers

    for whole, resumed in in_processes(2, work, tmp_path / "two"):
        require_equal(one, whole)
        assert runs.equal(whole["weights"], resumed["weights"])


@pytest.mark.parameter("sequence_parallel_size")
def test_each_process_keeps_its_share_of_the_activations(tmp_path):
    row = {"collate": Filled(0, 8)}
    samples = [runs.Sample([5, *[7] * 2047], [-100, *[7] * 2047])]

    def kept(model: Any, mesh: Any) -> int:
        """Bytes that one forward pass keeps for the backward pass."""
        run = runs.prepare(tmp_path / f"run-{0 if mesh is None else mesh.rank}", model=model, mesh=mesh, **row)
        batch, total = Filled(0, 8)(samples), {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                total[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.train()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss, *_ = run.trainer.losses(model, batch, None)
        del loss
        return sum(total.values())

    def work(size: int) -> Any:
        def one(rank: int) -> int:
            model = base()
            return kept(model, share(model, size, PATIENCE))

        return one

    whole = kept(base(), None)
    by_two, by_four = (max(in_processes(size, work(size), tmp_path / str(size))) for size in (2, 4))
    print(f"kept for the backward pass of 2048 tokens: {whole}, {by_two} of two, {by_four} of four")
    assert by_two < 0.6 * whole
    assert by_four < 0.4 * whole


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt_oss", "qwen3_moe", "mixtral", "llama", "cohere2"])
def test_windows_caps_sinks_and_experts_are_shared_by_heads(tmp_path, family):
    def work(rank: int) -> tuple[int, int]:
        model = architectures.model(family)
        isolate(model, None, "--sequence_parallel_size 2")
        mesh = share(model, 2, PATIENCE)
        return mesh.shape.ulysses, mesh.shape.ring

    assert in_processes(2, work, tmp_path / "two") == [(2, 1), (2, 1)]


@pytest.mark.parametrize(("family", "size", "why"), [
    ("gemma2", 4, "softcap"), ("falcon", 2, "takes the borders of sequences"), ("mamba", 2, "borders"),
])  # fmt: skip
def test_a_model_that_cannot_be_shared_is_refused_before_training(tmp_path, family, size, why):
    def work(rank: int) -> str:
        model = architectures.model(family)
        if family == "gemma2":
            isolate(model, None, "--sequence_parallel_size 4")
        with pytest.raises(ModelError) as refused:
            share(model, size, PATIENCE)
        return str(refused.value)

    for message in in_processes(size, work, tmp_path / "few"):
        assert why in message
        assert "--sequence_parallel_size" in message


def test_a_layer_that_mixes_tokens_by_itself_is_found_out(tmp_path):
    def work(rank: int) -> str:
        model = base()

        class Mixing(torch.nn.Module):
            def __init__(self, inner: Any) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, states: torch.Tensor) -> torch.Tensor:
                return self.inner(states + states.roll(1, 1))

        model.model.layers[1].mlp = Mixing(model.model.layers[1].mlp)
        with pytest.raises(ModelError) as refused:
            share(model, 2, PATIENCE)
        return str(refused.value)

    assert all("do not give the logits" in message for message in in_processes(2, work, tmp_path / "two"))


def test_processes_that_cannot_be_divided_are_refused(tmp_path):
    def work(rank: int) -> str:
        with pytest.raises(UsageError) as refused:
            share(base(), 3, PATIENCE)
        return str(refused.value)

    assert all("multiple of 3" in message for message in in_processes(2, work, tmp_path / "two"))


def test_a_validation_set_is_filled_up_with_rows_that_do_not_count():
    evened = Evened(runs.samples(5), 4)
    assert len(evened) == 8
    assert [sample.learnt for sample in (evened[5], evened[7])] == [0, 0]
    assert evened[4] == runs.samples(5)[4]
