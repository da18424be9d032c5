"""Tuners of one's own: the example of examples/plugins, from training to inference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import swift
import tiny
from swift.catalog.tuners import TUNERS
from swift.commands import sft
from swift.commands.begin import load_plugin
from swift.core.errors import ModelError, RunError, UsageError
from swift.options.parse import parse
from swift.options.tuner import TunerChoice, TunerOptions
from swift.tuner_plugin import PeftTuner, Tuner, tuners_map
from swift.tuners.attach import attach, load_adapters
from swift.tuners.merge import merge
from swift.tuners.request import Run
from trainers import runs

EXAMPLE = Path(swift.__file__).parents[2] / "examples" / "plugins" / "tuner.py"
IDS_BT = torch.arange(5, 17)[None]


@pytest.fixture(autouse=True)
def _loaded():
    load_plugin(EXAMPLE)


def tuned(name, adapters=(), **values):
    torch.manual_seed(0)
    return attach(
        tiny.model(), TunerChoice(tuner_type=name), TunerOptions(), adapters=adapters,
        run=Run(values={"modules_to_save": [], **values}),
    )  # fmt: skip


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS_BT).logits[0]


@pytest.mark.parameter("tuner_type")
@pytest.mark.parameter("external_plugins")
@pytest.mark.parametrize("name", ["ia3", "vectors"])
def test_it_learns_and_what_it_saved_resumes_and_answers(tmp_path, name):
    settings = {
        "train": runs.samples(8),
        "learning_rate": 0.1,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = runs.train(tmp_path / "whole", model=tuned(name), **settings)
    assert whole.logged("loss")[-1] < whole.logged("loss")[0]
    halfway, last = (tmp_path / "whole" / f"checkpoint-{step}" for step in (2, 6))
    assert json.loads((last / "adapter_config.json").read_text())["swift_type"] == name
    resumed = runs.train(tmp_path / "again", model=tuned(name, adapters=[str(halfway)]), resume=halfway, **settings)
    assert runs.equal(resumed.weights(), whole.weights())
    answers = logits(load_adapters(tiny.model(), [last]))
    torch.testing.assert_close(answers, logits(whole.trainer.model), rtol=0, atol=0)
    assert not torch.allclose(answers, logits(tiny.model()), atol=1e-4)
    with pytest.raises(ModelError, match="how a tuner of your own changes weights is not known"):
        merge(tiny.model(), [last])
    with pytest.raises(RunError, match="cannot be read into a model"):
        runs.train(tmp_path / "other", model=tuned(name), resume=halfway, **settings)


@pytest.mark.parameter("external_plugins")
def test_it_sees_the_options_of_the_command():
    names = {name for name, p in tuned("ia3", modules_to_save=["norm"]).named_parameters() if p.requires_grad}
    assert any("modules_to_save" in name for name in names)


@pytest.mark.slow
@pytest.mark.parameter("external_plugins")
@pytest.mark.parameter("tuner_type")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_command_line_names_it(tmp_path):
    tiny.checkpoint(tmp_path / "model")
    tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(8))
    line = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "rows.jsonl"), "--max_steps", "2",
            "--save_steps", "1", "--output_dir", str(tmp_path / "out"), "--add_version", "false", "--report_to", "none",
            "--dataloader_num_workers", "0", "--external_plugins", str(EXAMPLE), "--tuner_type", "vectors"]  # fmt: skip
    last = sft.run(parse("sft", line))
    again = sft.run(parse("sft", [*line, "--resume_from_checkpoint", str(last.with_name("checkpoint-1"))]))
    assert again == last


def test_a_name_without_its_plugin_and_classes_that_lack_something_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--tuner_type nobody is registered nowhere.*--external_plugins"):
        tuned("nobody")
    assert TUNERS is tuners_map
    if "lacking" not in tuners_map:
        tuners_map["lacking"] = type("Lacking", (), {"prepare_model": staticmethod(lambda args, model: model)})
        tuners_map["frozen"] = type(
            "Frozen", (Tuner,), {"prepare_model": staticmethod(lambda args, model: model.requires_grad_(False))}
        )
    with pytest.raises(UsageError, match="lacks save_pretrained, from_pretrained"):
        tuned("lacking")
    with pytest.raises(ModelError, match="something has requires_grad"):
        tuned("frozen")
    with pytest.raises(NotImplementedError):
        PeftTuner.prepare_model(None, tiny.model())
