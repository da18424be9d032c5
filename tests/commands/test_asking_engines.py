"""The engines of others, made in Python: their keywords are options, and one class asks them all."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from contextlib import aclosing
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

import hosts
import tiny
from swift import (
    AdapterRequest,
    InferRequest,
    InferStats,
    LmdeployEngine,
    RequestConfig,
    SglangEngine,
    TransformersEngine,
    VllmEngine,
)
from swift.chat.render import Prompt, Renderer
from swift.commands.asking import ModelEngine, Opened
from swift.commands.asking_engines import FURTHER, OWN, infer_command
from swift.core.errors import EngineError, MissingPackage, UsageError
from swift.engines.background import Background
from swift.engines.base import Request, Sampling
from swift.engines.chat import Chat
from swift.engines.hosted import Hosted
from swift.engines.lmdeploy import Lmdeploy
from swift.engines.others import Served
from swift.engines.settings import Settings
from swift.engines.sglang import Sglang
from swift.engines.transformers import Transformers
from swift.engines.vllm_arguments import engine_arguments
from swift.options.engines import VllmOptions
from swift.options.template import TemplateOptions

QUESTIONS = ["What is two and two?", "The quick brown fox", "你好"]
REQUESTS = [InferRequest([{"role": "user", "content": text}]) for text in QUESTIONS]
GREEDY = RequestConfig(max_tokens=8, temperature=0)
CLASSES = {"vllm": VllmEngine, "sglang": SglangEngine, "lmdeploy": LmdeployEngine}
KINDS = ["host", *(pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("sglang", "lmdeploy"))]
KNOWN = {
    "vllm": {
        "gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "max_num_seqs": 7,
        "max_model_len": 96, "enforce_eager": True, "disable_custom_all_reduce": False, "max_lora_rank": 64,
        "enable_expert_parallel": True, "enable_prefix_caching": False, "quantization": "fp8", "use_async_engine": True,
        "speculative_config": {"method": "ngram"}, "engine_kwargs": {"block_size": 32},
    },
    "sglang": {
        "tp_size": 2, "pp_size": 2, "dp_size": 2, "ep_size": 2, "mem_fraction_static": 0.5, "context_length": 96,
        "disable_cuda_graph": True, "quantization": "fp8", "kv_cache_dtype": "fp8_e4m3", "enable_dp_attention": True,
        "disable_custom_all_reduce": False, "speculative_algorithm": "EAGLE", "speculative_num_steps": 3,
        "engine_kwargs": {"stream_interval": 7},
    },
    "lmdeploy": {
        "tp": 2, "session_len": 96, "cache_max_entry_count": 0.5, "quant_policy": 8,
        "engine_kwargs": {"eager_mode": True},
    },
}  # fmt: skip
"""Engine -> the keywords that its users know, and values that are no defaults."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.mark.parametrize("backend", KNOWN)
def test_keywords_are_options_of_the_engine_by_their_own_names(backend, folder):
    command = infer_command(backend, folder, [], {**KNOWN[backend], "torch_dtype": torch.bfloat16, "max_length": 50})
    group = vars(command)[backend]
    plain = vars(infer_command(backend, folder, [], {}))[backend]
    for name, value in KNOWN[backend].items():
        option = f"{backend}_{name}"
        assert getattr(group, option) == value != getattr(plain, option)
    assert (command.infer.infer_backend, command.model.torch_dtype) == (backend, "bfloat16")
    assert command.template.max_length == 50
    assert command.model.max_model_len is None, "the length is that of the engine"


@pytest.mark.parametrize("backend", KNOWN)
def test_further_arguments_reach_the_engine_behind_those_in_engine_kwargs(backend, folder):
    names = FURTHER[backend]
    options = {**{name: f"a {name}" for name in names}, "engine_kwargs": {names[0]: "more", "other": 1}}
    group = vars(infer_command(backend, folder, [], options))[backend]
    made = group.model_dump()[f"{backend}_engine_kwargs"]
    assert made == {**{name: f"a {name}" for name in names}, names[0]: "more", "other": 1}


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("vllm", {"max_model_len": 3, "vllm_max_model_len": 4}, "are the same"),
        ("vllm", {"temperature": 0.5}, "temperature is said with each request, by its RequestConfig"),
        ("transformers", {"temperature": 0.5}, "temperature is said with each request"),
        ("vllm", {"logprobs": True}, "logprobs is said with each request"),
        ("vllm", {"result_path": "a.jsonl"}, "result_path has no effect"),
        ("vllm", {"max_batch_size": 3}, "max_batch_size has no effect"),
        ("sglang", {"val_dataset": ["a.jsonl"]}, "val_dataset has no effect"),
        ("vllm", {"infer_backend": "sglang"}, "infer_backend is no keyword"),
        ("vllm", {"tensor_parallel_sise": 2}, "tensor_parallel_sise"),
        ("vllm", {"tensor_parallel_size": 0}, "vllm_tensor_parallel_size"),
        ("sglang", {"task_type": "embedding"}, "task_type embedding needs"),
        ("lmdeploy", {"attn_impl": "eager"}, "attn_impl has no effect"),
    ],
)
def test_keywords_without_effect_are_refused(backend, options, message, folder):
    with pytest.raises(UsageError, match=message):
        infer_command(backend, folder, [], options)


def test_log_probabilities_choose_the_engine_of_lmdeploy_that_tells_them(folder):
    assert infer_command("lmdeploy", folder, [], {"logprobs": True}).generation.logprobs
    assert set(OWN) | {"transformers"} == set(FURTHER)


def test_places_for_adapters_need_the_switch_and_are_given_to_the_engine(tmp_path):
    for options in ({"max_loras": 2}, {"max_loras": 0, "enable_lora": True}):
        with pytest.raises(UsageError, match="a number from 1 on, with enable_lora=True"):
            VllmEngine(tmp_path, **options)
    with pytest.raises(UsageError, match="data_parallel_size above 1 needs use_async_engine=True"):
        VllmEngine(tmp_path, data_parallel_size=2, use_async_engine=False)
    with pytest.raises(UsageError, match="a name of its own"):
        VllmEngine(tmp_path, [AdapterRequest("a", "1"), AdapterRequest("a", "2")])
    spare = 0 if torch.cuda.is_available() else 1
    made = engine_arguments(Served(tmp_path, places=3), VllmOptions(vllm_max_lora_rank=8))
    assert (made["enable_lora"], made["max_loras"], made["max_lora_rank"]) == (True, 3 + spare, 8)
    assert "enable_lora" not in engine_arguments(Served(tmp_path), VllmOptions())


@pytest.mark.parametrize("backend", CLASSES)
def test_an_absent_package_is_named_with_what_installs_it(backend, folder):
    if find_spec(backend) is not None:
        pytest.skip("it is there")
    with pytest.raises(MissingPackage, match=rf"needs the package {backend}.*pip install 'swiftlet\[{backend}\]'"):
        CLASSES[backend](folder)


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("sglang", "lmdeploy")]
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_a_machine_without_gpu_is_told_so(backend, folder):
    with pytest.raises(EngineError, match=f"--infer_backend {backend} needs a GPU"):
        CLASSES[backend](folder)


# ---------------------------------------------------------------------------------------- a model behind others' words


@pytest.fixture(scope="module", params=KINDS)
def pair(request, folder):
    """Our engine, and the same model behind the words of another, asked by the same class."""
    ours = TransformersEngine(folder, max_batch_size=8, torch_dtype="float32")
    renderer = Renderer(tiny.tokenizer(), TemplateOptions())
    inner = Transformers(
        tiny.model(seed=3), tiny.tokenizer(), max_batch_size=-1, stop_token_ids=renderer.stop_token_ids
    )
    hosted = hosts.hosted(request.param, inner, renderer.stop_token_ids)
    theirs = ModelEngine(Opened("tiny", TemplateOptions(), hosted.context_length, Chat(renderer, hosted)), strict=True)
    yield ours, theirs
    theirs.close()
    ours.close()


def contents(responses):
    return [[choice.message.content for choice in response.choices] for response in responses]


def test_whole_replies_and_streams_are_those_of_our_engine(pair):
    ours, theirs = pair
    stats = InferStats()
    expected = contents(ours.infer(REQUESTS, GREEDY))
    responses = theirs.infer(REQUESTS, GREEDY, metrics=[stats], use_tqdm=True)
    assert contents(responses) == expected
    assert stats.compute()["num_samples"] == len(REQUESTS)
    assert stats.compute()["num_generated_tokens"] == sum(each.usage.completion_tokens for each in responses)
    streams = theirs.infer(REQUESTS, RequestConfig(max_tokens=8, temperature=0, stream=True))
    pieces = [list(stream) for stream in reversed(streams)]
    for (text,), several in zip(expected, reversed(pieces), strict=True):
        assert "".join(piece.choices[0].delta.content for piece in several) == text
        assert several[-1].choices[0].finish_reason == "length"
    drawn = RequestConfig(max_tokens=6, temperature=1.0, seed=1, n=2)
    assert contents(theirs.infer(REQUESTS, drawn)) == contents(ours.infer(REQUESTS, drawn))


def test_asynchronous_requests_are_answered_beside_each_other(pair):
    ours, theirs = pair

    async def talk():
        whole = await asyncio.gather(*(theirs.infer_async(request, GREEDY) for request in REQUESTS))
        stream = await theirs.infer_async(REQUESTS[0], RequestConfig(max_tokens=8, temperature=0, stream=True))
        return whole, "".join([piece.choices[0].delta.content async for piece in stream])

    whole, streamed = asyncio.run(talk())
    assert contents(whole) == contents(ours.infer(REQUESTS, GREEDY))
    assert streamed == whole[0].choices[0].message.content


class Counting(hosts.Plain):
    """A host that tells how many completions grow, and how many tokens there are of all."""

    def __init__(self, inner: Transformers) -> None:
        super().__init__(inner)
        self.growing = self.tokens = 0

    async def grow(self, asked):
        self.growing += 1
        try:
            async with aclosing(super().grow(asked)) as several:
                async for news in several:
                    self.tokens += len(news.tokens)
                    yield news
        finally:
            self.growing -= 1


def test_a_stream_grows_before_it_is_read_and_ends_when_nobody_keeps_it():
    inner = Transformers(tiny.model(seed=3), tiny.tokenizer(), max_batch_size=-1)
    settings = Settings(inner.model.generation_config, tiny.tokenizer(), (), inner.context_length)
    host = Counting(inner)
    hosted = Hosted(host, settings, tiny.tokenizer(), Background("test"))
    prompt = Prompt("A", tiny.tokenizer().encode("A"))
    stream = hosted.pieces(Request(prompt, Sampling(max_new_tokens=500, temperature=0)))
    assert holds(lambda: host.growing == 1 and host.tokens > 2)
    del stream
    assert holds(lambda: not host.growing)
    assert host.tokens < 500
    hosted.close()


def holds(condition):
    """Whether something comes to hold within some seconds."""
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_adapters_are_added_where_the_engine_can_and_a_name_stays_with_its_adapter(tmp_path):
    class Taking(hosts.Plain):
        """A host that takes adapters, and answers with the model alone whatever their name."""

        taken = ()

        async def add_adapter(self, name, folder):
            self.taken = (*self.taken, (name, folder))

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    renderer = Renderer(tiny.tokenizer(), TemplateOptions())
    inner = Transformers(tiny.model(seed=3), tiny.tokenizer(), max_batch_size=-1)
    settings = Settings(inner.model.generation_config, tiny.tokenizer(), (), inner.context_length)
    host = Taking(inner)
    hosted = Hosted(host, settings, tiny.tokenizer(), Background("test"), adapters=("known",))
    opened = Opened("tiny", TemplateOptions(), 512, Chat(renderer, hosted), adapters={"known": "somewhere"})
    engine = ModelEngine(opened, strict=True)
    one = AdapterRequest("one", str(tmp_path / "one"))
    for request in (one, AdapterRequest("known", "somewhere"), one):
        assert len(engine.infer(REQUESTS[:1], GREEDY, adapter_request=request)) == 1
    assert host.taken == (("one", tmp_path / "one"),)
    assert hosted.adapters == ("known", "one")
    with pytest.raises(EngineError, match=r"The adapter 'one' is .* by another name"):
        engine.infer(REQUESTS[:1], GREEDY, adapter_request=AdapterRequest("one", str(tmp_path / "two")))
    engine.close()


def test_lmdeploy_takes_no_adapters_later(tmp_path):
    with pytest.raises(EngineError, match="made with 'one'"):
        asyncio.run(Lmdeploy(None, None).add_adapter("one", tmp_path))


def test_sglang_takes_adapters_later_or_says_what_it_lacks(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}), encoding="utf-8")
    given = []

    class Engine:
        """What is used of SGLang's `Engine`."""

        async def async_load_lora_adapter(self, name, path):
            given.append((name, path))
            return SimpleNamespace(success=len(given) == 1, error_message="LoRA is not enabled.")

    host = Sglang(Engine(), repeats=True, tells_raw=True)
    asyncio.run(host.add_adapter("one", tmp_path))
    assert given == [("one", str(tmp_path))]
    with pytest.raises(EngineError, match=r"LoRA is not enabled.*need enable_lora"):
        asyncio.run(host.add_adapter("two", tmp_path))


@pytest.mark.sglang
def test_sglang_has_what_adds_adapters():
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.io_struct import LoadLoRAAdapterReqOutput

    inspect.signature(Engine.async_load_lora_adapter).bind(None, "name", "path")
    answer = LoadLoRAAdapterReqOutput(success=False, error_message="why")
    assert (answer.success, answer.error_message) == (False, "why")


def test_what_cannot_be_asked_is_refused_before_anything_runs(pair):
    _, theirs = pair
    with pytest.raises(EngineError, match="num_beams 2"):
        theirs.infer(REQUESTS, RequestConfig(num_beams=2))
    theirs.strict = False
    assert all(isinstance(each, EngineError) for each in theirs.infer(REQUESTS, RequestConfig(num_beams=2)))
    theirs.strict = True
