"""What is served is what was trained, or the first difference is shown and the exit code says so."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest

import tiny
from made_adapters import trained
from openai_server import serving
from swift.chat.render import Renderer
from swift.commands import parity
from swift.core.errors import EngineError, UsageError
from swift.engines.transformers import Transformers
from swift.models.info import model_info
from swift.models.load import load_model
from swift.options.model import ModelOptions
from swift.options.parse import parse
from swift.options.template import TemplateOptions
from swift.proofs.parity import Said, first_difference, same_ids, same_logprobs
from swift.tuners.attach import load_adapters

SPACED = tiny.CHATML.replace("'assistant\n'", "'assistant\n '").replace(
    "<|im_start|>assistant\n'", "<|im_start|>assistant\n\n'"
)


@pytest.fixture
def base(tmp_path):
    return tiny.checkpoint(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path, base):
    return trained(base, tmp_path / "run" / "last")


def run(tmp_path, *words):
    code = parity.run(parse("parity", [*map(str, words), "--report", str(tmp_path / "found.json")]))
    found = json.loads((tmp_path / "found.json").read_text())
    return code, {each["what"].partition(":")[2].strip() or each["what"]: each for each in found["comparisons"]}


@contextmanager
def served(base, adapters=(), chat_template=tiny.CHATML, template=None, **how):
    options = ModelOptions(model=str(base))
    model = load_adapters(load_model(model_info(options), options, training=False), adapters)
    tokenizer = tiny.tokenizer(chat_template)
    renderer = Renderer(tokenizer, template or TemplateOptions())
    with serving(Transformers(model, tokenizer), renderer, **how) as (url, asked):
        yield url, asked


CHATS, IDS = "chats on the server", "our token ids on the server"


@pytest.mark.parameter("url", "report")
def test_a_server_of_the_same_model_holds(tmp_path, base, adapter, capsys):
    with served(base, [adapter]) as (url, asked):
        code, found = run(tmp_path, "--model", base, "--adapters", adapter, "--url", url)
    assert code == 0
    assert all(each["holds"] and each["found"] for each in found.values())
    assert len(found) == 6
    assert {path for path, _ in asked} == {"/tokenize", "/v1/chat/completions", "/v1/completions"}
    assert "6 comparisons: what answers is what was trained." in capsys.readouterr().out


def test_without_a_server_training_and_inference_are_compared(tmp_path, base, adapter):
    code, found = run(tmp_path, "--model", base, "--adapters", adapter)
    assert code == 0
    assert list(found) == [
        "prompts of inference begin the samples of training", "training's pass and swift infer", "the adapter has an effect",
    ]  # fmt: skip
    assert found["prompts of inference begin the samples of training"]["found"] == "5 of 5 equal"


def test_a_server_without_the_adapter_is_found_and_named(tmp_path, base, adapter, capsys):
    with served(base) as (url, _):
        code, found = run(tmp_path, "--model", base, "--adapters", adapter, "--url", url)
    assert code == 1
    assert not found[IDS]["holds"]
    assert found["token ids of prompts on the server"]["holds"], "it is the weights that differ"
    assert "The server may not have loaded the adapter" in "".join(found[IDS]["wrong"])
    assert "The server may not have loaded the adapter" in "".join(found[CHATS]["wrong"])


def test_a_server_with_another_template_is_shown_with_its_first_token(tmp_path, base, capsys):
    with served(base, chat_template=SPACED) as (url, _):
        code, found = run(tmp_path, "--model", base, "--url", url)
    assert code == 1
    [wrong] = found["token ids of prompts on the server"]["wrong"]
    assert "row 1: behind token" in wrong
    assert r"<|im_start|>assistant" in wrong
    assert not found[CHATS]["holds"]
    assert found[IDS]["holds"], "it is not the weights that differ"


def test_a_server_that_tells_no_ids_is_compared_by_counts(tmp_path, base):
    with served(base, lacks=("/tokenize", "/v1/completions")) as (url, _):
        code, found = run(tmp_path, "--model", base, "--url", url)
    assert code == 0
    assert "the server tells no ids" in found["token ids of prompts on the server"]["found"]
    assert "answers 404" in found[IDS]["left_out"]
    with served(base, chat_template=SPACED, lacks=("/tokenize",)) as (url, _):
        code, found = run(tmp_path, "--model", base, "--url", url)
    assert code == 1
    assert "row 1: ours has" in found["token ids of prompts on the server"]["wrong"][0]


@pytest.mark.parameter("served_model_name")
def test_the_model_is_asked_by_its_name(tmp_path, base, adapter):
    with served(base, [adapter], models=("base", "last")) as (url, asked):
        assert run(tmp_path, "--model", base, "--adapters", adapter, "--url", url)[0] == 0
        assert {body["model"] for _, body in asked} == {"last"}
        run(tmp_path, "--model", base, "--adapters", adapter, "--url", url, "--served_model_name", "base")
        assert asked[-1][1]["model"] == "base"
        with pytest.raises(UsageError, match="the server has base, last"):
            run(tmp_path, "--model", base, "--url", url, "--served_model_name", "other")
        with pytest.raises(UsageError, match="--served_model_name is needed: the server has base, last"):
            run(tmp_path, "--model", base, "--url", url)


@pytest.mark.parameter("api_key")
def test_the_key_is_shown_to_the_server(tmp_path, base):
    with served(base, key="secret") as (url, _):
        assert run(tmp_path, "--model", base, "--url", url, "--api_key", "secret")[0] == 0
        with pytest.raises(EngineError, match=r"answers 401.*wrong key"):
            run(tmp_path, "--model", base, "--url", url, "--api_key", "other")


def test_a_server_that_is_not_there_is_an_error(tmp_path, base):
    with pytest.raises(EngineError, match=r"--url http://127.0.0.1:9/v1: .*does not answer"):
        run(tmp_path, "--model", base, "--url", "http://127.0.0.1:9/v1")


@pytest.mark.parameter("rows", "tokens", "dataset")
def test_as_many_rows_and_tokens_are_compared_as_asked_for(tmp_path, base):
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(12))
    with served(base) as (url, asked):
        _, found = run(tmp_path, "--model", base, "--dataset", rows, "--rows", 3, "--tokens", 5, "--url", url)
    chats = [body for path, body in asked if path.endswith("chat/completions")]
    assert len(chats) == 3
    assert {body["max_tokens"] for body in chats} == {5}
    texts = {message["content"] for body in chats for message in body["messages"]}
    assert texts <= {message["content"] for row in tiny.conversations(12) for message in row["messages"]}
    assert "of 15 tokens" in found[IDS]["found"]


@pytest.mark.parameter("tolerance")
def test_a_tolerance_of_nothing_finds_the_rounding_of_another_order(tmp_path, base):
    assert run(tmp_path, "--model", base)[0] == 0
    code, found = run(tmp_path, "--model", base, "--tolerance", 0)
    assert code == 1
    assert "limits 0, 0" in found["training's pass and swift infer"]["found"]


@pytest.mark.parameter("enable_thinking")
def test_the_server_is_told_of_thinking(tmp_path, base):
    with served(base) as (url, asked):
        run(tmp_path, "--model", base, "--url", url, "--enable_thinking", "false")
    assert asked[0][1]["chat_template_kwargs"] == {"enable_thinking": False}


def test_an_adapter_without_effect_does_not_hold(tmp_path, base):
    from safetensors.torch import load_file, save_file

    adapter = trained(base, tmp_path / "last")
    weights = {name: value * 0 for name, value in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    code, found = run(tmp_path, "--model", base, "--adapters", adapter)
    assert code == 1
    assert found["the adapter has an effect"]["wrong"] == ["the model answers as it does without the adapter"]


# ------------------------------------------------------------------------------------------------------- pure functions


def test_the_first_difference_is_shown_with_its_neighbourhood():
    words = first_difference([1, 2, 3, 4], [1, 2, 9, 4], lambda ids: "".join(f"<{token}>" for token in ids))
    assert (
        words
        == "behind token 2 (… '<1><2>') ours has 3 ('<3>', going on '<3><4>') and theirs has 9 ('<9>', going on '<9><4>')"
    )
    assert "ours ends and theirs has 3" in first_difference([1, 2], [1, 2, 3], str)
    assert same_ids("x", [(1, [1], [1]), (2, [1], [2])], str).found == "1 of 2 equal"


@pytest.mark.parametrize(
    ("ours", "theirs", "holds"),
    [([-1.0, -2.0], [-1.0, -2.00001], True), ([-1.0, -2.0], [-1.0, -2.1], False), ([-1.0], [float("nan")], False)],
)
def test_log_probabilities_hold_on_average_and_one_by_one(ours, theirs, holds):
    found = same_logprobs("x", [Said(1, ["a"] * len(ours), ours, theirs)], 1e-4)
    assert found.holds is holds


def test_one_token_far_off_among_many_is_found():
    ours, theirs = [-1.0] * 1000, [-1.0] * 999 + [-1.05]
    assert not same_logprobs("x", [Said(1, ["a"] * 1000, ours, theirs)], 1e-4).holds
