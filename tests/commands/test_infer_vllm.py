"""`swift infer --infer_backend vllm`, and what is trained here in vLLM as it comes: the same prompts, tokens and numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from swift.chat.messages import Conversation, Message
from swift.commands import export, infer, sft
from swift.core.errors import EngineError, UsageError
from swift.options.parse import parse

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
PLAIN = ["--infer_backend", "transformers"]
VLLM = ["--infer_backend", "vllm", "--vllm_enforce_eager", "true", "--vllm_max_num_seqs", "16"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    tiny.checkpoint(folder / "model", seed=3, head_dim=32)
    tiny.checkpoint(folder / "Qwen3-0.6B-Base", seed=3, chat_template=None, head_dim=32)
    tiny.jsonl(folder / "rows.jsonl", tiny.conversations(6))
    return folder


def train(place: Path, output: Path, *words: str, model: str = "model", rows: str = "rows.jsonl") -> Path:
    last = sft.run(parse("sft", [
        "--model", str(place / model), "--dataset", str(place / rows), "--output_dir", str(output), "--max_steps", "2",
        "--split_dataset_ratio", "0", "--dataloader_num_workers", "0", "--report_to", "none", "--learning_rate", "1e-2",
        "--torch_dtype", "float32", *words,
    ]))  # fmt: skip
    assert isinstance(last, Path)
    return last


@pytest.fixture(scope="module")
def lora(place, tmp_path_factory) -> Path:
    return train(place, tmp_path_factory.mktemp("lora"), "--tuner_type", "lora", "--target_modules", "all-linear")


def answered(place: Path, *words: str, rows: str = "rows.jsonl", tokens: int = 8) -> list[dict]:
    path = place / "results.jsonl"
    path.unlink(missing_ok=True)
    writes = ["--max_new_tokens", str(tokens), "--temperature", "0"] if tokens else []
    line = ["--val_dataset", str(place / rows), "--result_path", str(path), "--torch_dtype", "float32", *writes, *words]
    infer.run(parse("infer", line))
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def unlike(rows):
    """Rows without their numbers, and the log-probabilities of their tokens."""
    numbers = [token["logprob"] for row in rows for token in (row["logprobs"] or {"content": []})["content"]]
    return [{**row, "logprobs": None} for row in rows], numbers


@pytest.mark.parameter("infer_backend")
@pytest.mark.parameter("logprobs")
@pytest.mark.parametrize("more", [[], ["--stream", "true"], ["--vllm_use_async_engine", "true"]])
def test_rows_are_answered_as_by_our_engine(place, more):
    words = ["--model", str(place / "model"), "--logprobs", "true", "--top_logprobs", "2"]
    ours, our_numbers = unlike(answered(place, *words, *PLAIN))
    found, numbers = unlike(answered(place, *words, *VLLM, *more))
    assert found == ours
    assert numbers == pytest.approx(our_numbers, abs=1e-4)


@pytest.mark.parametrize("is_async", ["false", "true"])
def test_a_command_ends_its_engine_and_says_nothing_of_it(place, is_async):
    line = ["--model", str(place / "model"), "--val_dataset", str(place / "rows.jsonl"), "--result_path",
            str(place / "of_a_process.jsonl"), "--max_new_tokens", "2", "--vllm_use_async_engine", is_async]  # fmt: skip
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    made = subprocess.run([sys.executable, "-m", "swift", "infer", *line, *VLLM], env=environment, capture_output=True,
                          text=True, check=False, timeout=500)  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "Exception ignored" not in made.stderr
    assert "force killing" not in made.stdout + made.stderr


@pytest.mark.parameter("adapters")
@pytest.mark.parameter("merge_lora")
@pytest.mark.parameter("vllm_max_lora_rank")
def test_an_adapter_answers_in_vllm_as_it_does_here_merged_or_not(place, lora, tmp_path):
    words = ["--adapters", str(lora), "--logprobs", "true"]
    ours, our_numbers = unlike(answered(place, *words, *PLAIN))
    assert ours != unlike(answered(place, "--model", str(place / "model"), "--logprobs", "true", *PLAIN))[0]
    for more in (["--vllm_max_lora_rank", "8"], ["--merge_lora", "true"]):
        found, numbers = unlike(answered(place, *words, *VLLM, *more))
        assert found == ours
        assert numbers == pytest.approx(our_numbers, abs=1e-4)
    with pytest.raises(EngineError, match="--vllm_max_lora_rank 4 is less"):
        answered(place, *words, *VLLM, "--vllm_max_lora_rank", "4")
    with pytest.raises(UsageError, match="Merge them"):
        answered(place, "--adapters", str(lora), str(lora), *VLLM)


@pytest.mark.parameter("structured_outputs_regex")
@pytest.mark.parameter("stop_words")
def test_replies_keep_to_a_regex_and_end_at_a_word(place):
    words = ["--model", str(place / "model"), *VLLM, "--structured_outputs_regex", r"(yes|no), [0-9]{2}\."]
    found = [row["response"] for row in answered(place, *words, tokens=40)]
    assert all(text.startswith(("yes, ", "no, ")) and text.endswith(".") and len(text) < 9 for text in found)
    cut = [row["response"] for row in answered(place, *words, "--stop_words", ",", tokens=40)]
    assert set(cut) <= {"yes,", "no,"}


@pytest.mark.parameter("task_type")
@pytest.mark.parameter("vllm_use_async_engine")
@pytest.mark.parametrize("task", ["seq_cls", "embedding"])
@pytest.mark.filterwarnings("ignore:.*")
def test_what_was_trained_to_read_reads_the_same_in_vllm(place, tmp_path, task):
    rows = [{"messages": [{"role": "user", "content": text}], "label": i % 2} for i, text in enumerate("abcdef")]
    asked = {
        "seq_cls": rows,
        "embedding": [{**row, "positive_messages": [row["messages"]]} for row in rows],
    }[task]
    tiny.jsonl(place / "asked.jsonl", asked)
    words = ["--task_type", task, *(["--num_labels", "2"] if task == "seq_cls" else [])]
    last = train(place, tmp_path, *words, rows="asked.jsonl")
    ours = answered(place, "--adapters", str(last), *PLAIN, rows="asked.jsonl", tokens=0)
    found = answered(place, "--adapters", str(last), "--merge_lora", "true", *VLLM, rows="asked.jsonl", tokens=0)
    for row, expected in zip(found, ours, strict=True):
        assert row["response"] == pytest.approx(expected["response"], abs=1e-3)
    with pytest.raises(EngineError, match="--merge_lora true"):
        answered(place, "--adapters", str(last), *VLLM, rows="asked.jsonl", tokens=0)


CONVERSATIONS = [
    [("user", "What is two and two?")],
    [("system", "You add numbers."), ("user", "1 and 1?"), ("assistant", "Two."), ("user", "And 2 and 2?")],
    [("user", "Q"), ("assistant", "<think>\nlong thoughts\n</think>\n\nA."), ("user", "So?"), ("assistant", "Yes."),
     ("user", "你好，世界！")],
    [("system", ""), ("user", "  Blanks around and\n\nlines  ")],
]  # fmt: skip


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_what_is_saved_is_served_by_plain_vllm_to_the_same_token_ids(place, tmp_path, tuner):
    from vllm import LLM, SamplingParams

    last = train(place, tmp_path / "run", "--tuner_type", tuner, model="Qwen3-0.6B-Base")
    if tuner == "lora":
        merged = tmp_path / "merged"
        export.run(parse("export", ["--adapters", str(last), "--merge_lora", "true", "--output_dir", str(merged)]))
        last = merged
    plain = LLM(str(last), dtype="float32", enforce_eager=True, max_num_seqs=8, generation_config="vllm")
    asked = [[{"role": role, "content": content} for role, content in turns] for turns in CONVERSATIONS]
    for thinks in ("true", "false"):
        words = ["--model", str(last), "--torch_dtype", "float32", "--enable_thinking", thinks]
        chat, _ = infer.open_chat(parse("infer", words))
        conversations = [
            Conversation(tuple(Message(role, content) for role, content in each)) for each in CONVERSATIONS
        ]
        prompts = [chat.prompt(each) for each in conversations]
        outputs = plain.chat(
            asked, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False,
            chat_template_kwargs={"enable_thinking": thinks == "true"},
        )  # fmt: skip
        assert [output.prompt_token_ids for output in outputs] == [prompt.input_ids for prompt in prompts]
        replies = chat.engine.generate(prompts, infer.sampling_of(parse("infer", words).generation, 0))
        for output, (reply,) in zip(outputs, replies, strict=True):
            count = min(len(reply.token_ids), 8)
            assert list(output.outputs[0].token_ids)[:count] == reply.token_ids[:count]
        chat.engine.close()
    plain.llm_engine.engine_core.shutdown()
