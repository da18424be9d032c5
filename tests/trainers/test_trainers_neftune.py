"""Noise on embeddings: how strong it is, and when there is none."""

from __future__ import annotations

import pytest
import runs
import torch

import tiny
from swift.data.collate import Flattened, Padded
from swift.trainers.neftune import lengths_of, noise_on_embeddings


@pytest.mark.parameter("neftune_noise_alpha")
@pytest.mark.parametrize("collate", [Padded(0), Padded(0, "left"), Flattened()], ids=["padded", "left", "flat"])
def test_the_noise_is_as_strong_as_the_length_of_the_sequence_says(collate):
    model, samples, alpha = tiny.model(), runs.samples(5), 7.0
    batch = collate(samples)
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        plain = embedding(batch["input_ids"])
        with noise_on_embeddings(model, batch, alpha):
            noise = embedding(batch["input_ids"]) - plain
        assert torch.equal(embedding(batch["input_ids"]), plain)
    if "attention_mask" in batch:
        apart = [row[mask.bool()] for row, mask in zip(noise, batch["attention_mask"], strict=True)]
    else:
        apart = list(noise[0].split([len(sample) for sample in samples]))
    for sample, own in zip(samples, apart, strict=True):
        limit = alpha / (len(sample) * 64) ** 0.5
        assert float(own.abs().max()) <= limit * 1.00001
        assert float(own.std()) == pytest.approx(limit / 3**0.5, rel=0.15)  # of a uniform distribution
    assert lengths_of(batch).shape[0] == batch["input_ids"].shape[0]


@pytest.mark.parameter("neftune_noise_alpha")
def test_a_row_alone_is_disturbed_as_transformers_does_it(tmp_path):
    from transformers.integrations.neftune import activate_neftune

    model, batch = tiny.model().train(), Padded(0)(runs.samples(1))
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        plain = embedding(batch["input_ids"])
        torch.manual_seed(0)
        with noise_on_embeddings(model, batch, 5.0):
            ours = embedding(batch["input_ids"]) - plain
        handle = activate_neftune(model, 5.0)
        torch.manual_seed(0)
        theirs = embedding(batch["input_ids"]) - plain
        handle.remove()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
