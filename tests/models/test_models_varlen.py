"""Attention sequence by sequence: the numbers of the model's own attention, without a mask."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from torch.overrides import TorchFunctionMode

import architectures
import tiny
from swift.chat.render import Sample
from swift.data.collate import Flattened, Padded
from swift.models.varlen import VARLEN, can_attend_by_sequence, watch_windows

LENGTHS = (5, 17, 1, 9, 30)
NOT_CUT = ("phimoe", "qwen2_moe", "llama4_text", "falcon", "bamba", "mamba", "qwen3_next")
CUT = [name for name in architectures.FAMILIES if name not in NOT_CUT]
"""The architectures in which attention can be cut."""
KEEPS_APART = [name for name in CUT if name != "gpt_oss"]
"""Those whose own masks keep sequences apart, so that there is something to compare with."""


def row(changed: int | None = None, lengths: tuple[int, ...] = LENGTHS) -> dict:
    """Sequences end to end; `changed` is one of them, which gets other tokens."""
    draw = torch.Generator().manual_seed(1)
    samples = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, 90, (length,), generator=draw).tolist()
        samples.append(Sample([(token + 5) if number == changed else token for token in ids], [-100, *ids[1:]]))
    return Flattened()(samples)


def learn(model, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits of a batch, and the gradient of the sum of their log-probabilities."""
    fed = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**fed, use_cache=False).logits
    scores = logits.log_softmax(-1).gather(-1, batch["input_ids"][..., None])
    model.zero_grad()
    (-scores.mean()).backward()
    return logits.detach(), {
        name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
    }


def cut(model):
    assert can_attend_by_sequence(model)
    model.set_attn_implementation(VARLEN)
    return model


@pytest.mark.parameter("padding_free")
@pytest.mark.parametrize("family", KEEPS_APART)
def test_logits_and_gradients_are_those_of_the_models_own_attention(family):
    model = architectures.model(family)
    logits, gradients = learn(model, row())
    cut_logits, cut_gradients = learn(cut(model), row())
    torch.testing.assert_close(cut_logits, logits, atol=1e-5 * float(logits.abs().max()), rtol=0)
    assert cut_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            cut_gradients[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max())), rtol=0
        )


@pytest.mark.parameter("packing")
@pytest.mark.parametrize("family", CUT)
def test_a_changed_sequence_leaves_its_neighbours_untouched_to_the_bit(family):
    model = cut(architectures.model(family))
    with torch.no_grad():
        before, after = (model(**{**batch, "labels": None}, use_cache=False).logits[0] for batch in (row(), row(1)))
    same = torch.ones(sum(LENGTHS), dtype=torch.bool)
    same[5:22] = False
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[~same], after[~same])


@pytest.mark.parametrize("family", CUT)
def test_a_sequence_in_a_row_has_the_logits_it_has_alone_under_the_models_own_attention(family):
    model = architectures.model(family)
    batch, borders = row(), torch.tensor((0, *LENGTHS)).cumsum(0).tolist()
    with torch.no_grad():
        alone = [model(batch["input_ids"][:, start:end], use_cache=False).logits[0] for start, end in pairwise(borders)]
        together = cut(model)(**{**batch, "labels": None}, use_cache=False).logits[0]
    expected = torch.cat(alone)
    torch.testing.assert_close(together, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma2", "gpt_oss"])
def test_padded_batches_and_generation_still_see_what_they_did(family):
    model = architectures.model(family)
    samples = [Sample(list(range(3, 3 + length)), [-100] * length) for length in (9, 4, 12)]
    batches = [Padded(0, side)(samples) for side in ("left", "right")]
    real = [batch["attention_mask"].bool() for batch in batches]
    prompt = torch.tensor([[0, 0, 5, 6, 7, 8], list(range(20, 26))])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])

    def results() -> tuple[list[torch.Tensor], torch.Tensor]:
        with torch.no_grad():
            logits = [model(**{**batch, "labels": None}).logits for batch in batches]
        return logits, model.generate(prompt, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=99)

    logits, generated = results()
    cut(model)
    cut_logits, cut_generated = results()
    assert generated.tolist() == cut_generated.tolist()
    for one, other, places in zip(logits, cut_logits, real, strict=True):
        torch.testing.assert_close(one[places], other[places], atol=1e-4, rtol=1e-4)


class Largest(TorchFunctionMode):
    """Remembers how many elements the largest tensor has that any function of torch gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return result


@pytest.mark.parameter("padding_free")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_no_tensor_grows_with_the_square_of_the_row(family):
    def largest(model, count: int) -> int:
        batch = row(lengths=(8,) * count)
        with Largest() as seen, torch.no_grad():
            model.model(**{**batch, "labels": None}, use_cache=False)
        return seen.elements

    model = architectures.model(family, max_position_embeddings=4096)
    assert largest(model, 200) > 10 * largest(model, 50)  # the mask
    cut(model)
    assert largest(model, 200) <= 4 * largest(model, 50)


@pytest.mark.parametrize(("family", "agree"), [
    ("qwen3", True), ("gemma3_text", True), ("gpt_oss", True), ("phimoe", False), ("qwen2_moe", False),
])  # fmt: skip
def test_it_shows_when_attention_is_not_told_of_a_window(family, agree):
    model = cut(architectures.model(family))
    with watch_windows() as windows, torch.no_grad():
        model(torch.tensor([[5, 6, 7]]), use_cache=False)
    assert windows.agree is agree
    assert windows.of_masks == ({6} if family != "qwen3" else set())


def test_a_saved_model_does_not_know_of_it(tmp_path):
    cut(tiny.model()).save_pretrained(tmp_path)
    assert VARLEN not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen3"


def test_gradients_do_not_change_when_activations_are_recomputed():
    model = cut(architectures.model("mistral")).train()
    _, kept = learn(model, row())
    model.activation_checkpointing_enable({"use_reentrant": False})
    _, recomputed = learn(model, row())
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
