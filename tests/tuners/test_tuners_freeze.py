"""Which parameters are trained without an adapter."""

from __future__ import annotations

import pytest

import tiny
from swift.core.errors import ModelError, UsageError
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuners.attach import attach

FULL = TunerChoice(tuner_type="full")


def trained(model=None, **options):
    """The names of the parameters that are trained."""
    model = attach(model or tiny.model(), FULL, TunerOptions(**options))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def names():
    return [name for name, _ in tiny.model().named_parameters()]


@pytest.mark.parameter("tuner_type")
def test_full_trains_everything():
    assert trained() == names()


@pytest.mark.parameter("freeze_parameters")
def test_prefixes_freeze():
    chosen = trained(freeze_parameters=["model.embed_tokens", "model.layers.0."])
    assert chosen == [n for n in names() if not n.startswith(("model.embed_tokens", "model.layers.0."))]


@pytest.mark.parameter("freeze_parameters_regex")
def test_a_regular_expression_freezes_what_it_is_found_in():
    assert trained(freeze_parameters_regex=r"layers\.\d+\.mlp") == [n for n in names() if ".mlp." not in n]


@pytest.mark.parameter("freeze_parameters_ratio")
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.4, 0.75, 0.999])
def test_a_share_is_frozen_from_the_bottom_in_whole_parameters(ratio):
    sizes = [parameter.numel() for parameter in tiny.model().parameters()]
    count = len(names()) - len(trained(freeze_parameters_ratio=ratio))
    assert trained(freeze_parameters_ratio=ratio) == names()[count:]
    assert sum(sizes[:count]) <= ratio * sum(sizes) < sum(sizes[: count + 1])


@pytest.mark.parameter("trainable_parameters")
def test_prefixes_that_are_trained_stand_above_all_freezing():
    norms = ["model.norm", "model.layers.1.input_layernorm"]
    chosen = trained(
        freeze_parameters_ratio=1.0, freeze_parameters=["model.norm"], freeze_parameters_regex="norm",
        trainable_parameters=norms,
    )  # fmt: skip
    assert chosen == ["model.layers.1.input_layernorm.weight", "model.norm.weight"]


@pytest.mark.parameter("trainable_parameters_regex")
def test_a_regular_expression_trains_again_what_was_frozen():
    chosen = trained(freeze_parameters_ratio=1.0, trainable_parameters_regex=r"\.1\..*q_proj")
    assert chosen == ["model.layers.1.self_attn.q_proj.weight"]


def test_a_tied_parameter_answers_to_all_of_its_names():
    assert "model.embed_tokens.weight" not in trained(freeze_parameters=["lm_head"])


@pytest.mark.parametrize("option", ["freeze_parameters", "trainable_parameters"])
def test_a_prefix_that_names_nothing_is_refused(option):
    with pytest.raises(
        ModelError, match=rf"--{option} model.embed_token. names no parameter .*model.embed_tokens.weight"
    ):
        trained(**{option: ["model.embed_token."]})


@pytest.mark.parametrize("option", ["freeze_parameters_regex", "trainable_parameters_regex"])
def test_a_regular_expression_that_names_nothing_or_is_none_is_refused(option):
    with pytest.raises(ModelError, match=rf"--{option} 'vision' names no parameter"):
        trained(**{option: "vision"})
    with pytest.raises(UsageError, match=rf"--{option} is no regular expression"):
        trained(**{option: "("})


def test_nothing_left_to_train_is_refused():
    with pytest.raises(ModelError, match="Nothing is left to train"):
        trained(freeze_parameters_ratio=1.0)
