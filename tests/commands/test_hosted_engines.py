"""`--infer_backend sglang` and `lmdeploy` in commands: what is missing is said before anything is read, and replies are those of
our engine."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

import hosts
import tiny
from swift.chat.render import Renderer
from swift.commands import deploy, infer
from swift.commands.backends import PROMPTS, SIZES, at_once
from swift.core.errors import EngineError, MissingPackage
from swift.engines.base import Sampling
from swift.engines.chat import Chat
from swift.engines.transformers import Transformers
from swift.options.parse import parse
from swift.options.template import TemplateOptions

BACKENDS = ("sglang", "lmdeploy")
KINDS = ["host", *(pytest.param(name, marks=getattr(pytest.mark, name)) for name in BACKENDS)]


def asking(command, backend, place):
    """A command that would fail for its model and its rows, if it came to read them."""
    (place / "model").mkdir(exist_ok=True)
    (place / "rows.jsonl").touch()
    rows = ["--val_dataset", str(place / "rows.jsonl")] if command == "infer" else ["--port", "8765"]
    return parse(command, ["--model", str(place / "model"), "--infer_backend", backend, *rows])


@pytest.mark.parameter("infer_backend")
@pytest.mark.parametrize("run", [infer.run, deploy.run], ids=["infer", "deploy"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_absent_package_is_named_before_model_and_rows_are_read(run, backend, tmp_path):
    if find_spec(backend) is not None:
        pytest.skip("it is there")
    line = rf"--infer_backend {backend} needs the package {backend}.*pip install 'swiftlet\[{backend}\]'"
    with pytest.raises(MissingPackage, match=line):
        run(asking("infer" if run is infer.run else "deploy", backend, tmp_path))


@pytest.mark.parametrize("backend", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in BACKENDS])
@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_a_machine_without_gpu_is_told_so_before_model_and_rows_are_read(backend, tmp_path):
    for command, run in (("infer", infer.run), ("deploy", deploy.run)):
        with pytest.raises(
            EngineError, match=f"--infer_backend {backend} needs a GPU.*Use --infer_backend transformers"
        ):
            run(asking(command, backend, tmp_path))


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_prompts_are_handed_over_and_options_of_size_are_those_of_the_engine(backend, tmp_path):
    command = asking("infer", backend, tmp_path)
    assert at_once(command, 32) == PROMPTS
    assert all(command.values()[name] == 1 for name in SIZES[backend])


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_answers_as_with_our_engine(kind):
    renderer = Renderer(tiny.tokenizer(), TemplateOptions())
    model = tiny.model(seed=3)
    ours = Chat(renderer, Transformers(model, tiny.tokenizer(), max_batch_size=-1))
    inner = Transformers(model, tiny.tokenizer(), max_batch_size=-1, stop_token_ids=renderer.stop_token_ids)
    theirs = Chat(renderer, hosts.hosted(kind, inner, renderer.stop_token_ids))
    prompts = [ours.prompt(infer.question_of(1, each).conversation) for each in conversations()]
    for sampling in (Sampling(8, 0), Sampling(8, 1.0, seed=3), replace(Sampling(8, 0), logprobs=True)):
        found, expected = theirs.complete(prompts, sampling), ours.complete(prompts, sampling)
        assert [[(each.token_ids, each.text) for each in several] for several in found] == [
            [(each.token_ids, each.text) for each in several] for several in expected
        ]
        assert all((each.logprobs is None) != sampling.logprobs for (each,) in found)
    whole = ours.complete(prompts[:1], Sampling(8, 0))[0][0]
    assert "".join(delta.text for delta in theirs.stream(prompts[0], Sampling(8, 0))) == whole.text
    ours.engine.close()
    theirs.engine.close()


def conversations():
    from swift.data.formats import ConversationReader
    from swift.data.rows import Row

    reader = ConversationReader({}, keep_others=True)
    return [reader.read(Row(row, "rows", number)) for number, row in enumerate(tiny.conversations(4), 1)]
