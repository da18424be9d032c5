from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest

import tiny
from swift.chat.messages import Conversation
from swift.chat.render import Renderer, Sample
from swift.core.errors import DataError, UsageError
from swift.data.conversations import load_conversations
from swift.data.encode import LoadedData, load_samples
from swift.data.files import read_file
from swift.data.formats import write_rows
from swift.data.rows import Row
from swift.data.samples import SampleSet, SampleStore, pack
from swift.options.data import DataOptions
from swift.options.template import TemplateOptions


def rows(count: int, prefix: str = "row") -> list[dict[str, Any]]:
    return [{"query": f"{prefix} {i}?", "response": f"answer {i}"} for i in range(count)]


def load(*paths: Path | str, template: dict[str, Any] | None = None, **options: Any) -> LoadedData:
    chosen = TemplateOptions(**(template or {}))
    data = DataOptions(dataset=[str(path) for path in paths], **options)
    return load_samples(data, chosen, Renderer(tiny.tokenizer(), chosen))


def texts(samples: SampleSet | None) -> list[str]:
    assert samples is not None
    decoded = [tiny.tokenizer().decode(samples[i].input_ids) for i in range(len(samples))]
    return [text.split("user\n")[1].split("?")[0] for text in decoded]


def queries(items: Any) -> list[str]:
    return [item.conversation.messages[0].content for item in items]


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    return tiny.jsonl(tmp_path / "ten.jsonl", rows(10))


TEN = [f"row {i}" for i in range(10)]


# --------------------------------------------------------------------------------------------------- which rows, order


@pytest.mark.parameter("dataset")
def test_several_data_sets_are_read_one_behind_the_other(ten: Path, tmp_path: Path):
    other = tiny.jsonl(tmp_path / "other.jsonl", rows(2, "other"))
    assert texts(load(ten, other, dataset_shuffle=False).train) == [*TEN, "other 0", "other 1"]


@pytest.mark.parameter("dataset")
def test_a_number_takes_so_many_rows_and_says_when_rows_repeat(ten: Path, logged: list[str]):
    assert texts(load(f"{ten}#3", dataset_shuffle=False).train) == TEN[:3]
    few = texts(load(f"{ten}#7").train)
    assert len(set(few)) == 7
    many = load(f"{ten}#25")
    assert len(many.train) == 25
    assert len(many.train.store) == 10
    assert sorted(texts(many.train))[:4] != sorted(TEN)[:4]
    assert any("10 rows only, so that rows are repeated" in message for message in logged)


@pytest.mark.parameter("dataset_shuffle")
def test_dataset_shuffle_changes_the_order_and_nothing_else(ten: Path):
    shuffled = texts(load(ten).train)
    assert shuffled != TEN
    assert sorted(shuffled) == TEN
    assert texts(load(ten, dataset_shuffle=False).train) == TEN


@pytest.mark.parameter("data_seed")
def test_the_seed_decides_sample_split_and_order(ten: Path):
    def chosen(seed: int) -> tuple[list[str], list[str]]:
        loaded = load(f"{ten}#8", data_seed=seed, split_dataset_ratio=0.3)
        return texts(loaded.train), texts(loaded.val)

    assert chosen(1) == chosen(1)
    assert chosen(1)[0] != chosen(2)[0]
    assert chosen(1)[1] != chosen(2)[1]


@pytest.mark.parameter("split_dataset_ratio")
def test_every_data_set_gives_its_share_to_validation_and_none_of_it_is_trained(ten: Path, tmp_path: Path):
    other = tiny.jsonl(tmp_path / "other.jsonl", rows(20, "other"))
    loaded = load(ten, other, split_dataset_ratio=0.2)
    held = texts(loaded.val)
    assert [sum(text.startswith(name) for text in held) for name in ("row", "other")] == [2, 4]
    assert not set(held) & set(texts(loaded.train))
    assert len(loaded.train) == 24
    assert load(ten).val is None


@pytest.mark.parameter("split_dataset_ratio")
def test_the_rows_held_back_can_be_written_and_read_again(ten: Path, tmp_path: Path):
    loaded = load(ten, split_dataset_ratio=0.4)
    write_rows(tmp_path / "val_dataset.jsonl", loaded.val_rows)
    again = load(ten, val_dataset=[str(tmp_path / "val_dataset.jsonl")])
    assert texts(again.val) == texts(loaded.val)
    assert again.val_rows == []


def test_holding_back_everything_leaves_nothing_to_train_on(ten: Path):
    with pytest.raises(DataError, match="--split_dataset_ratio 1"):
        load(ten, split_dataset_ratio=1)


@pytest.mark.parameter("val_dataset")
def test_a_validation_set_of_its_own_turns_splitting_off_and_says_so(ten: Path, tmp_path: Path, logged: list[str]):
    val = tiny.jsonl(tmp_path / "val.jsonl", rows(3, "val"))
    loaded = load(ten, val_dataset=[f"{val}#2"], split_dataset_ratio=0.5)
    assert texts(loaded.val) == ["val 0", "val 1"]
    assert len(loaded.train) == 10
    assert any("--split_dataset_ratio 0.5 has no effect" in message for message in logged)
    with pytest.raises(DataError, match=r"--val_dataset .*#4: there are 3 rows"):
        load(ten, val_dataset=[f"{val}#4"])


@pytest.mark.parameter("val_dataset_shuffle")
def test_val_dataset_shuffle_changes_the_order_of_validation_alone(ten: Path, tmp_path: Path):
    val = tiny.jsonl(tmp_path / "val.jsonl", rows(10, "val"))
    plain = load(ten, val_dataset=[str(val)])
    mixed = load(ten, val_dataset=[str(val)], val_dataset_shuffle=True)
    assert texts(plain.val) == [f"val {i}" for i in range(10)]
    assert texts(mixed.val) != texts(plain.val)
    assert sorted(texts(mixed.val)) == texts(plain.val)
    assert texts(mixed.train) == texts(plain.train)


@pytest.mark.parameter("interleave_prob")
@pytest.mark.parameter("stopping_strategy")
def test_interleaving_mixes_data_sets_until_the_first_or_the_last_ends(ten: Path, tmp_path: Path):
    other = tiny.jsonl(tmp_path / "other.jsonl", rows(100, "other"))
    options = {"dataset_shuffle": False, "interleave_prob": [0.5, 0.5]}
    first = texts(load(ten, other, **options).train)
    every = texts(load(ten, other, **options, stopping_strategy="all_exhausted").train)
    assert first[-1] == "row 9"
    assert every[: len(first)] == first
    assert every[-1] == "other 99"
    assert every.count("row 0") > 1


# -------------------------------------------------------------------------------------------------- bad and long rows

USER = {"role": "user", "content": "u"}
BAD = {
    '{"messages": [{"role": "user", "content": "cut': "is not valid JSON",
    '{"messages": []}': "messages: is empty",
    '{"messages": [{"role": "usr", "content": "x"}]}': "messages[0].role: unknown role",
    '{"messages": [{"role": "user", "content": null}]}': "messages[0].content: is null",
    '{"messages": "hello"}': "messages: is neither JSON nor",
    '{"query": "u", "response": {}}': "response: is no text",
    '{"nothing": 1}': "has no message, query or response",
    '{"query": "only a question"}': "",
    '{"query": "a", "query": "b"}': "query: the key stands twice",
}


@pytest.mark.parameter("strict")
def test_every_bad_row_is_reported_with_its_line_and_the_others_are_kept(tmp_path: Path, logged: list[str]):
    path = tmp_path / "bad.jsonl"
    good = json.dumps(rows(1)[0])
    path.write_text("\n".join(line for bad in BAD for line in (good, bad)), encoding="utf-8")
    loaded = load(path)
    assert len(loaded.train) == len(BAD)
    assert (loaded.report.read, loaded.report.num_dropped) == (2 * len(BAD), len(BAD))
    lines = {row.line: str(row) for _, row in loaded.report.dropped.values()}
    for number, reason in enumerate(BAD.values(), 1):
        assert lines[2 * number].startswith(f"{path}:{2 * number}: {reason}")
    assert any(f"{len(BAD)} left out" in message and f"{path}:4" in message for message in logged)
    for number, bad in enumerate(BAD, 1):
        path.write_text(f"{good}\n" * number + bad, encoding="utf-8")
        with pytest.raises(DataError, match=f"bad.jsonl:{number + 1}: .*--strict true"):
            load(path, strict=True)


def test_competing_columns_cost_the_rows_that_have_them_and_are_an_error_when_all_have(tmp_path: Path):
    good, bad = {"query": "Hi", "answer": "Ho"}, {"query": "Hi", "answer": "Ho", "output": "No"}
    data = load(tiny.jsonl(tmp_path / "rows.jsonl", [good, bad, good]))
    assert len(data.train) == 2
    assert [row.line for row in data.report.bad] == [2]
    with pytest.raises(DataError, match=r"none of its 3 rows.*\n.*3  its columns leave open.*'answer' and 'output'"):
        load(tiny.jsonl(tmp_path / "all.jsonl", [bad] * 3))


def test_rows_that_fail_alike_are_counted_together(tmp_path: Path):
    bad = [{"messages": [USER] * i + [{"role": name, "content": "x"}]} for i, name in enumerate(["a", "b", "c"])]
    path = tiny.jsonl(tmp_path / "rows.jsonl", [*rows(1), *bad, {"query": "u"}, {"query": "v"}])
    dropped = load(path).report.dropped
    assert dropped["messages[].role: unknown role"][0] == 3
    assert sorted(count for count, _ in dropped.values()) == [2, 3]


def test_a_data_set_without_a_usable_row_is_an_error_that_names_the_causes(ten: Path, tmp_path: Path):
    path = tiny.jsonl(tmp_path / "rows.jsonl", [{"nothing": 1}, {"messages": []}])
    with pytest.raises(
        DataError, match=r"none of its 2 rows can be used:\n.*has no message.*rows.jsonl:1 \(columns: nothing\)"
    ):
        load(ten, path)
    path.write_text("\n")
    with pytest.raises(DataError, match="has no rows"):
        load(path)
    with pytest.raises(UsageError, match="--dataset"):
        load()


def lengths(count: int) -> list[dict[str, Any]]:
    return [{"query": "u", "response": "word " * (1 + 5 * i)} for i in range(count)]


@pytest.mark.parameter("max_length")
@pytest.mark.parameter("truncation_strategy")
def test_rows_longer_than_max_length_are_dropped_and_counted(tmp_path: Path):
    path = tiny.jsonl(tmp_path / "rows.jsonl", lengths(10))
    free = load(path, dataset_shuffle=False).train.lengths
    limit = free[5]
    loaded = load(path, dataset_shuffle=False, template={"max_length": limit}, strict=True)
    assert loaded.train.lengths == free[:6]
    [(cause, (count, row))] = loaded.report.dropped.items()
    assert (cause, count, row.line) == (f"longer than --max_length {limit}", 4, 7)
    assert f"{free[6]} tokens" in loaded.report.table()


@pytest.mark.parameter("max_length")
def test_when_all_rows_are_too_long_the_error_says_what_to_do(tmp_path: Path):
    path = tiny.jsonl(tmp_path / "rows.jsonl", lengths(3))
    with pytest.raises(DataError, match=r"all 3 rows are longer than --max_length 5. Raise --max_length, or set"):
        load(path, template={"max_length": 5})


@pytest.mark.parameter("truncation_strategy")
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_that_are_cut_are_counted_and_keep_their_side(tmp_path: Path, side: str):
    path = tiny.jsonl(tmp_path / "rows.jsonl", lengths(10))
    whole = load(path, dataset_shuffle=False).train
    limit = whole.lengths[5]
    loaded = load(path, dataset_shuffle=False, template={"max_length": limit, "truncation_strategy": side})
    assert loaded.report.cut == 4
    assert "4 too long and cut" in loaded.report.table()
    for i in range(10):
        ids = whole[i].input_ids
        assert loaded.train[i].input_ids == (ids[-limit:] if side == "left" else ids[:limit])
        assert loaded.train[i].labels[0] == -100


def test_a_row_whose_reply_was_cut_off_has_nothing_to_learn(tmp_path: Path):
    path = tiny.jsonl(tmp_path / "rows.jsonl", [{"query": "word " * 50, "response": "a"}, *rows(1)])
    loaded = load(path, template={"max_length": 40, "truncation_strategy": "right"})
    assert len(loaded.train) == 1
    assert list(loaded.report.dropped) == ["nothing to learn within --max_length 40"]


@pytest.mark.parameter("truncation_strategy")
def test_split_makes_samples_of_all_of_a_text(tmp_path: Path):
    path = tiny.jsonl(tmp_path / "rows.jsonl", [{"text": "word " * 41}, {"text": "short"}])
    plain = {"use_chat_template": False, "loss_scale": "all"}
    whole = load(path, dataset_shuffle=False, template=plain).train
    loaded = load(path, dataset_shuffle=False, template={**plain, "max_length": 16, "truncation_strategy": "split"})
    pieces = [loaded.train[i] for i in range(len(loaded.train))]
    assert whole.lengths[0] % 16 > 1
    assert [token for piece in pieces for token in piece.input_ids] == whole[0].input_ids + whole[1].input_ids
    assert max(loaded.train.lengths) == 16
    assert len(pieces) > 4
    limit = whole.lengths[0] - 1  # of two pieces, the second is one token and has none to be learnt from
    assert (
        load(path, template={**plain, "max_length": limit, "truncation_strategy": "split"}).train.store.borders[1]
        == limit
    )
    assert len(load(path, template={**plain, "max_length": limit, "truncation_strategy": "split"}).train) == 2
    with pytest.raises(UsageError, match="--truncation_strategy split"):
        load(path, template={"max_length": 16, "truncation_strategy": "split"})


def test_mixed_lengths_are_described(ten: Path):
    train = load(ten).train
    assert f"size={len(train)}" in train.describe()
    assert f"max={max(train.lengths)}" in train.describe()


# -------------------------------------------------------------------------------------------------------- the samples


def test_what_is_loaded_is_what_the_renderer_makes(tmp_path: Path):
    path = tiny.jsonl(tmp_path / "rows.jsonl", tiny.conversations(30))
    template = TemplateOptions()
    renderer = Renderer(tiny.tokenizer(), template)
    train = load(path, dataset_shuffle=False).train
    conversations = load_conversations(DataOptions(dataset=[str(path)], dataset_shuffle=False)).train
    for i, item in enumerate(conversations):
        assert train[i] == renderer.sample(item.conversation)
        assert train.lengths[i] == len(train[i])


def test_samples_survive_their_storage():
    samples = [
        Sample([1, 2, 3], [-100, 2, 3]),
        Sample([4, 5], [-100, 5], [0.0, 0.5], {"channel": "a"}),
        Sample([6, 7, 70_000], [-100, -100, 70_000], extra={"channel": "b"}),
    ]
    store = pickle.loads(pickle.dumps(SampleStore(pack([[sample] for sample in samples]))))
    assert [store.sample(i) for i in range(len(store))] == samples
    ordered = SampleSet(store, [2, 0, 0])
    assert [ordered[i] for i in range(3)] == [samples[2], samples[0], samples[0]]
    assert ordered.lengths == [3, 3, 3]
    assert store.tokens.dtype == numpy.int32


def test_a_failure_of_the_renderer_costs_that_row(ten: Path):
    class Refusing:
        """Refuses every third conversation."""

        def __init__(self) -> None:
            self.inner = Renderer(tiny.tokenizer(), TemplateOptions())

        def samples(self, conversations: list[Conversation]) -> list[Sample | DataError]:
            made = self.inner.samples(conversations)
            return [DataError(f"row {i} of 10 is odd") if i % 3 == 0 else sample for i, sample in enumerate(made)]

    data = DataOptions(dataset=[str(ten)], dataset_shuffle=False)
    loaded = load_samples(data, TemplateOptions(), Refusing())
    assert texts(loaded.train) == [TEN[i] for i in range(10) if i % 3]
    [(count, row)] = loaded.report.dropped.values()
    assert (count, row.line) == (4, 1)


# ------------------------------------------------------------------------------------------------------ conversations


def test_rows_left_out_of_conversations_are_said_and_said_once(ten: Path, tmp_path: Path, logged: list[str]):
    path = tiny.jsonl(tmp_path / "rows.jsonl", [{"nothing": 1}, *rows(1)])
    load_conversations(DataOptions(val_dataset=[str(path)]))
    load(path)
    assert sum("1 left out" in message and f"{path}:1" in message for message in logged) == 2


def test_conversations_come_with_the_record_they_are_made_of(ten: Path, tmp_path: Path):
    val = tiny.jsonl(tmp_path / "val.jsonl", [{"query": "q", "response": "a", "id": 7}])
    loaded = load_conversations(DataOptions(val_dataset=[str(val)]))
    assert loaded.train == []
    assert loaded.val is not None
    [item] = loaded.val
    assert (item.values, item.file, item.line) == ({"query": "q", "response": "a", "id": 7}, str(val), 1)
    assert load_conversations(DataOptions(dataset=[str(ten)])).val is None
    split = load_conversations(DataOptions(dataset=[str(ten)], split_dataset_ratio=1))
    assert split.train == []
    assert sorted(queries(split.val)) == [f"{text}?" for text in TEN]


@pytest.mark.parameter("columns")
def test_columns_applies_to_every_data_set_and_takes_names_only(ten: Path, tmp_path: Path):
    other = tiny.jsonl(tmp_path / "other.jsonl", [{"Frage": "other 0?", "Antwort": "x"}])
    renamed = {"Frage": "query", "Antwort": "response"}
    assert texts(load(ten, other, dataset_shuffle=False, columns=renamed).train) == [*TEN, "other 0"]
    with pytest.raises(DataError, match="--columns names Antwort, Frage"):
        load(ten, columns=dict(sorted(renamed.items())))
    for wrong in ({"query": 3}, {1: "query"}, {"query": ""}):
        with pytest.raises(UsageError, match="--columns maps names"):
            load_conversations(
                DataOptions.model_construct(**{**DataOptions().model_dump(), "dataset": [str(ten)], "columns": wrong})
            )


# --------------------------------------------------------------------------------------------------- self-cognition

PERSONA = [
    {"query": "你是谁？", "response": "我是{{NAME}}，由{{AUTHOR}}开发。", "tag": "zh"},
    {"query": "Who are you, {{NAME}}?", "response": "I am {{NAME}} of {{AUTHOR}}.", "tag": "en"},
]


@pytest.fixture
def persona(tmp_path: Path) -> Path:
    (tmp_path / "self-cognition").mkdir()
    tiny.jsonl(tmp_path / "self-cognition" / "rows.jsonl", PERSONA)
    return tmp_path / "self-cognition"


def introduced(path: Path | str, **options: Any) -> list[list[str]]:
    loaded = load_conversations(DataOptions(dataset=[str(path)], dataset_shuffle=False, **options))
    return [[message.content for message in item.conversation.messages] for item in loaded.train]


@pytest.mark.parameter("model_name")
@pytest.mark.parameter("model_author")
def test_name_and_author_are_filled_in_by_language(persona: Path):
    two = introduced(persona, model_name=["小燕", "Swifty"], model_author=["某人", "Someone"])
    assert two == [["你是谁？", "我是小燕，由某人开发。"], ["Who are you, Swifty?", "I am Swifty of Someone."]]
    one = introduced(persona, model_name=["Swifty"], model_author=["Someone"])
    assert one == [["你是谁？", "我是Swifty，由Someone开发。"], ["Who are you, Swifty?", "I am Swifty of Someone."]]


@pytest.mark.parameter("model_name")
@pytest.mark.parameter("model_author")
def test_a_placeholder_without_its_option_is_an_error(persona: Path):
    with pytest.raises(DataError, match=r"{{AUTHOR}}; say what it stands for with --model_author"):
        introduced(persona, model_name=["Swifty"])
    with pytest.raises(DataError, match=r"{{NAME}}; say what it stands for with --model_name"):
        introduced(persona, model_author=["Someone"])


@pytest.mark.parameter("model_name")
def test_a_name_without_self_cognition_rows_is_an_error(ten: Path, persona: Path):
    with pytest.raises(DataError, match="--model_name: no effect without the self-cognition rows"):
        introduced(ten, model_name=["Swifty"])
    with pytest.raises(DataError, match=r"--model_author takes .* \(got 3\)"):
        introduced(persona, model_name=["a"], model_author=["a", "b", "c"])


def test_subsets_of_self_cognition_switch_thinking_off(persona: Path):
    both = {"model_name": ["N"], "model_author": ["A"]}
    plain = introduced(persona, **both)
    assert introduced(f"{persona}:default", **both) == plain
    qwen3 = introduced(f"{persona}:qwen3", **both)
    assert qwen3 == [[f"{query} /no_think", f"<think>\n\n</think>\n\n{reply}"] for query, reply in plain]
    empty = introduced(f"{persona}:empty_think", **both)
    assert empty == [[query, f"<think>\n\n</think>\n\n{reply}"] for query, reply in plain]
    assert introduced(f"{persona}:all#6", **both) == plain + qwen3 + empty
    with pytest.raises(DataError, match=r"no subset 'qwen2'. There are: default, qwen3, empty_think, all"):
        introduced(f"{persona}:qwen2", **both)


def test_a_self_cognition_row_without_a_language_is_a_bad_row(tmp_path: Path):
    path = tiny.jsonl(tmp_path / "self-cognition.jsonl", [*PERSONA, {"query": "q", "response": "r", "tag": "fr"}])
    data = DataOptions(dataset=[str(path)], model_name=["N"], model_author=["A"])
    report = load_conversations(data).report
    [(count, row)] = report.dropped.values()
    assert (count, row.line, row.key_path) == (1, 3, "tag")


def test_rows_of_other_data_sets_keep_what_looks_like_a_placeholder(tmp_path: Path, persona: Path):
    other = tiny.jsonl(tmp_path / "other.jsonl", [{"query": "Explain {{NAME}}", "response": "a placeholder"}])
    assert introduced(other) == [["Explain {{NAME}}", "a placeholder"]]
    [row] = read_file(other)
    assert isinstance(row, Row)
