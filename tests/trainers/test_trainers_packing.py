"""Trainings on packs: the training of the same rows padded, resumed, on several processes, from a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import runs
import torch

import architectures
import tiny
from swift.commands import sft
from swift.core.errors import ModelError, UsageError
from swift.data.collate import Flattened, Padded
from swift.data.packing import PackedSet, pack_samples
from swift.data.samples import SampleSet, SampleStore, pack
from swift.models.varlen import VARLEN
from swift.options.parse import parse
from swift.trainers.isolation import isolate

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def stored(count: int, weighted: bool = False) -> SampleSet:
    return SampleSet(SampleStore(pack([[sample] for sample in runs.samples(count, weighted)])), range(count))


def packs(count: int = 24, capacity: int = 40, weighted: bool = False) -> PackedSet:
    return pack_samples(stored(count, weighted), capacity)


def cut(model):
    isolate(model, None, "--packing")
    assert model.config._attn_implementation == VARLEN
    return model


# ------------------------------------------------------------------------------------------------------- same training


@pytest.mark.parameter("packing")
@pytest.mark.parameter("padding_free")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("attention", ["by sequence", "sdpa", "eager"])
def test_packed_and_padded_batches_give_the_same_loss_and_gradient(tmp_path, attention, weighted):
    def model():
        return cut(tiny.model()) if attention == "by sequence" else tiny.model(attn_implementation=attention)

    packed, rows = packs(weighted=weighted), stored(24, weighted)
    per_pack = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(packed)}
    ways = {
        "padded": (rows, Padded(0), {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 1}),
        "free": (rows, Flattened(), {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}),
        "packs": (packed, Flattened(), per_pack),
        "all packs": (packed, Flattened(), {**per_pack, "per_device_train_batch_size": len(packed)}),
    }
    trained = {
        name: runs.train(tmp_path / name, model=model(), train=train, collate=collate, max_steps=1, **shape)
        for name, (train, collate, shape) in ways.items()
    }
    for run in trained.values():
        assert run.logged("loss") == pytest.approx(trained["padded"].logged("loss"), rel=1e-5)
        assert run.logged("grad_norm") == pytest.approx(trained["padded"].logged("grad_norm"), rel=1e-5)
        assert run.logged("token_acc") == trained["padded"].logged("token_acc")


@pytest.mark.parameter("packing")
def test_gradients_of_packed_and_padded_rows_are_equal():
    gradients = []
    for collate, model in ((Padded(0), tiny.model()), (Flattened(), cut(tiny.model()))):
        batch = collate(runs.samples(12))
        targets = batch.pop("labels").roll(-1, 1)
        logits = model(**batch, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    scale = max(float(value.abs().max()) for value in gradients[0].values())
    assert runs.distance(*gradients) < 1e-5 * max(1.0, scale)


@pytest.mark.parameter("packing")
def test_an_epoch_of_packs_has_as_many_steps_as_there_are_packs(tmp_path):
    shape = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    packed = runs.train(tmp_path / "a", train=packs(), collate=Flattened(), **shape)
    alone = runs.train(tmp_path / "b", train=stored(24), **shape)
    assert len(packed.logged("loss")) == len(packs()) < 12
    assert len(alone.logged("loss")) == 24


@pytest.mark.parameter("packing")
@pytest.mark.parameter("resume_from_checkpoint")
@pytest.mark.parametrize("stop", [2, 5], ids=["inside the first epoch", "inside the second epoch"])
def test_a_resumed_packed_run_is_the_uninterrupted_run_to_the_last_bit(tmp_path, stop):
    settings = {
        "train": packs(), "collate": Flattened(), "val": stored(5), "per_device_train_batch_size": 1, "max_steps": 8,
        "save_strategy": "steps", "save_steps": stop, "eval_strategy": "steps", "eval_steps": 4,
    }  # fmt: skip
    whole = runs.train(tmp_path / "whole", model=cut(tiny.model(attention_dropout=0.2)), **settings)
    resumed = runs.train(tmp_path / "resumed", model=cut(tiny.model(attention_dropout=0.2)),
                         resume=tmp_path / "whole" / f"checkpoint-{stop}", **settings)  # fmt: skip
    assert runs.equal(resumed.weights(), whole.weights())
    assert resumed.logged("loss") == whole.logged("loss")
    assert resumed.logged("eval_loss") == whole.logged("eval_loss")


@pytest.mark.slow
@pytest.mark.parameter("packing")
def test_two_processes_train_on_packs_what_one_trains(tmp_path):
    from test_trainers_processes import launch

    done = launch("packing", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = [torch.load(tmp_path / f"packing-{rank}.pt") for rank in (0, 1)]
    alone = runs.train(tmp_path / "alone", model=cut(tiny.model()), train=packs(), collate=Flattened(),
                       per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=4)  # fmt: skip
    assert runs.equal(*weights)
    assert runs.distance(weights[0], alone.weights()) < 2e-4
    first = json.loads((tmp_path / "result-0.json").read_text())
    losses = [entry["loss"] for entry in first["history"] if "loss" in entry]
    assert losses == pytest.approx(alone.logged("loss"), rel=1e-4)


@pytest.mark.parameter("group_by_length")
def test_grouped_rows_are_padded_less_and_all_of_them_are_learnt(tmp_path):
    seen: dict[bool, list[tuple[int, int]]] = {}

    class Counting(Padded):
        def __call__(self, samples):
            batch = super().__call__(samples)
            seen[grouped].append((batch["attention_mask"].numel(), int(batch["attention_mask"].sum())))
            return batch

    for grouped in (False, True):
        seen[grouped] = []
        runs.train(tmp_path / str(grouped), train=stored(64), collate=Counting(0), group_by_length=grouped,
                   max_steps=-1, num_train_epochs=1, per_device_train_batch_size=4)  # fmt: skip
    (width, tokens), (grouped_width, grouped_tokens) = (map(sum, zip(*seen[way], strict=True)) for way in (False, True))
    assert grouped_tokens == tokens == sum(stored(64).lengths)
    assert grouped_width - tokens < (width - tokens) / 3


# --------------------------------------------------------------------------------------------------- from the command


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packing")
    tiny.checkpoint(folder / "model", tie_word_embeddings=False)
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(24))
    architectures.model("falcon", vocab_size=400, tie_word_embeddings=False).save_pretrained(folder / "falcon")
    tiny.tokenizer().save_pretrained(folder / "falcon")
    return folder


def train(place: Path, output: Path, *words: str, model: str = "model") -> Path:
    line = ["--model", str(place / model), "--dataset", str(place / "rows.jsonl"), "--output_dir", str(output),
            "--gradient_accumulation_steps", "1", "--logging_steps", "1",
            "--dataloader_num_workers", "0", "--report_to", "none", "--tuner_type", "full", *words]  # fmt: skip
    last = sft.run(parse("sft", line))
    assert last is not None
    return last


@pytest.mark.parameter("packing")
@pytest.mark.parameter("packing_length")
def test_a_command_packs_rows_into_sequences_as_long_as_a_row_may_be(place, tmp_path, told):
    once = ("--packing", "true", "--num_train_epochs", "1")
    last = train(place, tmp_path, *once, "--split_dataset_ratio", "0.1")
    options = json.loads((last / "args.json").read_text())
    assert (options["packing_length"], options["max_length"]) == (512, 512)  # the context of the model
    packing = next(line for line in told if line.startswith("packing: "))
    assert packing.startswith("packing: 22 rows in ")
    assert last.name == f"checkpoint-{packing.split(' rows in ')[1].split()[0]}"
    assert "--packing: attention is computed sequence by sequence, without a mask" in told
    assert VARLEN not in (last / "config.json").read_text()
    half = train(place, tmp_path / "half", *once, "--packing_length", "256", "--max_length", "256")
    assert int(half.name.split("-")[1]) > int(last.name.split("-")[1])


@pytest.mark.slow
@pytest.mark.parameter("packing_num_proc")
def test_a_command_packs_in_several_processes(place, tmp_path, told):
    words = ("--packing", "true", "--packing_length", "300", "--max_length", "300")
    train(place, tmp_path / "one", *words)
    train(place, tmp_path / "three", *words, "--packing_num_proc", "3")
    one, three = (line.split(" packs")[0] for line in told if line.startswith("packing: "))
    assert one != three


@pytest.mark.parameter("padding_free")
def test_a_command_lays_rows_end_to_end(place, tmp_path, told):
    words = ("--per_device_train_batch_size", "4", "--max_steps", "3")
    free = train(place, tmp_path / "free", *words, "--padding_free", "true")
    assert "--padding_free: attention is computed sequence by sequence, without a mask" in told
    padded = train(place, tmp_path / "padded", *words)
    losses = [
        [entry["loss"] for entry in map(json.loads, (last.parent / "logging.jsonl").read_text().splitlines()) if "loss" in entry]
        for last in (free, padded)
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parameter("packing")
@pytest.mark.parametrize("flag", ["packing", "padding_free"])
def test_a_model_whose_rows_would_see_each_other_is_refused_before_training(place, tmp_path, flag):
    with pytest.raises(
        ModelError, match=f"--{flag} true does not work with falcon and sdpa attention: rows .* see each"
    ):
        train(place, tmp_path, f"--{flag}", "true", model="falcon")
    assert not list(tmp_path.rglob("checkpoint-*"))


@pytest.mark.parameter("group_by_length")
def test_grouping_packs_is_refused_because_packs_are_of_one_length(place):
    with pytest.raises(UsageError, match=r"--group_by_length true has no effect here: .* --packing is not set"):
        train(place, place, "--group_by_length", "true", "--packing", "true")
