"""The surface is the manual's: every row is a flag of its commands, with its default, its choices and its help."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import pytest

from swift.catalog.knobs import KNOBS
from swift.core import environment
from swift.options import commands
from swift.options.declare import build, flags
from swift.options.defaults import derive
from swift.options.expectations import expected
from swift.options.rules import LATER_ZH, RENAMED
from swift.options.rules_preference import LOSSES

HERE = Path(__file__).parent
ROWS = json.loads((HERE / "parameters.json").read_text(encoding="utf-8"))
COMMANDS = {
    cls.name: cls
    for cls in (
        commands.Pt, commands.Sft, commands.Rlhf, commands.Infer, commands.Deploy, commands.Rollout, commands.Eval,
        commands.App, commands.Export, commands.MergeLora, commands.Sample, commands.WebUi,
    )
}  # fmt: skip
OURS = {"parity": commands.Parity}
"""Commands that the manual does not have."""
METHODS = ("gkd", "grpo")
"""Groups of the manual whose rows hold for one --rlhf_type."""
OPEN = ("attn_impl", "deepspeed", "fsdp", "reward_funcs")
"""Options whose rows list presets or examples: a file, a name of one's own or a further choice is fine too."""
MORE = {"tuner_type": {"bone"}}
"""Choices that stand in other rows of the manual only: that of init_weights says what it is for Bone."""
SPECIAL = {("pt", "use_chat_template"): False, ("pt", "loss_scale"): "all", ("merge-lora", "merge_lora"): True}
"""What the rows' remarks say of swift pt, and what swift merge-lora is."""


def _is_flag(row) -> bool:
    return row["commands"] not in {"environment", "environment or --model_kwargs"} and not row["name"].isupper()


def _commands(row) -> list[str]:
    named = row["commands"].split()
    return list(COMMANDS) if named == ["all"] else [*named, *(["merge-lora"] if "export" in named else [])]


def _root(group: str) -> str:
    return group.partition(".")[0]


def _winners():
    """(command, row): of several rows of one flag the later, more special one; rows of one method apart."""
    last = {}
    for row in ROWS:
        if _is_flag(row):
            for command in _commands(row):
                key = (command, row["name"])
                if _root(row["group"]) in METHODS and key in last:
                    continue  # refines what holds for every method; see the test of method rows
                last[key] = row
    return last


def _same(found, wanted) -> bool:
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


def _derived(command: str, name: str, **values):
    cls = COMMANDS[command]
    return derive(build(cls, values, {})).values()[name]


def test_every_row_of_the_manual_is_a_flag_of_each_command_it_names():
    missing = [
        (command, row["name"]) for row in ROWS if _is_flag(row) for command in _commands(row)
        if row["name"] not in flags(COMMANDS[command])
    ]  # fmt: skip
    assert missing == []
    assert sum(map(_is_flag, ROWS)) > 450, "the rows were read"


def test_every_default_is_the_manuals():
    wrong = []
    for (command, name), row in _winners().items():
        flag, wanted = flags(COMMANDS[command])[name], SPECIAL.get((command, name), row["default"])
        if isinstance(wanted, str) and wanted.startswith("rule: "):
            found, wanted = (flag.default, flag.marks.rule), (None, wanted.removeprefix("rule: "))
        elif flag.default is None and wanted is not None:
            assert flag.marks.rule, f"{command} --{name} says how it is derived"
            found = _derived(command, name)
        else:
            found = flag.default
        if not _same(found, wanted):
            wrong.append((command, name, found, wanted))
    assert wrong == []


def test_every_default_of_one_method_is_the_manuals():
    checked = 0
    for row in ROWS:
        method = _root(row["group"])
        if not _is_flag(row) or method not in METHODS or str(row["default"]).startswith("rule: "):
            continue
        if row["default"] is not None:
            engine = {"use_vllm": True} if row["name"].startswith("vllm_enable") else {}
            found = _derived("rlhf", row["name"], rlhf_type=method, **engine)
            found = found[0] if isinstance(found, list) and len(found) == 1 else found
            assert _same(found, row["default"]), (method, row["name"], found)
            checked += 1
    assert checked > 40


def test_every_choice_is_the_manuals():
    rows = [(c, row) for (c, name), row in _winners().items() if "choices" in row and name not in OPEN]
    wrong = {
        (command, row["name"]) for command, row in rows
        if set(flags(COMMANDS[command])[row["name"]].choices) != set(row["choices"]) | MORE.get(row["name"], set())
    }  # fmt: skip
    assert wrong == set()
    assert len(rows) > 100
    grpo = next(row for row in ROWS if row["group"] == "grpo" and row["name"] == "loss_type")
    assert set(LOSSES["grpo"]) == set(grpo["choices"])


def test_every_important_row_is_marked():
    important = {(c, row["name"]) for row in ROWS if _is_flag(row) and row["important"] for c in _commands(row)}
    for command, name in _winners():
        marks = flags(COMMANDS[command])[name].marks
        assert marks.important == ((command, name) in important), (command, name)


def test_every_variable_of_the_environment_is_declared():
    rows = {row["name"]: row["default"] for row in ROWS if row["commands"] == "environment"}
    declared = {variable.name: variable.default for variable in environment.MANUAL}
    assert declared.keys() == rows.keys()
    values = {name: default for name, default in rows.items() if default not in {None, "all devices"}}
    assert {name: declared[name] for name in values} == {name: str(default) for name, default in values.items()}
    bucket = environment.SWIFT_UPDATE_WEIGHTS_BUCKET_SIZE
    assert bucket.integer() == next(row["default"] for row in ROWS if row["name"] == bucket.name)


def test_every_knob_of_a_model_family_is_listed_with_its_default():
    listed = {(", ".join(knobs.families), name): v for knobs in KNOBS for name, v in knobs.defaults.items()}
    rows = {}
    for row in ROWS:
        if row["group"].startswith("model_env:"):
            default = row["default"]
            if isinstance(default, str) and "*" in default:
                product = 1
                for factor in default.split("*"):
                    product *= ast.literal_eval(factor.strip())
                default = product
            rows[(row["group"].removeprefix("model_env:"), row["name"])] = default
    assert listed == rows


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_an_english_help(command):
    for flag in flags(COMMANDS[command]).values():
        text = flag.help
        assert text, f"--{flag.name} has no help"
        assert text.endswith("."), f"--{flag.name}: {text}"
        assert re.search(r"[\u4e00-\u9fff]", text) is None, f"--{flag.name} is not in English"
        assert "ZH" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_condition_speaks_of_flags_that_some_command_has(command):
    known = {name for cls in COMMANDS.values() for name in flags(cls)}
    for flag in flags(COMMANDS[command]).values():
        if flag.marks.when:
            named = set(re.findall(r"--(\w+)", flag.marks.when.words.en))
            assert named <= known, flag.name
            assert named == set(re.findall(r"--(\w+)", flag.marks.when.words.zh)), flag.name


def test_what_is_not_available_yet_has_a_name_in_both_languages():
    phrases = {flag.marks.later for cls in COMMANDS.values() for flag in flags(cls).values() if flag.marks.later}
    assert phrases == set(LATER_ZH)


def test_a_renamed_option_leads_to_one_that_exists():
    known = {name for cls in COMMANDS.values() for name in flags(cls)}
    assert set(RENAMED.values()) <= known
    assert not set(RENAMED) & known


def surface() -> str:
    """One line per command and flag: what it takes and what it is when nobody says."""
    lines = []
    for name, cls in (COMMANDS | OURS).items():
        for flag in flags(cls).values():
            default = f"derived: {flag.marks.rule}" if flag.default is None and flag.marks.rule else repr(flag.default)
            lines.append(f"{name} --{flag.name} | {expected(flag.info, 'en')} | {default}")
    return "\n".join(lines) + "\n"


def test_the_frozen_surface_is_current():
    """After a change that is meant: SWIFT_UPDATE_SURFACE=1 pytest tests/options/test_surface.py."""
    frozen = HERE / "surface.txt"
    if os.environ.get("SWIFT_UPDATE_SURFACE") == "1":
        frozen.write_text(surface(), encoding="utf-8")
    assert frozen.read_text(encoding="utf-8") == surface()
