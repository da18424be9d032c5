"""Whatever bytes a request is made of, the answer is no failure of the server, and comes at once."""

from __future__ import annotations

import asyncio
import json
import random

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mutations
import serving
from swift.serve.app import REQUESTS

SECONDS = 20.0
"""No answer takes longer."""


@pytest.fixture(scope="module")
def writes(tmp_path_factory):
    model = serving.checkpoint(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=512)
    app, _, opened = serving.front("--model", str(model), "--max_new_tokens", "4")
    yield app
    opened.served.model.close()


async def answers(app, asked: list[tuple[str, bytes]]) -> list[int]:
    """The statuses of requests, of which a few are on their way at a time."""
    places = asyncio.Semaphore(8)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:

        async def one(path: str, body: bytes) -> int:
            async with places:
                sent = client.post(path, content=body, headers={"content-type": "application/json"})
                answer = await asyncio.wait_for(sent, SECONDS)
                if answer.status_code >= 500 or b'"server_error"' in answer.content:
                    raise AssertionError(f"{path} {body!r}: {answer.status_code} {answer.text}")
                return answer.status_code

        return await asyncio.gather(*(one(path, body) for path, body in asked))


def test_bytes_that_were_changed_at_random_never_make_the_server_fail(writes):
    draw = random.Random(7)
    statuses = asyncio.run(answers(writes, [mutations.mutated(draw) for _ in range(3000)]))
    assert {200, 400} <= set(statuses) <= {200, 400, 403, 404, 405, 415}
    assert statuses.count(200) > 50, "some of them are still sound"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from([*REQUESTS]), values=st.data())
def test_fields_of_any_value_never_make_the_server_fail(writes, path, values):
    fields = [*REQUESTS[path].model_fields]
    body = dict(mutations.SOUND[path])
    for name in values.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3, unique=True)):
        body["schema" if name == "schema_" else name] = values.draw(VALUES)
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    asyncio.run(answers(writes, [(path, text)]))
