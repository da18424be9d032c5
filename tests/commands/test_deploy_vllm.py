"""`swift deploy --infer_backend vllm`: clients get from vLLM what they get from our engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import serving
import tiny
from swift.commands import deploy
from swift.core.errors import UsageError
from swift.options.parse import parse

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
VLLM = ["--infer_backend", "vllm", "--vllm_enforce_eager", "true", "--vllm_max_num_seqs", "8"]
QUESTIONS = ["What is two and two?", "A", "The quick brown fox", "你好"]


def said(server, name, question):
    """The reply of a model to a question, whole and in pieces, and the log-probabilities of its tokens."""
    asked = {"model": name, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 12}
    choice = server.client().chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0]
    stream = server.client().chat.completions.create(**asked, stream=True)
    pieces = [part.choices[0].delta.content or "" for part in stream if part.choices]
    last = choice.logprobs.content[-1]
    assert "".join(pieces) == choice.message.content, [(t.token, t.logprob) for t in last.top_logprobs]
    return choice.message.content, [each.logprob for each in choice.logprobs.content]


@pytest.mark.parameter("infer_backend")
@pytest.mark.parameter("adapters")
@pytest.mark.parameter("max_logprobs")
def test_models_and_adapters_answer_many_clients_as_our_engine_does(tmp_path):
    from peft import LoraConfig, get_peft_model

    folder = serving.checkpoint(tmp_path / "tiny", head_dim=32)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    base = tiny.model(3, head_dim=32, tie_word_embeddings=False, max_position_embeddings=2048)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    words = ["--model", str(folder), "--adapters", f"other={tmp_path / 'adapter'}", "--torch_dtype", "float32"]
    found = []
    for more in (["--infer_backend", "transformers"], [*VLLM, "--max_logprobs", "3"]):
        with serving.running(*words, *more) as server, ThreadPoolExecutor(8) as pool:
            asked = [(name, question) for name in (server.name, "other") for question in QUESTIONS]
            found.append(list(pool.map(lambda each, server=server: said(server, *each), asked)))
    assert len({text for text, _ in found[0]}) == len(found[0]), "all of them differ, or nothing is shown"
    assert [text for text, _ in found[1]] == [text for text, _ in found[0]]
    for (_, ours), (_, theirs) in zip(*found, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-4)


THOUGHT, SAID = "It is two.", "Four, and good-bye"


@pytest.mark.parameter("vllm_reasoning_parser")
def test_a_parser_of_vllm_tells_thinking_from_words_whole_and_in_pieces(tmp_path):
    folder = serving.speaking(tmp_path / "tiny", f"{THOUGHT}</think>{SAID}", head_dim=32)
    words = ["--model", str(folder), "--torch_dtype", "float32", *VLLM, "--temperature", "0"]
    asked = {"messages": [{"role": "user", "content": "A"}], "max_tokens": 40, "model": "tiny"}
    with serving.running(*words, "--vllm_reasoning_parser", "deepseek_r1") as server:
        whole = server.client().chat.completions.create(**asked, n=2)
        for choice in whole.choices:
            assert (choice.message.reasoning_content, choice.message.content) == (THOUGHT, SAID)
            assert choice.finish_reason == "stop"
        chunks = list(server.client().chat.completions.create(**asked, stream=True))
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
        assert "".join(thoughts) == THOUGHT
        assert len([thought for thought in thoughts if thought]) > 1
        assert "".join(delta.content or "" for delta in deltas) == SAID
        held = server.client().chat.completions.create(
            **asked, extra_body={"structured_outputs_regex": "(yes|no)!"}, stop=["!"]
        )
        assert held.choices[0].message.content in ("yes", "no"), "what is held to a structure is not thought"
        cut = server.client().chat.completions.create(**asked, stop=[" tw"]).choices[0].message
        assert cut.reasoning_content + (cut.content or "") == THOUGHT[:5], "a word ends a reply while it is thought"
        raw = server.client().completions.create(model="tiny", prompt="A\n", max_tokens=40).choices[0].text
        assert raw.startswith(f"{THOUGHT}</think>{SAID}"), "completions are raw"
    with pytest.raises(UsageError, match=r"deepseek_r2 is unknown\. Did you mean deepseek_r1"):
        deploy.open_model(parse("deploy", [*words, "--vllm_reasoning_parser", "deepseek_r2"]))


@pytest.mark.filterwarnings("ignore:.*")
def test_embeddings_are_those_of_our_engine(tmp_path):
    folder = tiny.checkpoint(tmp_path / "tiny", seed=5, head_dim=32)
    words = ["--model", str(folder), "--task_type", "embedding", "--torch_dtype", "float32"]
    found = []
    for more in (["--infer_backend", "transformers"], VLLM):
        with serving.running(*words, *more) as server:
            made = server.client().embeddings.create(model=server.name, input=QUESTIONS)
            found.append(torch.tensor([each.embedding for each in made.data]))
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=0)
