"""The losses of supervised training as a run computes and logs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import runs
import torch

import architectures
import tiny
from swift.catalog.components import LOSSES
from swift.chat.render import Sample
from swift.commands.begin import load_plugin
from swift.core.errors import ModelError, UsageError
from swift.data.collate import Flattened, Padded
from swift.losses import chunked

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
EVAL = {"eval_strategy": "steps", "eval_steps": 1}


# ------------------------------------------------------------------------------------------------- chunks of the logits


def adapted(**settings: Any) -> Any:
    """The tiny model with an adapter that touches its output layer."""
    from peft import LoraConfig, get_peft_model

    base = tiny.model(tie_word_embeddings=settings.pop("tied", False))
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    return get_peft_model(base, config)


MODELS = {
    "tied": tiny.model,
    "untied": lambda: tiny.model(tie_word_embeddings=False),
    "lora": runs.lora,
    "lora on the output layer": lambda: adapted(target_modules=["q_proj", "lm_head"]),
    "a trained copy of the output layer": lambda: adapted(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "rows of tied embeddings": lambda: adapted(
        target_modules=["q_proj"], trainable_token_indices=[5, 6, 7], tied=True
    ),
    "bfloat16": lambda: tiny.model().bfloat16(),
    "capped": lambda: architectures.model("gemma2", final_logit_softcapping=3.0, vocab_size=400),
    "scaled": lambda: architectures.model("cohere2", logit_scale=0.3, vocab_size=400),
}  # fmt: skip


@pytest.mark.parameter("use_logits_to_keep")
@pytest.mark.parametrize("collate", [Padded(0), Padded(0, "left"), Flattened()], ids=["padded", "left", "flattened"])
@pytest.mark.parametrize("name", MODELS)
def test_a_few_logits_at_a_time_give_the_loss_and_the_gradient_of_all_of_them(tmp_path, name, collate, monkeypatch):
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", 4 * 400 * 5)
    samples = runs.samples(6, weighted=True)
    results = {}
    for few in (None, False):
        run = runs.prepare(tmp_path / str(few), model=MODELS[name](), use_logits_to_keep=few)
        assert (run.trainer.way.projection is not None) == (few is None)
        loss = run.trainer.compute_loss(run.trainer.model.eval(), collate(samples))
        loss.backward()
        gradients = {key: value.grad for key, value in run.trainer.model.named_parameters() if value.grad is not None}
        results[few] = (loss.detach(), gradients)
    (loss, ours), (expected, theirs) = results[None], results[False]
    half = name == "bfloat16"
    torch.testing.assert_close(loss, expected, rtol=1e-3 if half else 1e-6, atol=1e-6)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 1
    for key, gradient in theirs.items():
        scale = float(gradient.abs().max())
        assert float((ours[key] - gradient).abs().max()) <= (0.05 if half else 2e-5) * scale + 1e-8, key


class Counting(torch.nn.Linear):
    """A linear layer that notes how many positions it is given."""

    seen: list[int]

    def forward(self, hidden):
        self.seen.append(hidden.shape[:-1].numel())
        return super().forward(hidden)


@pytest.mark.parameter("use_logits_to_keep")
def test_leaving_out_logits_changes_what_is_computed_and_not_what_is_learnt(tmp_path):
    samples, results = runs.samples(6), {}
    for few in (None, True, False):
        model = tiny.model()
        model.lm_head.__class__, model.lm_head.seen = Counting, []
        run = runs.prepare(tmp_path / str(few), model=model, use_logits_to_keep=few)
        model.lm_head.seen.clear()
        loss = run.trainer.compute_loss(model, Padded(0)(samples))
        results[few] = (float(loss.detach()), model.lm_head.seen)
    learnt = sum(sample.learnt for sample in samples)
    assert sorted(results[None][1]) == sorted([learnt, 6])  # and one position of each row for the model itself
    assert results[True] == results[None]
    assert results[False][1] == [6 * max(len(sample) for sample in samples)]
    assert results[False][0] == pytest.approx(results[None][0], rel=1e-6)


def test_a_model_whose_head_cannot_be_followed_is_told_which_logits_to_keep(tmp_path):
    model = tiny.model()
    model.lm_head.register_forward_hook(lambda *call: 2 * call[2])
    odd = runs.prepare(tmp_path / "a", model=model)
    assert odd.trainer.way.projection is None
    assert odd.trainer.way.keeps_few
    batch = Padded(0)(runs.samples(6))
    loss = odd.trainer.compute_loss(model, batch)
    every = runs.prepare(tmp_path / "b", model=model, use_logits_to_keep=False)
    torch.testing.assert_close(loss, every.trainer.compute_loss(model, batch))


# --------------------------------------------------------------------------------------------------------------- DFT


@pytest.mark.parameter("enable_dft_loss")
def test_dft_weighs_each_token_by_its_probability_and_lets_no_gradient_through_it(tmp_path):
    run = runs.prepare(tmp_path, enable_dft_loss=True)
    model, samples = run.trainer.model, runs.samples(6, weighted=True)
    batch = Padded(0)(samples)
    loss = run.trainer.compute_loss(model, batch)
    logps = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
    targets = batch["labels"][:, 1:]
    logps = logps.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    learns, weights = targets != -100, batch["loss_weights"][:, 1:]
    expected = -(logps.exp().detach() * logps * weights)[learns].sum() / learns.sum()
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(each, list(model.parameters())) for each in (loss, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parameter("enable_dft_loss")
def test_dft_does_not_depend_on_how_a_step_is_cut_into_batches(tmp_path):
    cut = {"enable_dft_loss": True, "max_steps": 2, "train_dataloader_shuffle": False}
    one = runs.train(tmp_path / "a", per_device_train_batch_size=8, gradient_accumulation_steps=1, **cut)
    eight = runs.train(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8, **cut)
    assert one.logged("loss") == pytest.approx(eight.logged("loss"), rel=1e-5)
    assert one.logged("grad_norm") == pytest.approx(eight.logged("grad_norm"), rel=1e-5)
    plain = runs.train(tmp_path / "c", per_device_train_batch_size=8, gradient_accumulation_steps=1,
                       **{**cut, "enable_dft_loss": False})  # fmt: skip
    assert one.logged("loss") != pytest.approx(plain.logged("loss"), rel=1e-2)


# ---------------------------------------------------------------------------------------------------------- channels


def channelled(count: int = 8, names: tuple[str | None, ...] = ("math", "chat", None)) -> list[Sample]:
    samples = runs.samples(count, weighted=True)
    for i, sample in enumerate(samples):
        name = names[i % len(names)]
        sample.extra = {} if name is None else {"channel": name}
    return samples


@pytest.mark.parameter("enable_channel_loss")
@pytest.mark.parametrize("collate", [Padded(0, columns=("channel",)), Flattened(("channel",))], ids=["padded", "flat"])
def test_each_channel_has_the_mean_loss_of_its_tokens_in_training_and_evaluation(tmp_path, collate, told):
    samples = channelled()
    run = runs.train(tmp_path, train=samples, val=samples, collate=collate, enable_channel_loss=True, max_steps=1,
                     learning_rate=1e-12, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                     per_device_eval_batch_size=3, **EVAL)  # fmt: skip
    expected = {}
    for name in ("math", "chat", None):
        own = [sample for sample in samples if sample.extra.get("channel") == name]
        expected[f"loss_{name}"] = runs.prepare(tmp_path / str(name), val=own).trainer.evaluate()["eval_loss"]
    for key, value in expected.items():
        assert run.logged(key) == [pytest.approx(value, rel=1e-5)]
        assert run.logged(f"eval_{key}") == [pytest.approx(value, rel=1e-5)]
    learnt = {name: sum(s.learnt for s in samples if s.extra.get("channel") == name) for name in ("math", "chat", None)}
    mean = sum(expected[f"loss_{name}"] * count for name, count in learnt.items()) / sum(learnt.values())
    assert run.logged("loss")[0] == pytest.approx(mean, rel=1e-5)
    assert sum("loss_None" in line for line in told) == 1


@pytest.mark.parameter("enable_channel_loss")
def test_the_loss_of_a_channel_is_over_all_tokens_since_the_last_log(tmp_path):
    samples = channelled(16, ("a", "a", "a", "b"))
    run = runs.train(tmp_path, train=samples, collate=Padded(0, columns=("channel",)), enable_channel_loss=True,
                     max_steps=4, logging_steps=4, logging_first_step=False, learning_rate=1e-12)  # fmt: skip
    own = [sample for sample in samples if sample.extra["channel"] == "b"]
    assert run.logged("loss_b") == [
        pytest.approx(runs.prepare(tmp_path / "b", val=own).trainer.evaluate()["eval_loss"], rel=1e-5)
    ]


# ------------------------------------------------------------------------------------------------------ mixtures of experts


def experts() -> Any:
    return architectures.model("qwen3_moe", vocab_size=400)


@pytest.mark.parameter("router_aux_loss_coef")
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_that_balances_experts_is_added_with_its_weight_and_logged(tmp_path, weighted):
    samples = runs.samples(4, weighted=weighted)
    one = {"train": samples, "max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    without = runs.train(tmp_path / "a", model=experts(), **one)
    with_it = runs.train(tmp_path / "b", model=experts(), router_aux_loss_coef=0.5, **one)
    batch = Padded(0)(samples)
    fed = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    aux = float(experts()(**fed, output_router_logits=True).aux_loss.detach())
    assert with_it.logged("aux_loss") == [pytest.approx(aux, rel=1e-5)]
    assert with_it.logged("loss")[0] == pytest.approx(without.logged("loss")[0] + 0.5 * aux, rel=1e-5)
    assert with_it.logged("grad_norm") != without.logged("grad_norm")
    assert not without.logged("aux_loss")
    assert with_it.trainer.model.config.output_router_logits is False  # what is saved is the model's own config


@pytest.mark.parameter("router_aux_loss_coef")
def test_padding_and_packing_balance_the_same_tokens(tmp_path):
    samples = runs.samples(4)
    settings = {"train": samples, "max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
                "router_aux_loss_coef": 0.5}  # fmt: skip
    padded, left, flat = (
        runs.train(tmp_path / str(i), model=experts(), collate=collate, **settings)
        for i, collate in enumerate((Padded(0), Padded(0, "left"), Flattened()))
    )
    for other in (left, flat):
        assert other.logged("aux_loss") == pytest.approx(padded.logged("aux_loss"), rel=1e-4)
        assert other.logged("loss") == pytest.approx(padded.logged("loss"), rel=1e-4)


@pytest.mark.parameter("router_aux_loss_coef")
def test_accumulated_batches_count_by_their_learnt_tokens(tmp_path):
    """The loss of a step is the mean over batches, by learnt tokens, of what each batch has by itself."""
    samples = runs.samples(4)
    settings = {"model": experts(), "train": samples, "max_steps": 1, "router_aux_loss_coef": 0.5,
                "train_dataloader_shuffle": False, "learning_rate": 1e-12}  # fmt: skip
    step = runs.train(tmp_path / "a", per_device_train_batch_size=2, gradient_accumulation_steps=2, **settings)
    alone = [
        runs.train(
            tmp_path / str(i),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=1,
            **{**settings, "train": samples[i : i + 2]},
        )
        for i in (0, 2)
    ]
    counts = [sum(sample.learnt for sample in samples[i : i + 2]) for i in (0, 2)]
    for name in ("loss", "aux_loss"):
        mean = sum(run.logged(name)[0] * n for run, n in zip(alone, counts, strict=True)) / sum(counts)
        assert step.logged(name) == [pytest.approx(mean, rel=1e-5)]


def test_gradients_of_the_router_pass_through_recomputed_activations(tmp_path):
    settings = {"max_steps": 2, "router_aux_loss_coef": 2.0}
    plain = runs.train(tmp_path / "a", model=experts(), **settings)
    again = runs.train(tmp_path / "b", model=experts(), gradient_checkpointing=True, **settings)
    assert again.logged("grad_norm") == pytest.approx(plain.logged("grad_norm"), rel=1e-5)
    assert again.logged("aux_loss") == pytest.approx(plain.logged("aux_loss"), rel=1e-5)


def test_a_model_without_experts_has_nothing_to_balance(tmp_path):
    with pytest.raises(ModelError, match=r"--router_aux_loss_coef has no effect on Qwen3ForCausalLM"):
        runs.prepare(tmp_path, router_aux_loss_coef=0.1)


# ---------------------------------------------------------------------------------------------------- losses of one's own


@pytest.fixture
def own_losses():
    """What a test registers is gone after it, and so are the plugins that registered it: another test loads them anew."""
    known, modules = set(LOSSES), set(sys.modules)
    yield LOSSES
    for name in set(LOSSES) - known:
        del LOSSES._entries[name]
    for name in set(sys.modules) - modules:
        if name.startswith("swift_plugin"):
            del sys.modules[name]


@pytest.mark.parameter("loss_type")
def test_the_registered_cross_entropy_trains_as_the_built_in_loss(tmp_path):
    settings = {"max_steps": 2, "val": runs.samples(5, seed=3), "per_device_eval_batch_size": 2, **EVAL}
    named = runs.train(tmp_path / "a", loss_type="cross_entropy", **settings)
    plain = runs.train(tmp_path / "b", **settings)
    for key in ("loss", "grad_norm", "token_acc", "eval_loss", "eval_token_acc"):
        assert named.logged(key) == pytest.approx(plain.logged(key), rel=1e-5), key


@pytest.mark.parameter("loss_type")
def test_a_loss_is_told_what_it_has_room_for(tmp_path, own_losses):
    from swift.loss import BaseLoss

    seen: list[Any] = []

    class Mine(BaseLoss):
        def __call__(self, outputs, labels, *, num_items_in_batch=None, loss_scale=None, **kwargs):
            seen.append((labels.shape, num_items_in_batch, loss_scale, sorted(kwargs), self.trainer, self.args))
            return outputs.loss.sum() / num_items_in_batch

    def bare(outputs, labels):
        return outputs.loss.sum() / (labels[:, 1:] != -100).sum()

    own_losses["mine"], own_losses["bare"] = Mine, bare
    settings = {"max_steps": 1, "train": runs.samples(4, weighted=True)}
    plain = runs.train(tmp_path / "a", **settings)
    mine = runs.train(tmp_path / "b", loss_type="mine", **settings)
    assert mine.logged("loss") == pytest.approx(plain.logged("loss"), rel=1e-5)
    assert mine.logged("grad_norm") == pytest.approx(plain.logged("grad_norm"), rel=1e-5)
    shape, count, scale, others, trainer, args = seen[0]
    assert (shape[0], others, trainer, args) == (2, ["trainer"], mine.trainer, mine.trainer.args)
    assert scale.shape == shape
    assert int(count) == sum(sample.learnt for sample in settings["train"])
    # what cannot know the step is averaged over its batches
    alone = runs.train(tmp_path / "c", loss_type="bare", **settings)
    assert alone.logged("loss")[0] != plain.logged("loss")[0]
    assert alone.logged("loss")[0] == pytest.approx(plain.logged("loss")[0], rel=0.2)


@pytest.mark.parameter("loss_type")
def test_a_loss_per_token_has_dft_and_weights_in_it(tmp_path, own_losses):
    own_losses["sum"] = lambda outputs, _, num_items_in_batch: outputs.loss.sum() / num_items_in_batch
    settings = {"max_steps": 1, "train": runs.samples(4, weighted=True), "enable_dft_loss": True}
    for collate in (Padded(0), Flattened()):
        mine = runs.train(tmp_path / f"a{collate}"[:20], loss_type="sum", collate=collate, **settings)
        plain = runs.train(tmp_path / f"b{collate}"[:20], collate=collate, **settings)
        assert mine.logged("loss") == pytest.approx(plain.logged("loss"), rel=1e-5)
        assert mine.logged("grad_norm") == pytest.approx(plain.logged("grad_norm"), rel=1e-5)


def test_an_unknown_loss_is_refused_with_the_names_there_are(tmp_path):
    with pytest.raises(UsageError, match=r"Unknown loss_type 'cross_entropi'.*cross_entropy"):
        runs.prepare(tmp_path, loss_type="cross_entropi")


@pytest.mark.usefixtures("own_losses")
def test_the_example_of_a_loss_trains(tmp_path):
    load_plugin(Path(__file__).parents[2] / "examples" / "plugins" / "loss.py")
    plain = runs.train(tmp_path / "a", max_steps=1)
    for name in ("focal", "confident"):
        run = runs.train(tmp_path / name, max_steps=1, loss_type=name, val=runs.samples(3), **EVAL)
        assert 0 < run.logged("loss")[0] != plain.logged("loss")[0]
        assert run.logged("eval_loss")[0] > 0
