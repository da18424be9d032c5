"""The way from argv and files to a command: values, errors, sources."""

from __future__ import annotations

import json

import pytest

from swift.core.errors import UsageError
from swift.options.declare import Command, Options, Origin, flags, option, part
from swift.options.expectations import expected as words_for
from swift.options.parse import COMMANDS, parse, with_checkpoint

ROWS = ["--model", "m", "--dataset", "d.jsonl"]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "d.jsonl").write_text('{"text": "hello"}\n')


def problems(name: str, argv: list[str], language: str = "en") -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse(name, argv, language)
    return list(caught.value.problems)


def test_dashes_and_underscores_name_the_same_flag():
    assert parse("sft", [*ROWS, "--lora-rank", "4"]).tuner.lora_rank == 4
    assert parse("sft", [*ROWS, "--lora_rank=4"]).tuner.lora_rank == 4


def test_a_bare_switch_is_true_and_null_is_unset():
    command = parse("sft", [*ROWS, "--padding_free", "--max_length", "null", "--eval_on_start", "false"])
    assert command.template.padding_free is True
    assert command.template.max_length is None
    assert command.sources["max_length"].origin is not Origin.COMMAND_LINE


def test_lists_come_by_blanks_or_as_json():
    argv = [*ROWS, "--target_modules", "q_proj", "k_proj"]
    assert parse("sft", argv).tuner.target_modules == ["q_proj", "k_proj"]
    assert parse("sft", [*ROWS, "--target_modules", '["q_proj"]']).tuner.target_modules == ["q_proj"]


def test_dicts_come_as_json_text_or_as_a_file(tmp_path):
    (tmp_path / "map.json").write_text('{"a": "query"}')
    for given in ('{"a": "query"}', "map.json", "{'a': 'query'}"):
        assert parse("sft", [*ROWS, "--columns", given]).data.columns == {"a": "query"}


@pytest.mark.parametrize("text", ["a" * 300, "~nobody-of-this-name/map.json", "{[1]: 2}"])
def test_what_is_neither_a_dict_nor_the_path_of_one_is_refused(text):
    assert any(problem.startswith("--columns ") for problem in problems("sft", [*ROWS, "--columns", text]))


def test_a_negative_number_is_a_value():
    assert parse("sft", [*ROWS, "--max_steps", "-1"]).training.max_steps == -1


def test_the_command_line_wins_over_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("model: m\ndataset: d.jsonl\nlora-rank: 2\nlora_alpha: 64\nmax_length: null\n")
    command = parse("sft", ["--config", "c.yaml", "--lora_rank", "4"])
    assert (command.tuner.lora_rank, command.tuner.lora_alpha) == (4, 64)
    assert command.data.dataset == ["d.jsonl"]
    assert str(command.sources["lora_alpha"]) == "file: c.yaml:4"
    assert command.sources["lora_rank"].origin is Origin.COMMAND_LINE


@pytest.mark.parameter("config")
def test_yaml_and_json_files_mean_the_same(tmp_path):
    (tmp_path / "c.yaml").write_text("model: m\ndataset: [d.jsonl]\nlearning_rate: 1e-3\ncolumns:\n  a: query\n")
    (tmp_path / "c.json").write_text(
        json.dumps({"model": "m", "dataset": ["d.jsonl"], "learning_rate": 0.001, "columns": {"a": "query"}})
    )
    one, other = (parse("sft", ["--config", name]).values() for name in ("c.yaml", "c.json"))
    assert {**one, "config": None} == {**other, "config": None}
    assert one["learning_rate"] == 0.001


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: [\n", "--config c.yaml, line 2: not valid YAML or JSON"),
        ("- model\n", "--config c.yaml: must hold `option: value` pairs"),
        ("model: m\nmodel: n\n", "--config c.yaml, line 2: model stands there twice"),
        ("config: other.yaml\n", "--config c.yaml, line 1: a configuration file cannot name another"),
        ("model: m\non: 1\n", "unknown option --on"),
        ("null: 1\n", "unknown option --null"),
        ("<<: {seed: 1}\n", "unknown option --<<"),
        ("[seed]: 1\n", "unknown option --["),
        ("model: m\nseed: !!python/name:os.system\n", "--config c.yaml, line 2: not valid YAML or JSON"),
        ("model: m\nlora_rank: many\n", "--lora_rank 'many' (c.yaml, line 2): must be a whole number"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, expected):
    (tmp_path / "c.yaml").write_text(text)
    assert any(problem.startswith(expected) for problem in problems("sft", ["--config", "c.yaml"]))


@pytest.mark.parametrize("name", ["nowhere.yaml", "a" * 5000, "~nobody-of-this-name/c.yaml"])
def test_a_missing_config_is_named(name):
    assert f"--config {name}: there is no such file" in problems("sft", ["--config", name])


def test_all_mistakes_are_reported_at_once():
    found = problems(
        "sft",
        [
            *ROWS,
            "--lora_rnk",
            "3",
            "--learning_rate",
            "fast",
            "--train_type",
            "full",
            "--packing",
            "maybe",
        ],
    )
    assert found == [
        "--learning_rate 'fast': must be a number greater than 0",
        "--packing 'maybe': must be true or false",
        "unknown option --lora_rnk; did you mean --lora_rank?",
        "--train_type is called --tuner_type now",
    ]


@pytest.mark.parametrize(("words", "why"), [
    (["--max_steps", "-2"], "必须为步数，或 -1（由 --num_train_epochs 决定）"),
    (["--save_steps", "1.5"], "必须为整数步数，或小于 1 的步数比例"),
    (["--init_weights", "zeros"], "必须为以下之一："),
    (["--columns", "{a"], "不是合法的 JSON：第 2 个字符处"),
    (["--columns", "nowhere.json"], "必须为以 { 开头的 JSON 文本"),
])  # fmt: skip
def test_a_value_that_does_not_fit_is_explained_in_chinese(words, why):
    (text,) = problems("sft", [*ROWS, *words], "zh")
    assert text.startswith(f"{words[0]} {words[1]!r}：{why}")


def test_a_checkpoint_that_arrives_later_is_judged_in_the_language_of_the_command_line(tmp_path):
    command = parse("infer", ["--model", "owner/name"], "zh")
    (tmp_path / "args.json").write_text("no JSON")
    with pytest.raises(UsageError, match=r"无法读取 .*args\.json"):
        with_checkpoint(command, tmp_path)


def test_every_kind_of_value_that_fits_is_said():
    class Group(Options):
        size: bool | int | float | str | None = None

    info = Group.model_fields["size"]
    assert words_for(info, "en") == "true or false, a whole number, a number or text"
    assert words_for(info, "zh") == " true 或 false、整数、数字或文本"


def test_an_option_of_another_command_is_placed():
    assert problems("sft", [*ROWS, "--infer_backend", "vllm"]) == [
        "--infer_backend is no option of swift sft; it belongs to swift infer, swift deploy, swift rollout, swift eval, swift app"
    ]


def test_a_prefix_of_a_flag_is_not_taken_for_it():
    assert problems("sft", [*ROWS, "--learning_rat", "1e-3"]) == [
        "unknown option --learning_rat; did you mean --learning_rate?"
    ]


def test_a_flag_given_twice_with_two_values_is_refused():
    assert problems("sft", [*ROWS, "--lora_rank", "2", "--lora_rank", "4"]) == [
        "--lora_rank is given twice, as '2' and as '4'. Keep one"
    ]


def test_words_and_values_without_a_place_are_named():
    assert problems("sft", ["foo", *ROWS])[0].startswith("'foo' belongs to no option")
    assert problems("sft", [*ROWS, "--system", "You", "are"])[0].startswith("--system takes one value (got 2: You are)")
    assert problems("sft", [*ROWS, "--lora_rank"])[0] == "--lora_rank needs a value: a whole number greater than 0"


@pytest.mark.parameter("ignore_args_error")
def test_unknown_flags_become_warnings_when_asked(caplog):
    argv = [*ROWS, "-f", "kernel.json"]
    assert problems("sft", [*ROWS, "--no_such_thing", "1"])
    command = parse("sft", [*ROWS, "--no_such_thing", "1", "--ignore_args_error", "true"])
    assert command.general.ignore_args_error
    assert argv


def test_errors_speak_chinese_when_asked():
    assert problems("sft", [*ROWS, "--lora_rnk", "3"], "zh") == ["未知参数 --lora_rnk；您是否想用 --lora_rank？"]


def test_arguments_of_transformers_are_accepted_for_training_only():
    assert parse("sft", [*ROWS, "--adam_epsilon", "1e-7", "--use_cpu"]).extra == {"adam_epsilon": 1e-7, "use_cpu": True}
    assert problems("sft", [*ROWS, "--adam_epsilon", "tiny"]) == ["--adam_epsilon 'tiny': must be a number"]
    assert problems("infer", ["--model", "m", "--adam_epsilon", "1e-7"])[0].startswith("unknown option --adam_epsilon")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_parses_its_own_defaults_unchanged(name):
    table = flags(COMMANDS[name])
    assert all(flag.default is None or flag.default == flag.default for flag in table.values())
    assert len(table) > 80


def test_a_flag_declared_twice_or_an_override_of_nothing_is_a_fault_that_shows():
    class One(Options):
        rank: int = option(1)

    class Twice(Command):
        name = "twice"
        one: One = part()
        two: One = part()

    class Wrong(Command):
        name = "wrong"
        one: One = part(rnk=2)

    with pytest.raises(TypeError, match="declares --rank in one and in two"):
        flags(Twice)
    with pytest.raises(TypeError, match="rnk"):
        flags(Wrong)


@pytest.mark.parametrize(
    ("flag", "words", "value"),
    [("lmdeploy_quant_policy", ["--infer_backend", "lmdeploy"], 8), ("temperature", [], 1.0)],
)
def test_a_choice_of_numbers_is_one_on_the_command_line_too(flag, words, value):
    assert parse("infer", ["--model", "m", *words, f"--{flag}", str(value)]).values()[flag] == value
    assert parse("infer", ["--model", "m", *words, f"--{flag}={value}"]).values()[flag] == value


@pytest.mark.parametrize("name", COMMANDS)
def test_every_choice_can_be_said_in_words(name):
    """No word is refused as none of the choices, whatever else a rule may say of it."""
    refused = []
    for flag in flags(COMMANDS[name]).values():
        for choice in flag.choices:
            try:
                parse(name, [f"--{flag.name}", str(choice)])
            except UsageError as error:
                refused += [
                    problem for problem in error.problems if problem.startswith(f"--{flag.name} '{choice}': must")
                ]
    assert not refused
