"""A served model asked as an engine gives what the engine itself gives."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest

import serving
import tiny
from swift.chat.render import Prompt
from swift.core.errors import EngineError
from swift.engines.base import Sampling, Structure
from swift.engines.client import InferClient
from swift.engines.requests import AdapterRequest, InferRequest, RequestConfig
from swift.engines.responses import InferStats

GREEDY = Sampling(max_new_tokens=10, temperature=0)
HELLO = [{"role": "user", "content": "What is two and two?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = serving.checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    with serving.running("--model", str(model), "--max_batch_size", "8", "--max_requests", "4") as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    made = InferClient(port=server.port)
    yield made
    made.close()


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text, tiny.tokenizer()(text)["input_ids"]) for text in texts]


def test_it_completes_as_the_engine_does(server, client):
    asked = prompts("The quick", "A model learns", "def add(a", "你好", "What", "is")  # more than are let in at a time
    found = client.generate(asked, GREEDY)
    expected = server.opened.served.model.engine.generate(asked, GREEDY)
    assert [[each.text for each in one] for one in found] == [[each.text for each in one] for one in expected]
    assert [one[0].finish_reason for one in found] == [one[0].finish_reason for one in expected]


def test_pieces_joined_are_the_whole(client):
    (prompt,) = prompts("The quick")
    deltas = list(client.stream(prompt, GREEDY))
    assert "".join(delta.text for delta in deltas) == deltas[-1].completion.text
    assert deltas[-1].completion == client.generate([prompt], GREEDY)[0][0]
    assert len(deltas) > 3


def test_wishes_reach_the_server(client):
    (prompt,) = prompts("The quick")
    free = client.generate([prompt], GREEDY)[0][0].text
    several = client.generate([prompt], Sampling(max_new_tokens=8, temperature=1.0, n=3, seed=4))
    assert several == client.generate([prompt], Sampling(max_new_tokens=8, temperature=1.0, n=3, seed=4))
    assert len({each.text for each in several[0]}) > 1
    word = free[3:5]
    stopped = client.generate([prompt], Sampling(max_new_tokens=10, temperature=0, stop=(word,)))[0][0]
    assert stopped.text.endswith(word) or word in stopped.text, "a stop word stays, as with every engine"
    told = client.generate([prompt], Sampling(max_new_tokens=4, temperature=0, logprobs=True, top_logprobs=2))[0][0]
    assert [len(each.top) for each in told.logprobs] == [2] * 4
    regex = Sampling(max_new_tokens=9, temperature=0, structure=Structure(regex="(yes|no)"))
    assert client.generate([prompt], regex)[0][0].text in ("yes", "no")


def test_a_chat_is_answered_whole_and_in_pieces(client):
    asked = {"temperature": 0, "max_tokens": 8}
    whole = client.chat(HELLO, **asked, return_details=True)
    said = whole["choices"][0]["message"]["content"]
    assert len(whole["choices"][0]["token_ids"]) == 8
    assert len(whole["prompt_token_ids"]) == whole["usage"]["prompt_tokens"]
    chunks = list(client.stream_chat(HELLO, **asked))
    assert "".join(each["delta"].get("content", "") for chunk in chunks for each in chunk["choices"]) == said
    assert client.models == [client.model] == ["tiny"]


def test_requests_from_python_are_answered_like_those_of_an_engine_in_this_process(server, client):
    requests = [{"messages": HELLO}, InferRequest(messages=[{"role": "user", "content": "Good-bye."}])]
    config = RequestConfig(max_tokens=8, temperature=0, return_details=True, logprobs=True)
    stats = InferStats()
    responses = client.infer(requests, config, [stats])
    assert [len(each.choices[0].token_ids) for each in responses] == [8, 8]
    assert [len(each.choices[0].logprobs["content"]) for each in responses] == [8, 8]
    assert stats.compute()["num_samples"] == 2
    assert stats.compute()["num_generated_tokens"] == 16
    said = [each.choices[0].message.content for each in responses]
    streams = client.infer(requests, RequestConfig(max_tokens=8, temperature=0, stream=True), [stats])
    assert ["".join(c.delta.content or "" for piece in pieces for c in piece.choices) for pieces in streams] == said
    assert stats.compute()["num_generated_tokens"] == 32

    async def both():
        whole = await client.infer_async(requests[0], RequestConfig(max_tokens=8, temperature=0))
        pieces = await client.infer_async(requests[0], RequestConfig(max_tokens=8, temperature=0, stream=True))
        return whole.choices[0].message.content, [piece async for piece in pieces]

    text, pieces = asyncio.run(both())
    assert text == said[0] == "".join(c.delta.content or "" for piece in pieces for c in piece.choices)
    with pytest.raises(EngineError, match="does not exist"):
        client.infer(requests, config, adapter_request=AdapterRequest("other", "nowhere"))


def test_what_goes_wrong_is_said(server, client):
    with pytest.raises(EngineError, match=r"refuses \(400\): .*nothing to reply to"):
        client.chat([*HELLO, {"role": "assistant", "content": "x"}])
    refused = pytest.raises(EngineError, match=r"refuses \(404\).*no_such")
    with closing(InferClient(port=server.port, model="no_such")) as lost, refused:
        lost.chat(HELLO)
    with closing(InferClient(port=1)) as lost, pytest.raises(EngineError, match="cannot be asked"):
        lost.chat(HELLO)
    with pytest.raises(EngineError, match="one completion"):
        next(client.stream(prompts("x")[0], Sampling(n=2)))
