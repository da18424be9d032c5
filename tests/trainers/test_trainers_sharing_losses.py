"""Forms of the loss of rows that processes share are those of one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from test_trainers_sharing import NAMES, PATIENCE, TOTAL

import architectures
import tiny
from swift.catalog.components import LOSSES
from swift.core.errors import ModelError
from swift.data.collate import Filled, Flattened
from swift.trainers.isolation import isolate
from swift.trainers.neftune import noise_on_embeddings
from swift.trainers.scoring import choose_way
from swift.trainers.sharing import share
from together import in_processes

pytestmark = pytest.mark.slow
CHANNELS = ("loss_books", "loss_chat", "eval_loss_books", "eval_loss_chat", "aux_loss")


def of_channels(count: int, seed: int) -> list[Any]:
    """Samples with weights, from two channels."""
    return [
        replace(sample, extra={"channel": ("books", "chat")[i % 2]})
        for i, sample in enumerate(runs.samples(count, weighted=True, seed=seed))
    ]


def learnt(folder: Path, made: Any, collate: Any, **settings: Any) -> dict[str, Any]:
    """What one training says and leaves, ready to be sent."""
    plain = {"train": of_channels(24, 0), "val": of_channels(5, 8), "eval_strategy": "steps", "eval_steps": 2,
             "max_steps": 3, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}  # fmt: skip
    run = runs.train(folder, model=made, collate=collate, **{**plain, **settings})
    return {"logged": {name: run.logged(name) for name in (*NAMES, *CHANNELS)}, "weights": run.weights()}


def model(family: str | None, **changes: Any) -> Any:
    made = tiny.model() if family is None else architectures.model(family, vocab_size=400, **changes)
    for name, weight in made.named_parameters():
        if name.endswith((".gate.weight", ".router.weight")):
            weight.data *= 10  # experts that differ, or the loss that balances them would be that of any tokens
    isolate(made, None, "--sequence_parallel_size 2")
    return made


def compare(folder: Path, processes: int, size: int, family: str | None = None, **settings: Any) -> dict[str, Any]:
    """Train alone and in processes, of which `size` share a row; what was logged, after both were found equal."""
    columns = ("channel",) if "enable_channel_loss" in settings else ()

    def work(rank: int) -> dict[str, Any]:
        made = model(family)
        mesh = share(made, size, PATIENCE)
        return learnt(
            folder / str(rank), made, Filled(0, 2 * size, columns), mesh=mesh, average_tokens_across_devices=True,
            gradient_accumulation_steps=TOTAL // 2 // (processes // size), **settings,
        )  # fmt: skip

    one = learnt(folder / "one", model(family), Flattened(columns), gradient_accumulation_steps=TOTAL // 2, **settings)
    for answer in in_processes(processes, work, folder / "many"):
        for name, values in one["logged"].items():
            assert answer["logged"][name] == pytest.approx(values, rel=1e-4), name
        assert runs.distance(one["weights"], answer["weights"]) < 2e-4
    return one["logged"]


@pytest.mark.parameter("sequence_parallel_size")
@pytest.mark.parameter("router_aux_loss_coef")
@pytest.mark.parametrize(("family", "processes", "size"), [
    ("qwen3_moe", 2, 2), ("mixtral", 4, 2), ("qwen3_moe", 4, 4),
])  # fmt: skip
def test_experts_are_balanced_over_the_whole_row(tmp_path, family, processes, size):
    assert all(compare(tmp_path, processes, size, family, router_aux_loss_coef=0.5)["aux_loss"])


@pytest.mark.parameter("router_aux_loss_coef")
@pytest.mark.parametrize(("family", "count"), [("gpt_oss", 3), ("mixtral", 1), ("qwen3_moe", 2)])
def test_the_number_of_experts_per_token_is_found_by_a_trial(tmp_path, family, count):
    def work(rank: int) -> int | None:
        made = model(family, num_experts_per_tok=count)
        return choose_way(made, None, router=True, mesh=share(made, 2, PATIENCE)).per_token

    assert in_processes(2, work, tmp_path / "two") == [count, count]


@pytest.mark.parameter("router_aux_loss_coef")
def test_experts_that_are_balanced_in_another_way_are_refused(tmp_path):
    def work(rank: int) -> str:
        made = model("qwen3_moe")
        mesh, forward = share(made, 2, PATIENCE), made.forward

        def doubled(*args: Any, output_router_logits: bool = False, **settings: Any) -> Any:
            outputs = forward(*args, output_router_logits=output_router_logits, **settings)
            outputs["aux_loss"] = outputs.aux_loss * 7
            return outputs

        made.forward = doubled
        with pytest.raises(ModelError) as refused:
            choose_way(made, None, router=True, mesh=mesh)
        return str(refused.value)

    assert all("--router_aux_loss_coef does not work" in answer for answer in in_processes(2, work, tmp_path / "two"))


@pytest.mark.parameter("sequence_parallel_size")
@pytest.mark.parameter("enable_channel_loss")
@pytest.mark.parameter("enable_dft_loss")
@pytest.mark.parametrize(("processes", "size"), [(2, 2), (4, 4)])
def test_channels_weights_and_dft_are_those_of_whole_rows(tmp_path, processes, size):
    logged = compare(tmp_path, processes, size, enable_channel_loss=True, enable_dft_loss=True)
    assert logged["loss_books"] != logged["loss_chat"]
    assert logged["eval_loss_chat"]


# ---------------------------------------------------------------------------------------------------- losses of one's own


def flat_logits(outputs: Any, labels: Any, *, loss_scale: Any = None, **_: Any) -> Any:
    """A mean over all positions, which is averaged over batches; it looks at logits beside each other."""
    logits = outputs.logits[0].float()
    turns = (logits[1:].softmax(-1) - logits[:-1].softmax(-1)).square().sum(-1)
    return turns.mean() + outputs["loss"].sum() / (labels[:, 1:] != -100).sum() + loss_scale.mean()


def spread(outputs: Any, labels: Any, *, num_items_in_batch: Any = None, **_: Any) -> Any:
    """A sum over tokens that needs no logits, and is no sum over parts of a row."""
    learns = labels[:, 1:] != -100
    values = outputs.loss[:, :-1][learns]
    count = learns.sum() if num_items_in_batch is None else num_items_in_batch
    return (values + (values - values.mean()).square()).sum() / count


@pytest.mark.parameter("sequence_parallel_size")
@pytest.mark.parameter("loss_type")
@pytest.mark.parametrize("own", [flat_logits, spread])
@pytest.mark.parametrize(("processes", "size"), [(2, 2), (4, 2), (4, 4)])
def test_a_loss_of_ones_own_sees_the_whole_row(tmp_path, own, processes, size):
    LOSSES["own"] = own
    try:
        compare(tmp_path, processes, size, loss_type="own")
    finally:
        del LOSSES._entries["own"]


@pytest.mark.parameter("loss_type")
def test_logits_travel_only_when_a_loss_looks_at_them(tmp_path):
    """The largest thing that is kept for the backward pass, as a share of the logits of the whole row."""

    def share_of(own: Any) -> float:
        def work(rank: int) -> float:
            made = model(None)
            mesh = share(made, 2, PATIENCE)
            run = runs.prepare(tmp_path / str(rank), model=made, mesh=mesh, collate=Filled(0, 4), loss_type="own")
            largest: list[int] = []

            def note(tensor: torch.Tensor) -> torch.Tensor:
                largest.append(0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel())
                return tensor

            batch = Filled(0, 4)(runs.samples(8, weighted=True))
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                loss, *_ = run.trainer.losses(made, batch, None)
            loss.backward()
            return max(largest) / (int(batch["cu_seq_lens_q"][-2]) * made.config.vocab_size)

        LOSSES["own"] = own
        try:
            return max(in_processes(2, work, tmp_path / "two"))
        finally:
            del LOSSES._entries["own"]

    assert share_of(flat_logits) > 0.95
    assert share_of(spread) < 0.7


# ------------------------------------------------------------------------------------------------------------------ noise


@pytest.mark.parameter("neftune_noise_alpha")
@pytest.mark.parametrize(("size", "heads"), [(2, 2), (2, 1)], ids=["by heads", "a ring"])
def test_noise_has_the_strength_of_the_sequence_that_a_token_belongs_to(tmp_path, size, heads):
    batch = Filled(0, 2 * size)(runs.samples(5, seed=2))

    def work(rank: int) -> tuple[list[int], list[list[float]]]:
        made = tiny.model(num_key_value_heads=heads)
        isolate(made, None, "--sequence_parallel_size 2")
        mesh = share(made, size, PATIENCE)
        torch.manual_seed(rank)
        layer, ids = made.get_input_embeddings(), mesh.fed(batch)["input_ids"]
        plain = layer(ids)
        with noise_on_embeddings(made, batch, 5.0, mesh):
            noise = layer(ids) - plain
        return mesh.own(batch["input_ids"].shape[1]).tolist(), noise[0].detach().tolist()

    lengths = batch["cu_seq_lens_q"].diff()
    by_token = torch.repeat_interleave(lengths, lengths).float()
    answers = in_processes(size, work, tmp_path / "two")
    assert sorted(place for places, _ in answers for place in places) == list(range(len(by_token)))
    for places, noise in answers:
        largest = torch.tensor(noise).abs().amax(-1)
        limit = 5.0 / (by_token[places] * len(noise[0])).sqrt()
        assert bool((largest <= limit * 1.001).all())
        assert bool((largest > 0.8 * limit).all())
    assert answers[0][1] != answers[1][1]


@pytest.mark.parameter("neftune_noise_alpha")
@pytest.mark.parameter("sequence_parallel_size")
def test_noise_disturbs_training_and_not_evaluation(tmp_path):
    def work(rank: int) -> dict[str, Any]:
        found = {}
        for noise in (0.0, 5.0):
            made = model(None)
            mesh = share(made, 2, PATIENCE)
            found[noise] = learnt(
                tmp_path / f"{rank}-{noise}", made, Filled(0, 4), mesh=mesh, neftune_noise_alpha=noise,
                average_tokens_across_devices=True, max_steps=1, eval_on_start=True, eval_strategy="steps", eval_steps=9,
            )["logged"]  # fmt: skip
        return found

    for answer in in_processes(2, work, tmp_path / "two"):
        assert answer[5.0]["eval_loss"][0] == answer[0.0]["eval_loss"][0]
        assert answer[5.0]["loss"] != answer[0.0]["loss"]
        assert answer[5.0]["loss"] == pytest.approx(answer[0.0]["loss"], rel=0.3)
