"""`swift infer` over a data set: which rows are answered, what is written, and that batches and processes change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from swift.commands import backends, infer
from swift.core.errors import DataError, UsageError
from swift.engines.transformers import Transformers
from swift.options.parse import parse


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("model") / "tiny", seed=3)


@pytest.fixture(scope="module")
def rows():
    return [{**row, "origin": f"row {number}"} for number, row in enumerate(tiny.conversations(10))]


@pytest.fixture
def val(tmp_path, rows):
    return tiny.jsonl(tmp_path / "val.jsonl", rows)


def answer(checkpoint: Path, val: Path, *words: str, into: str = "results.jsonl", tokens: str = "6") -> list[dict]:
    path = val.parent / into
    argv = ["--model", str(checkpoint), "--val_dataset", str(val), "--result_path", str(path), *words]
    assert infer.run(parse("infer", [*argv, "--max_new_tokens", tokens])) == path
    return read(path)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parameter("val_dataset")
@pytest.mark.parameter("infer_backend")
def test_every_row_is_answered_in_order_with_its_labels_and_columns(checkpoint, val, rows):
    results = answer(checkpoint, val, "--infer_backend", "transformers")
    assert [list(result)[:4] for result in results] == [["response", "labels", "logprobs", "messages"]] * len(rows)
    for row, result in zip(rows, results, strict=True):
        assert result["labels"] == row["messages"][-1]["content"]
        assert result["messages"][:-1] == row["messages"][:-1]
        assert result["messages"][-1] == {"role": "assistant", "content": result["response"]}
        assert result["origin"] == row["origin"]
        assert result["logprobs"] is None
    assert any(result["response"] for result in results)


@pytest.mark.parameter("val_dataset")
@pytest.mark.parameter("agent_template")
def test_a_row_that_ends_with_calls_of_tools_is_answered_and_labelled_with_their_wording(checkpoint, tmp_path):
    call = {"role": "tool_call", "content": '{"name": "add", "arguments": {"a": 1}}'}
    asked = {"role": "user", "content": "What is 1 and 1?"}
    turns = [[asked, call], [asked, {"role": "assistant", "content": "Let me see."}, call, call],
             [asked, call, {"role": "tool_response", "content": "2"}, call],
             [asked, call, {"role": "tool_response", "content": "2"}, {"role": "assistant", "content": "Two."}]]  # fmt: skip
    val = tiny.jsonl(tmp_path / "val.jsonl", [{"messages": messages} for messages in turns])
    results = answer(checkpoint, val, "--agent_template", "hermes")
    said = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert [row["labels"] for row in results] == [said, f"Let me see.\n{said}\n{said}", said, "Two."]
    assert [len(row["messages"]) for row in results] == [2, 2, 4, 4]  # what came before, and the reply
    assert results[0]["messages"][:-1] == [asked]


@pytest.mark.parameter("result_path")
def test_results_are_added_to_a_file_that_is_there(checkpoint, val, capsys):
    first = answer(checkpoint, val)
    both = answer(checkpoint, val)
    assert both == first + first
    assert str(val.parent / "results.jsonl") in capsys.readouterr().out


@pytest.mark.parameter("result_path")
def test_results_go_to_the_checkpoint_that_was_trained_here_else_to_result(checkpoint, val, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--val_dataset", str(val), "--max_new_tokens", "1"]
    path = infer.run(parse("infer", ["--model", str(checkpoint), *argv]))
    assert path.parent == tmp_path / "result" / "tiny" / "infer_result"
    trained = tiny.checkpoint(tmp_path / "trained")
    (trained / "args.json").write_text("{}")
    path = infer.run(parse("infer", ["--model", str(trained), *argv]))
    assert path.parent == trained / "infer_result"
    assert len(read(path)) == 10


@pytest.mark.parameter("result_path")
def test_a_place_that_cannot_be_written_is_named(checkpoint, val, tmp_path):
    from swift.core.errors import RunError

    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="--result_path"):
        answer(checkpoint, val, into="file/results.jsonl")


@pytest.mark.parameter("write_batch_size")
def test_rows_are_on_disk_after_every_write_batch(checkpoint, val, monkeypatch):
    seen = []
    path = val.parent / "results.jsonl"

    class Watching(Transformers):
        def generate(self, prompts, sampling):
            seen.append(len(read(path)))
            return super().generate(prompts, sampling)

    monkeypatch.setattr(backends, "Transformers", Watching)
    for size, expected in (("4", [0, 4, 8]), ("1000", [0]), ("-1", [0])):
        seen.clear()
        path.unlink(missing_ok=True)
        answer(checkpoint, val, "--write_batch_size", size, "--max_batch_size", "8")
        assert seen == expected


def test_what_was_answered_before_a_failure_is_kept(checkpoint, val, monkeypatch):
    class Failing(Transformers):
        def generate(self, prompts, sampling):
            if (val.parent / "half").exists():
                raise KeyboardInterrupt
            (val.parent / "half").touch()
            return super().generate(prompts, sampling)

    monkeypatch.setattr(backends, "Transformers", Failing)
    monkeypatch.setattr(infer, "BATCHES_PER_STEP", 3)
    with pytest.raises(KeyboardInterrupt):
        answer(checkpoint, val)
    assert [result["origin"] for result in read(val.parent / "results.jsonl")] == ["row 0", "row 1", "row 2"]


@pytest.mark.parameter("max_batch_size")
@pytest.mark.parameter("seed")
def test_batches_do_not_change_what_is_drawn_and_the_seed_does(checkpoint, val):
    words = ("--temperature", "1.0", "--top_k", "50")
    alone = answer(checkpoint, val, *words, into="alone.jsonl")
    together = answer(
        checkpoint, val, *words, "--max_batch_size", "-1", "--write_batch_size", "7", into="together.jsonl"
    )
    assert alone == together
    assert alone != answer(checkpoint, val, *words, "--seed", "43", into="other.jsonl")


@pytest.mark.parameter("val_dataset_sample")
def test_a_sample_of_rows_keeps_their_order_and_follows_data_seed(checkpoint, val):
    def origins(seed: str, name: str):
        results = answer(checkpoint, val, "--val_dataset_sample", "4", "--data_seed", seed, into=name, tokens="1")
        return [int(result["origin"].split()[1]) for result in results]

    first = origins("1", "a.jsonl")
    assert len(set(first)) == 4
    assert first == sorted(first) == origins("1", "b.jsonl")
    assert first != origins("2", "c.jsonl")


@pytest.mark.parameter("split_dataset_ratio")
def test_the_part_split_off_a_data_set_is_answered(checkpoint, val, rows):
    path = val.parent / "split.jsonl"
    argv = ["--model", str(checkpoint), "--dataset", str(val), "--split_dataset_ratio", "0.3"]
    infer.run(parse("infer", [*argv, "--result_path", str(path), "--max_new_tokens", "1"]))
    origins = {result["origin"] for result in read(path)}
    assert len(origins) == 3
    assert origins < {row["origin"] for row in rows}


@pytest.mark.parameter("metric")
def test_the_metric_is_of_this_run_only(checkpoint, val, capsys):
    replies = [result["response"] for result in answer(checkpoint, val, into="first.jsonl")]
    told = [
        {"messages": [*row["messages"][:-1], {"role": "assistant", "content": reply if i % 2 else "wrong"}]}
        for i, (row, reply) in enumerate(zip(tiny.conversations(10), replies, strict=True))
    ]
    labelled = tiny.jsonl(val.parent / "labelled.jsonl", told)
    stale = val.parent / "stale.jsonl"
    tiny.jsonl(stale, [{"response": "x", "labels": "x", "messages": []}] * 50)
    capsys.readouterr()
    answer(checkpoint, labelled, "--metric", "acc", into="stale.jsonl")
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == {"acc": 0.5}
    answer(checkpoint, labelled, "--metric", "rouge", into="stale.jsonl")
    assert set(json.loads(capsys.readouterr().out.splitlines()[0])) == {"rouge-1", "rouge-2", "rouge-l", "bleu-4"}


def test_a_metric_without_any_reference_is_refused_before_the_model_is_read(tmp_path):
    val = tiny.jsonl(tmp_path / "val.jsonl", [{"messages": [{"role": "user", "content": "Hello"}]}])
    with pytest.raises(DataError, match="--metric"):
        infer.run(parse("infer", ["--model", str(tmp_path), "--val_dataset", str(val), "--metric", "acc"]))


def test_rows_without_a_reply_have_no_labels(checkpoint, tmp_path):
    val = tiny.jsonl(tmp_path / "val.jsonl", [{"messages": [{"role": "user", "content": "Hello"}]}])
    (result,) = answer(checkpoint, val)
    assert result["labels"] is None
    assert len(result["messages"]) == 2


@pytest.mark.parameter("logprobs")
@pytest.mark.parameter("top_logprobs")
def test_logprobs_are_written_as_the_openai_protocol_has_them(checkpoint, val):
    results = answer(checkpoint, val, "--logprobs", "true", "--top_logprobs", "3")
    for result in results:
        content = result["logprobs"]["content"]
        assert len(content) == 6
        for token in content:
            assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
            assert bytes(token["bytes"]).decode() == token["token"]
            assert len(token["top_logprobs"]) == 3
            assert token["top_logprobs"][0]["logprob"] >= token["top_logprobs"][-1]["logprob"]


@pytest.mark.parameter("stream")
def test_streaming_shows_query_labels_and_response_and_writes_the_same_rows(checkpoint, val, capsys):
    whole = answer(checkpoint, val, "--logprobs", "true")
    capsys.readouterr()
    streamed = answer(checkpoint, val, "--logprobs", "true", "--stream", "true", into="streamed.jsonl")
    assert streamed == whole
    shown = capsys.readouterr().out
    assert shown.count("[QUERY]") == shown.count("[LABELS]") == shown.count("[RESPONSE]") == 10
    assert all(f"[RESPONSE] {result['response']}" in shown for result in whole)


@pytest.mark.parameter("stop_words")
@pytest.mark.parameter("num_beams")
def test_options_of_generation_reach_the_engine(checkpoint, val):
    free = answer(checkpoint, val, tokens="20")
    word = free[0]["response"][2:4]
    stopped = answer(checkpoint, val, "--stop_words", word, into="stopped.jsonl", tokens="20")
    assert stopped[0]["response"] == free[0]["response"][: free[0]["response"].index(word) + len(word)]
    beams = answer(checkpoint, val, "--num_beams", "4", into="beams.jsonl", tokens="20")
    assert [result["response"] for result in beams] != [result["response"] for result in free]
    penalized = answer(checkpoint, val, "--repetition_penalty", "5.0", into="penalized.jsonl", tokens="20")
    assert all(a["response"] != b["response"] for a, b in zip(free, penalized, strict=True))


@pytest.mark.parameter("max_length")
@pytest.mark.parameter("truncation_strategy")
def test_prompts_that_are_too_long_are_skipped_and_counted_or_cut(checkpoint, val, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("swift"), "propagate", True)
    kept = answer(checkpoint, val, "--max_length", "50")
    assert 0 < len(kept) < 10
    assert f"{10 - len(kept)} rows are skipped" in caplog.text
    assert "longer than --max_length 50" in caplog.text
    cut = answer(checkpoint, val, "--max_length", "50", "--truncation_strategy", "left", into="cut.jsonl")
    assert len(cut) == 10
    with pytest.raises(DataError, match="--max_length 50"):
        answer(checkpoint, val, "--max_length", "50", "--strict", "true", into="strict.jsonl")
    with pytest.raises(DataError, match="None of the 10 rows"):
        answer(checkpoint, val, "--max_length", "3", into="none.jsonl")


@pytest.mark.parameter("adapters")
@pytest.mark.parameter("merge_lora")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft reads it
def test_an_adapter_changes_replies_and_merged_it_gives_the_same(checkpoint, val, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config).save_pretrained(tmp_path / "adapter")
    words = ("--adapters", str(tmp_path / "adapter"))
    base = answer(checkpoint, val)
    adapted = answer(checkpoint, val, *words, into="adapted.jsonl")
    merged = answer(checkpoint, val, *words, "--merge_lora", "true", into="merged.jsonl")
    assert adapted != base
    assert merged == adapted


def test_load_data_args_of_a_training_without_validation_rows_is_refused(checkpoint):
    with pytest.raises(UsageError, match="--load_data_args"):
        infer.run(parse("infer", ["--model", str(checkpoint), "--load_data_args", "true"]))


@pytest.mark.slow
def test_two_processes_write_what_one_does(checkpoint, val):
    words = ("--temperature", "1.0", "--write_batch_size", "7", "--max_batch_size", "2")
    alone = answer(checkpoint, val, *words)
    path = val.parent / "two.jsonl"
    argv = ["--model", str(checkpoint), "--val_dataset", str(val), "--result_path", str(path), "--max_new_tokens", "6"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29641"]
    code = "import sys; from swift.cli import main; sys.exit(main(sys.argv[1:]))"
    script = val.parent / "two.py"
    script.write_text(code)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, str(script), "infer", *argv, *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert read(path) == alone
    assert done.stdout.count(str(path)) == 1
