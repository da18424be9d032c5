"""Configurations of DeepSpeed and FSDP2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swift.core.errors import UsageError
from swift.parallel.sharding import DEEPSPEED, FSDP, deepspeed_config, fsdp_config, zero_stage


@pytest.mark.parametrize("name", DEEPSPEED)
def test_a_preset_has_the_stage_and_the_offloading_of_its_name(name: str) -> None:
    config = deepspeed_config(name)
    zero = config["zero_optimization"]
    assert zero_stage(config) == int(name[4])
    assert ("offload_optimizer" in zero) == name.endswith("_offload")
    assert ("offload_param" in zero) == (name == "zero3_offload")


def test_changing_a_configuration_leaves_its_preset_alone() -> None:
    deepspeed_config("zero3", hpz_partition_size=8)["bf16"]["enabled"] = True
    assert deepspeed_config("zero3") == DEEPSPEED["zero3"]
    assert "zero_hpz_partition_size" not in DEEPSPEED["zero3"]["zero_optimization"]


def test_json_text_and_a_file_say_the_same(tmp_path: Path) -> None:
    mine = {"zero_optimization": {"stage": 1}, "gradient_clipping": 0.5}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(mine))
    assert deepspeed_config(mine) == deepspeed_config(str(file)) == mine


@pytest.mark.parameter("zero_hpz_partition_size")
def test_zero_plus_plus_and_tensor_parallelism_are_written_into_the_configuration() -> None:
    assert deepspeed_config("zero3", hpz_partition_size=8)["zero_optimization"]["zero_hpz_partition_size"] == 8
    assert deepspeed_config("zero2", autotp_size=2)["tensor_parallel"]["autotp_size"] == 2


@pytest.mark.parametrize(("settings", "words"), [
    ({"value": "zero2", "hpz_partition_size": 8}, "--zero_hpz_partition_size 8.*stage 2"),
    ({"value": "zero3", "autotp_size": 2}, "--deepspeed_autotp_size 2.*stage 3"),
    ({"value": "zero4"}, "--deepspeed zero4.*zero2_offload"),
])  # fmt: skip
def test_what_cannot_work_is_refused_with_the_way_out(settings: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        deepspeed_config(**settings)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text("{")
    with pytest.raises(UsageError, match=r"--deepspeed .*mine\.json cannot be read as JSON"):
        deepspeed_config(str(file))
    file.write_text("[]")
    with pytest.raises(UsageError, match=r"--fsdp .*mine\.json must hold a JSON object \(found list\)"):
        fsdp_config(str(file))


def test_fsdp_is_read_in_both_of_its_forms(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"fsdp": "full_shard auto_wrap offload", "fsdp_config": {"fsdp_version": 2}}))
    assert fsdp_config(str(file)) == {"cpu_offload": True, "version": 2}
    assert fsdp_config("fsdp2") == FSDP["fsdp2"]


def test_the_first_version_of_fsdp_is_refused() -> None:
    with pytest.raises(UsageError, match="version 1 is not supported"):
        fsdp_config({"version": 1})


@pytest.mark.parametrize("text", ["a" * 5000, "nul\0", "~nobody-of-this-name/x"], ids=["long", "NUL", "unknown user"])
def test_a_text_that_can_be_no_path_is_no_configuration(text):
    with pytest.raises(UsageError, match="is neither a preset"):
        deepspeed_config(text)
