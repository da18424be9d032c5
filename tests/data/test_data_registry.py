from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from swift import dataset as public
from swift.catalog.components import PREPARATIONS
from swift.catalog.datasets import BUILT_IN, DatasetMeta, SubsetDataset
from swift.chat.messages import Conversation
from swift.commands.begin import load_plugin
from swift.core.errors import DataError, UsageError
from swift.data import library, registry
from swift.data.conversations import LoadedConversations, load_conversations
from swift.data.library import HubAccess
from swift.data.preprocessors import (
    AlpacaPreprocessor,
    AutoPreprocessor,
    ClsGenerationPreprocessor,
    ClsPreprocessor,
    MessagesPreprocessor,
    ResponsePreprocessor,
    TextGenerationPreprocessor,
)
from swift.data.registry import DatasetRegistry, chosen_subsets, preparation
from swift.data.tasks import parts
from swift.options.data import DataOptions


def load(*arguments: str, access: HubAccess | None = None, **options: Any) -> LoadedConversations:
    return load_conversations(DataOptions(dataset=list(arguments), dataset_shuffle=False, **options), access)


def said(loaded: LoadedConversations) -> list[list[str]]:
    return [[message.content for message in item.conversation.messages] for item in loaded.train]


def info(folder: Path, *entries: dict[str, Any]) -> str:
    path = folder / "info.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return str(path)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> DatasetRegistry:
    """A registry of the built-in data sets that ends with the test."""
    made = DatasetRegistry(BUILT_IN)
    monkeypatch.setattr(registry, "REGISTRY", made)
    monkeypatch.setattr(library, "REGISTRY", made)
    return made


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple]]:
    """A stand-in for downloads: files by (id, subset, split), and the calls that were made."""
    calls: list[tuple] = []

    def holding(files: dict[tuple[str, str | None, str], Path]) -> list[tuple]:
        def fetch(
            dataset_id: str, *, use_hf: bool, revision: Any, subset: str | None, split: str, token: Any, force: bool
        ) -> list[Path]:
            calls.append((dataset_id, "hf" if use_hf else "ms", subset, split, token, force))
            return [files[dataset_id, subset, split]]

        monkeypatch.setattr(library, "fetch", fetch)
        return calls

    return holding


# ------------------------------------------------------------------------------------------------ --custom_dataset_info


@pytest.mark.parameter("custom_dataset_info")
def test_a_json_file_gives_a_local_data_set_a_name_and_new_names_of_columns(tmp_path: Path):
    tiny.jsonl(tmp_path / "mine.jsonl", [{"Q": "u", "A": "a"}])
    custom = info(
        tmp_path, {"dataset_name": "mine", "dataset_path": "mine.jsonl", "columns": {"q": "query", "A": "response"}}
    )
    assert said(load("mine", custom_dataset_info=[custom])) == [["u", "a"]]
    assert said(load("mine#3", custom_dataset_info=[custom])) == [["u", "a"]] * 3
    assert said(load(str(tmp_path / "mine.jsonl"), custom_dataset_info=[custom])) == [["u", "a"]]
    with pytest.raises(DataError, match="mine"):
        load("./mine")


@pytest.mark.parameter("custom_dataset_info")
def test_json_may_be_written_on_the_command_line(tmp_path: Path):
    path = tiny.jsonl(tmp_path / "rows.jsonl", [{"q": "u", "response": "a"}])
    text = json.dumps([{"dataset_name": "mine", "dataset_path": str(path), "columns": {"q": "query"}}])
    assert said(load("mine", custom_dataset_info=[text])) == [["u", "a"]]


@pytest.mark.parameter("custom_dataset_info")
def test_messages_with_keys_and_roles_of_their_own(tmp_path: Path):
    talk = [{"speaker": "me", "says": "u"}, {"speaker": "you", "says": "a"}]
    tiny.jsonl(tmp_path / "rows.jsonl", [{"talk": {"turns": [{"speaker": "rules", "says": "s"}, *talk]}}])
    options = {
        "role_key": "speaker",
        "content_key": "says",
        "user_role": "me",
        "assistant_role": "you",
        "system_role": "rules",
        "inner_key": "turns",
    }
    entry = {"dataset_name": "mine", "dataset_path": "rows.jsonl", "columns": {"talk": "messages"}, "messages": options}
    loaded = load("mine", custom_dataset_info=[info(tmp_path, entry)])
    assert said(loaded) == [["s", "u", "a"]]
    assert [message.role for message in loaded.train[0].conversation.messages] == ["system", "user", "assistant"]


@pytest.mark.parameter("custom_dataset_info")
@pytest.mark.parameter("dataset")
def test_subsets_are_chosen_and_counted_together(tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / "data" / name).mkdir(parents=True)
        tiny.jsonl(tmp_path / "data" / name / "train.jsonl", [{"query": f"{name}{i}", "x": "r"} for i in range(3)])
        tiny.jsonl(tmp_path / "data" / name / "test.jsonl", [{"query": f"{name} test", "x": "r"}])
    subsets = [
        {"subset": "a", "columns": {"x": "response"}},
        {"subset": "b", "name": "second", "split": ["test"], "columns": {"x": "response"}},
        {"subset": "c", "columns": {"x": "response"}, "is_weak_subset": True},
    ]
    entry = {"dataset_name": "mine", "dataset_path": "data", "subsets": subsets}
    custom = info(tmp_path, entry)

    def queries(argument: str) -> list[str]:
        return [turns[0] for turns in said(load(argument, custom_dataset_info=[custom]))]

    assert queries("mine:a") == ["a0", "a1", "a2"]
    assert queries("mine:second") == ["b test"]
    assert queries("mine:a/second#4") == ["a0", "a1", "a2", "b test"]
    assert queries("mine:all") == ["a0", "a1", "a2", "b test"]
    with pytest.raises(DataError, match=r"several subsets. Choose with :name, of a, second, c, or take :all"):
        queries("mine")
    with pytest.raises(DataError, match=r"no subset 'd'. There are: a, second, c, all"):
        queries("mine:d")
    entry["subsets"] = ["default", {"subset": "a", "columns": {"x": "response"}}]
    custom = info(tmp_path, entry)
    assert len(queries("mine")) == 9


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"dataset_nam": "x", "dataset_path": "y"}, r"entry 2: unknown key 'dataset_nam'. Did you mean dataset_name"),
        ({"dataset_name": "x"}, "entry 2: says not where the rows are"),
        ({"dataset_path": 3}, "entry 2: dataset_path must be a text"),
        ({"dataset_path": "y", "split": "train"}, "entry 2: split must be a list"),
        ({"dataset_path": "y", "columns": ["q"]}, "entry 2: columns must map names to names"),
        ({"dataset_path": "y", "messages": {"rolekey": "r"}}, "entry 2, messages: unknown key 'rolekey'"),
        ({"dataset_path": "y", "subsets": []}, "entry 2: subsets must be a list"),
        ({"dataset_path": "y", "subsets": [{"split": ["a"]}]}, "entry 2, subset 1: has no name"),
        ({"dataset_path": "y", "subsets": [3]}, "entry 2, subset 1: is no object"),
        ({"dataset_path": "y", "huge_dataset": "yes"}, "entry 2: huge_dataset must be true or false"),
    ],
)
def test_a_mistake_in_a_json_file_is_named_with_file_and_entry(tmp_path: Path, entry: dict, complaint: str):
    custom = info(tmp_path, {"dataset_name": "fine", "dataset_path": "rows.jsonl"}, entry)
    with pytest.raises(DataError, match=r"info\.json, " + complaint):
        load("fine", custom_dataset_info=[custom])


def test_json_that_is_no_list_of_entries_is_named(tmp_path: Path):
    (tmp_path / "bad.json").write_text('[{"a": 1}', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.json is no JSON: .* line 1"):
        load("x", custom_dataset_info=[str(tmp_path / "bad.json")])
    with pytest.raises(DataError, match=r"\(inline\) must be a list"):
        load("x", custom_dataset_info=['{"a": 1}'])
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        load("x", custom_dataset_info=[str(tmp_path / "none.json")])


def test_one_run_does_not_see_what_another_registered(tmp_path: Path):
    tiny.jsonl(tmp_path / "rows.jsonl", [{"query": "u"}])
    custom = info(tmp_path, {"dataset_name": "mine", "dataset_path": "rows.jsonl"})
    for _ in range(2):
        load("mine", custom_dataset_info=[custom])
    with pytest.raises(UsageError, match="registered already"):
        load("mine", custom_dataset_info=[custom, custom])
    assert registry.REGISTRY.find("mine") is None


# ---------------------------------------------------------------------------------------------------------- registration


def test_names_are_taken_once_unless_they_may_be_replaced(fresh: DatasetRegistry):
    first, second = (DatasetMeta("a/b", dataset_name="mine", help=text) for text in "12")
    public.register_dataset(first)
    with pytest.raises(UsageError, match="mine is registered already"):
        public.register_dataset(second)
    public.register_dataset(second, exist_ok=True)
    assert fresh.find("mine") is fresh.find("a/b") is second
    with pytest.raises(UsageError, match="needs a name"):
        public.register_dataset(DatasetMeta())
    with pytest.raises(UsageError, match="different names"):
        public.register_dataset(DatasetMeta("c/d", subsets=["x", SubsetDataset("x")]))


def test_of_two_data_sets_with_one_id_the_later_is_found_by_it(fresh: DatasetRegistry):
    mine = DatasetMeta("modelscope/gsm8k", dataset_name="my_gsm8k")
    public.register_dataset(mine)
    assert fresh.find("modelscope/gsm8k") is mine
    assert fresh.find("openai/gsm8k") is not mine


def test_infos_can_be_registered_for_the_process(fresh: DatasetRegistry, tmp_path: Path):
    made = public.register_dataset_info(info(tmp_path, {"dataset_name": "mine", "dataset_path": "rows.jsonl"}))
    assert fresh.find("mine") is made[0]
    assert public.register_dataset_info([{"ms_dataset_id": "x/y"}])[0] is fresh.find("x/y")


@pytest.mark.parameter("external_plugins")
def test_a_plugin_registers_a_data_set_with_a_function_of_its_own(
    fresh: DatasetRegistry, tmp_path: Path, logged: list[str]
):
    rows = [{"q": "1", "a": "one"}, {"q": "skip", "a": ""}, {"q": "2", "a": "two"}, {"q": "bad"}]
    data = tiny.jsonl(tmp_path / "rows.jsonl", rows)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from swift.dataset import DatasetMeta, ResponsePreprocessor, register_dataset\n"
        "class Twice(ResponsePreprocessor):\n"
        "    def preprocess(self, row):\n"
        "        if row['q'] == 'skip':\n"
        "            return None\n"
        "        made = super().preprocess({'query': row['q'], 'response': row['a']})\n"
        "        return [made, {'query': row['q'] + '?', 'response': row['a'].upper()}]\n"
        f"register_dataset(DatasetMeta(dataset_name='twice', dataset_path={str(data)!r}, preprocess_func=Twice()))\n"
    )
    load_plugin(plugin)
    loaded = load("twice")
    assert said(loaded) == [["1", "one"], ["1?", "ONE"], ["2", "two"], ["2?", "TWO"]]
    [(count, row)] = loaded.report.dropped.values()
    assert (count, row.line, row.reason, row.detail) == (1, 4, "its data set cannot prepare it", "KeyError: 'a'")


def test_a_load_function_names_the_files_of_a_subset(fresh: DatasetRegistry, tmp_path: Path):
    path = tiny.jsonl(tmp_path / "small.jsonl", [{"query": "u"}])
    public.register_dataset(
        DatasetMeta("a/b", subsets=["small", "none"], load_function=lambda _, part: [tmp_path / f"{part.name}.jsonl"])
    )
    assert said(load("a/b:small")) == [["u"]]
    with pytest.raises(DataError, match=r"load_function of a/b gives .*none\.jsonl, which is no file"):
        load("a/b:none")
    path.unlink()


def test_columns_of_the_command_line_come_before_those_of_the_registry(fresh: DatasetRegistry, tmp_path: Path):
    tiny.jsonl(tmp_path / "rows.jsonl", [{"x": "u", "y": "a"}])
    public.register_dataset(
        DatasetMeta(
            dataset_name="mine", dataset_path=str(tmp_path / "rows.jsonl"), columns={"z": "query", "y": "response"}
        )
    )
    assert said(load("mine", columns={"x": "z"})) == [["u", "a"]]


# ------------------------------------------------------------------------------------------------------------------ hubs


@pytest.mark.parameter("dataset")
def test_a_registered_name_is_fetched_from_the_hub_that_is_asked(hub: Any, tmp_path: Path):
    rows = tiny.jsonl(tmp_path / "gsm.jsonl", [{"question": "u", "answer": "so\n#### 1,234"}])
    calls = hub({("modelscope/gsm8k", "main", "train"): rows, ("openai/gsm8k", "main", "train"): rows})
    loaded = load("modelscope/gsm8k", remove_unused_columns=False)
    assert said(loaded) == [["u", "so\n#### 1,234"]]
    assert loaded.train[0].conversation.extra == {"solution": "1234"}
    load("modelscope/gsm8k", access=HubAccess(use_hf=True, token="t"), download_mode="force_redownload")
    load("hf::modelscope/gsm8k")
    load("ms::openai/gsm8k", access=HubAccess(use_hf=True))
    assert calls == [
        ("modelscope/gsm8k", "ms", "main", "train", None, False),
        ("openai/gsm8k", "hf", "main", "train", "t", True),
        ("openai/gsm8k", "hf", "main", "train", None, False),
        ("modelscope/gsm8k", "ms", "main", "train", None, False),
    ]
    assert "'t'" not in repr(HubAccess(token="t"))
    with pytest.raises(DataError, match=r"iic/ms_bench has no id on Hugging Face. It is on ModelScope"):
        load("iic/ms_bench", access=HubAccess(use_hf=True))


@pytest.mark.parameter("dataset")
def test_an_unregistered_name_is_fetched_with_its_subsets_as_they_are(hub: Any, tmp_path: Path):
    one, two = (tiny.jsonl(tmp_path / f"{name}.jsonl", [{"query": name, "response": "r"}]) for name in ("one", "two"))
    calls = hub({("a/b", "x", "train"): one, ("a/b", "y", "train"): two, ("a/b", None, "train"): two})
    assert said(load("a/b:x/y")) == [["one", "r"], ["two", "r"]]
    assert said(load("a/b")) == [["two", "r"]]
    assert [call[2] for call in calls] == ["x", "y", None]


def test_every_split_of_a_subset_is_fetched(hub: Any, tmp_path: Path):
    row = {"query": "q", "positive": ["p"], "negative": ["n1", "n2"]}
    files = {
        ("MTEB/scidocs-reranking", None, split): tiny.jsonl(tmp_path / f"{split}.jsonl", [row])
        for split in ("validation", "test")
    }
    calls = hub(files)
    loaded = load("MTEB/scidocs-reranking")
    assert [call[3] for call in calls] == ["validation", "test"]
    assert [part.label for part in parts(loaded.train[0].conversation, "reranker")] == [1, 0, 0]


def test_every_data_set_is_found_before_any_is_read_and_all_that_are_missing_are_named(
    tmp_path: Path, logged: list[str]
):
    path = tiny.jsonl(tmp_path / "rows.jsonl", [{"nothing": 1}])
    with pytest.raises(
        DataError, match=r"--dataset \./no1\.jsonl: there is no file(.|\n)*--val_dataset /no2"
    ) as caught:
        load(str(path), "./no1.jsonl", val_dataset=["/no2"])
    assert "none of its" not in str(caught.value)


def test_a_local_copy_of_a_registered_data_set_is_prepared_as_it_is(tmp_path: Path, logged: list[str]):
    copy = tmp_path / "gsm8k"
    (copy / "main").mkdir(parents=True)
    tiny.jsonl(copy / "main" / "train.jsonl", [{"question": "u", "answer": "a #### 1"}])
    assert said(load(str(copy))) == [["u", "a #### 1"]]
    assert any("taken for a copy of the registered data set modelscope/gsm8k" in line for line in logged)
    tiny.jsonl(copy / "main" / "train.jsonl", [{"question": "u", "answer": "one"}])
    with pytest.raises(DataError, match="has no line of the form #### number"):
        load(str(copy))
    file = tiny.jsonl(tmp_path / "gsm8k.jsonl", [{"question": "u", "answer": "one"}])
    assert said(load(str(file))) == [["u", "one"]]


# -------------------------------------------------------------------------------------------------------------- built in


def test_no_two_built_in_data_sets_share_a_name():
    names = [name for meta in BUILT_IN for name in {*meta.names}]
    assert len(names) == len(set(names))


def test_every_preparation_that_is_named_exists_and_is_used():
    used = {part.preprocess_func for meta in BUILT_IN for part in (meta, *meta.parts)} - {None}
    assert used == set(PREPARATIONS)
    for meta in BUILT_IN:
        for part in meta.parts:
            preparation(meta, part)
    assert all(callable(PREPARATIONS[name]) for name in PREPARATIONS)


def test_subsets_are_chosen_as_they_are_asked_for():
    several = DatasetMeta("a/b", subsets=["default", "x", SubsetDataset("weak", is_weak_subset=True)])
    chosen = lambda meta, *asked: [part.name for part in chosen_subsets(meta, asked, "a/b")]  # noqa: E731 (short)
    assert chosen(several) == ["default"]
    assert chosen(several, "all") == ["default", "x"]
    assert chosen(several, "weak", "other") == ["weak", "other"]
    assert chosen(DatasetMeta("a/b", subsets=["only"])) == ["only"]
    assert chosen(DatasetMeta("a/b", subsets=["all", "cn"]), "all") == ["all"]


@pytest.mark.parametrize(
    ("name", "row", "task", "expected"),
    [
        (
            "hh_rlhf",
            {"chosen": "\n\nHuman: u\n\nAssistant: good", "rejected": "\n\nHuman: u\n\nAssistant: bad"},
            "preference",
            [["u", "good"], ["u", "bad"]],
        ),
        ("jd_generation", {"sentence": "s", "label": 1}, "supervised", [["Sentence: s\nIs its sentiment negative or positive?", "positive"]]),
        ("stsb_similarity", {"sentence1": "a", "sentence2": "b", "score": 0.5}, "embedding", [["a"], ["b"]]),
        ("stsb_positive", {"sentence1": "a", "sentence2": "b", "score": 0.8}, "embedding", [["a"], ["b"]]),
    ],
)  # fmt: skip
def test_rows_of_named_data_sets_fit_their_task(name: str, row: dict, task: Any, expected: list[list[str]]):
    made = PREPARATIONS[name](row)
    assert isinstance(made, dict)
    assert [[m.content for m in part.conversation.messages] for part in parts(read(made), task)] == expected


def test_named_data_sets_with_scores_and_numbers():
    pair = {"sentence1": "a", "sentence2": "b", "score": 0.5}
    assert PREPARATIONS["stsb_positive"](pair) is None
    assert read(PREPARATIONS["stsb_regression"](pair)).label == 0.5
    assert read(PREPARATIONS["stsb_generate"](pair)).messages[-1].content == "0.5"
    [part] = parts(read(PREPARATIONS["countdown"]({"target": 24, "nums": [4, 6]})), "prompt")
    assert "4, 6" in part.conversation.messages[0].content
    assert (part.conversation.extra["target"], part.conversation.extra["nums"]) == (24, [4, 6])


def read(made: Any) -> Conversation:
    from swift.data.formats import ConversationReader
    from swift.data.rows import Row

    return ConversationReader({}, keep_others=True).read(Row(made, "rows.jsonl", 1))


# --------------------------------------------------------------------------------------------------------- preprocessors


def test_preprocessors_give_rows_in_the_messages_format_and_keep_other_columns():
    both = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    assert ResponsePreprocessor()({"prompt": "u", "answer": "a", "level": 3}) == {"messages": both, "level": 3}
    assert ResponsePreprocessor(columns={"x": "query", "messages": "_"})({"x": "u", "answer": "a", "messages": []}) == {
        "messages": both
    }
    assert AlpacaPreprocessor()({"instruction": "u", "output": "a"}) == {"messages": both}
    assert AutoPreprocessor(columns={"x": "query"})({"x": "u", "z": 1}) == {"query": "u", "z": 1}
    assert MessagesPreprocessor(user_role="me")({"messages": [{"from": "me", "value": "u"}]}) == {
        "messages": [{"from": "user", "value": "u"}]
    }
    assert ClsPreprocessor()({"query": "u", "label": "2"}) == {"messages": both[:1], "label": 2}


def test_tasks_can_be_put_into_words():
    made = TextGenerationPreprocessor(prompt="Translate: {{QUERY}}!")({"query": "u", "response": "a"})
    assert [m["content"] for m in made["messages"]] == ["Translate: u!", "a"]
    with pytest.raises(ValueError, match="QUERY"):
        TextGenerationPreprocessor(prompt="no place")
    classes = ClsGenerationPreprocessor(["no", "yes"], task="Entailment", is_pair_seq=True)
    made = classes({"sentence1": "a", "sentence2": "b", "label": 1})
    assert made["messages"][0]["content"] == "Task: Entailment\nSentence1: a\nSentence2: b\nCategory: no, yes\nOutput:"
    assert made["messages"][1]["content"] == "yes"
    with pytest.raises(DataError, match="label"):
        classes({"sentence1": "a", "sentence2": "b", "label": 2})
