"""Models that classify, embed and rank, asked by the official client and by plain requests: as `swift infer` says it."""

from __future__ import annotations

import base64
import json

import httpx
import numpy
import openai
import pytest
import torch

import serving
import tiny
from swift.commands import infer
from swift.options.parse import parse

TEXTS = ["The quick brown fox", "lazy dog", "What is two and two?"]


@pytest.fixture(scope="module", autouse=True)
def judges():
    """The tiny tokenizer has no token for yes, nor for no."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENERATIVE_RERANKER_POSITIVE_TOKEN", "a")
        patch.setenv("GENERATIVE_RERANKER_NEGATIVE_TOKEN", "b")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A plain model, and classifiers of three classes, of several at once, and of one value."""
    from transformers import Qwen3ForSequenceClassification

    folder = tmp_path_factory.mktemp("tasks")
    tiny.checkpoint(folder / "plain")
    problems = {"single": (3, "single_label_classification"), "multi": (3, "multi_label_classification"),
                "value": (1, "regression")}  # fmt: skip
    for name, (labels, problem) in problems.items():
        config = tiny.model().config
        config.num_labels, config.problem_type = labels, problem
        if name == "single":
            config.id2label = {0: "bad", 1: "fair", 2: "good"}
        torch.manual_seed(5)
        Qwen3ForSequenceClassification(config).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    return folder


def ask(server, path: str, body: dict, status: int = 200) -> dict:
    answer = httpx.post(f"{server.url}{path}", json={"model": server.name, **body}, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def inferred(place, words: list[str], rows: list[dict]) -> list:
    """What `swift infer` says of rows."""
    file = tiny.jsonl(place / "rows.jsonl", rows)
    path = place / "infer.jsonl"
    path.unlink(missing_ok=True)
    infer.run(parse("infer", [*words, "--val_dataset", str(file), "--result_path", str(path)]))
    return [json.loads(line)["response"] for line in path.read_text(encoding="utf-8").splitlines()]


def said(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.mark.parameter("task_type")
def test_embeddings_are_those_of_infer_in_every_form(place):
    words = ["--model", str(place / "plain"), "--task_type", "embedding"]
    expected = numpy.array(inferred(place, words, [{"messages": said(text)} for text in TEXTS]))
    with serving.running(*words) as server, server.client() as client:
        given = client.embeddings.create(model=server.name, input=TEXTS)  # this client asks for base64
        assert [each.index for each in given.data] == [0, 1, 2]
        numpy.testing.assert_allclose([each.embedding for each in given.data], expected, atol=1e-5)
        assert given.usage.prompt_tokens == given.usage.total_tokens > 0
        plain = ask(server, "/v1/embeddings", {"input": TEXTS[0], "encoding_format": "float"})
        numpy.testing.assert_allclose(plain["data"][0]["embedding"], expected[0], atol=1e-5)
        packed = ask(server, "/v1/embeddings", {"input": TEXTS[0], "encoding_format": "base64"})
        raw = numpy.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), dtype="<f4")
        numpy.testing.assert_allclose(raw, expected[0], atol=1e-5)
        short = client.embeddings.create(model=server.name, input=TEXTS[0], dimensions=8).data[0].embedding
        numpy.testing.assert_allclose(short, expected[0][:8] / numpy.linalg.norm(expected[0][:8]), atol=1e-5)
        ids = client.embeddings.create(model=server.name, input=[[5, 6, 7], [8]])
        assert ids.usage.prompt_tokens == 4
        scores = ask(server, "/v1/score", {"text_1": TEXTS[0], "text_2": TEXTS[1:]})
        numpy.testing.assert_allclose([each["score"] for each in scores["data"]], expected[1:] @ expected[0], atol=1e-5)
        for body in ({"input": []}, {"input": [[999_999]]}, {"input": TEXTS[0], "dimensions": 65}):
            ask(server, "/v1/embeddings", body, 400)
        assert "embeddings" in ask(server, "/v1/chat/completions", {"messages": said("x")}, 400)["error"]["message"]
        assert "embedding" in ask(server, "/classify", {"input": "x"}, 400)["error"]["message"]
        with pytest.raises(openai.BadRequestError, match="task is embedding"):
            client.completions.create(model=server.name, prompt="x")


@pytest.mark.parameter("reranker_use_activation")
@pytest.mark.parametrize(
    "words",
    [
        ("value", "reranker"),
        ("plain", "generative_reranker"),
        ("value", "reranker", "--reranker_use_activation", "false"),
    ],
)
def test_documents_are_ranked_as_infer_scores_them(place, words):
    argv = ["--model", str(place / words[0]), "--task_type", words[1], *words[2:]]
    query, documents = "two and two", ["Four.", "A fox.", "Good-bye, and thank you."]
    pair = [{"messages": [*said(query), {"role": "assistant", "content": text}]} for text in documents]
    expected = inferred(place, argv, pair)
    with serving.running(*argv) as server, server.client() as client:
        ranked = ask(server, "/v1/rerank", {"query": query, "documents": documents, "return_documents": True})
        scores = {each["index"]: each["relevance_score"] for each in ranked["results"]}
        assert [scores[index] for index in range(3)] == pytest.approx(expected, abs=1e-5)
        order = [each["relevance_score"] for each in ranked["results"]]
        assert order == sorted(order, reverse=True)
        assert all(each["document"]["text"] == documents[each["index"]] for each in ranked["results"])
        top = ask(server, "/rerank", {"query": query, "documents": [{"text": text} for text in documents], "top_n": 1})
        assert [each["index"] for each in top["results"]] == [ranked["results"][0]["index"]]
        scored = ask(server, "/v1/score", {"text_1": query, "text_2": documents})
        assert [each["score"] for each in scored["data"]] == pytest.approx(expected, abs=1e-5)
        paired = ask(server, "/score", {"text_1": [query] * 3, "text_2": documents})
        assert paired["data"] == scored["data"]
        reply = client.chat.completions.create(model=server.name, messages=pair[0]["messages"])
        assert reply.choices[0].message.content == pytest.approx(expected[0], abs=1e-5)
        ask(server, "/v1/score", {"text_1": [query] * 2, "text_2": documents}, 400)
        ask(server, "/v1/rerank", {"query": query, "documents": []}, 400)


@pytest.mark.parameter("num_labels", "problem_type")
@pytest.mark.parametrize("name", ["single", "multi", "value"])
def test_classes_and_rewards_are_those_of_infer(place, name):
    argv = ["--model", str(place / name), "--task_type", "seq_cls"]
    expected = inferred(place, argv, [{"messages": said(text)} for text in TEXTS])
    with serving.running(*argv) as server, server.client() as client:
        replies = [
            client.chat.completions.create(model=server.name, messages=said(text)).choices[0].message.content
            for text in TEXTS
        ]
        assert replies == (pytest.approx(expected, abs=1e-5) if name == "value" else expected)
        found = ask(server, "/classify", {"input": TEXTS})["data"]
        assert found == ask(server, "/v1/classify", {"input": TEXTS})["data"]
        if name == "single":
            assert [each["label"] for each in found] == [["bad", "fair", "good"][number] for number in expected]
            assert all(sum(each["probs"]) == pytest.approx(1) for each in found)
            told = client.chat.completions.create(model=server.name, messages=said("x"), logprobs=True)
            assert len(told.choices[0].logprobs.content[0].top_logprobs) == 3
        elif name == "multi":
            assert [each["label"] for each in found] == [[f"LABEL_{number}" for number in each] for each in expected]
        else:
            assert [each["values"] for each in found] == [[pytest.approx(value, abs=1e-5)] for value in expected]
        talk = [*said(TEXTS[0]), {"role": "assistant", "content": "Four."}]
        assert len(ask(server, "/classify", {"messages": talk})["data"]) == 1
        for body in ({}, {"input": "x", "messages": talk}):
            ask(server, "/classify", body, 400)
        for more in ({"stream": True}, {"n": 2}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model=server.name, messages=said("x"), **more)


def test_a_model_that_writes_does_not_read_for_others(tmp_path):
    model = serving.checkpoint(tmp_path / "tiny")
    with serving.running("--model", str(model)) as server:
        for path, body in (
            ("/v1/embeddings", {"input": "x"}), ("/v1/rerank", {"query": "x", "documents": ["y"]}),
            ("/v1/score", {"text_1": "x", "text_2": "y"}), ("/classify", {"input": "x"}),
        ):  # fmt: skip
            assert ask(server, path, body, 400)["error"]["code"] == "wrong_task"


def test_many_requests_are_read_together_and_each_gets_its_own(place):
    import asyncio

    async def all_of(server):
        async with httpx.AsyncClient(timeout=60) as client:
            texts = [f"What is {i} and {i}?" for i in range(40)]
            bodies = [{"model": server.name, "input": text, "encoding_format": "float"} for text in texts]
            answers = await asyncio.gather(*(client.post(f"{server.url}/v1/embeddings", json=body) for body in bodies))
            return texts, [answer.json()["data"][0]["embedding"] for answer in answers]

    with serving.running("--model", str(place / "plain"), "--task_type", "embedding") as server:
        texts, vectors = asyncio.run(all_of(server))
        for text, vector in list(zip(texts, vectors, strict=True))[::7]:
            alone = ask(server, "/v1/embeddings", {"input": text, "encoding_format": "float"})
            numpy.testing.assert_allclose(vector, alone["data"][0]["embedding"], atol=1e-5)
