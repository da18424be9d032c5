"""Files of weights are found whole, or the fault is named."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch

import tiny
from swift.core.errors import ModelError
from swift.models.info import check_weights, model_info
from swift.models.weights import check_folder, check_safetensors, check_weight_file, weight_files
from swift.options.model import ModelOptions


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of several files of weights."""
    folder = tmp_path / "sharded"
    tiny.model().save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.mark.parameter("check_model")
@pytest.mark.parametrize(
    ("left", "words"),
    [
        (-1, "{size} bytes are expected, {left} were found"),
        (-1000, "{size} bytes are expected, {left} were found"),
        (20, "the header alone takes .* bytes, 20 were found"),
        (1, "at least 8 bytes are expected, 1 were found"),
    ],
)
def test_a_truncated_file_is_named_with_the_bytes_expected_and_found(sharded, left, words):
    info = model_info(ModelOptions(model=str(sharded)))
    check_weights(info)
    victim = weight_files(sharded)[-1]
    size = victim.stat().st_size
    left = size + left if left < 0 else left
    os.truncate(victim, left)
    with pytest.raises(ModelError, match=f"{victim.name} is damaged .* {words.format(size=size, left=left)}"):
        check_weights(info)


def test_a_file_that_an_index_names_must_be_there(sharded):
    files = weight_files(sharded)
    assert len(files) > 1
    files[0].unlink()
    with pytest.raises(ModelError, match=rf"names {len(files)} files of weights, and 1 of them are not there"):
        check_folder(sharded)


def test_an_index_and_its_files_must_name_the_same_tensors(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.9.weight"] = weight_files(sharded)[0].name
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"places 'model.layers.9.weight' .* which does not hold it"):
        check_folder(sharded)


def test_an_index_that_is_none_is_named(sharded):
    (sharded / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match="is no index of weights"):
        weight_files(sharded)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{nonsense", "not the JSON"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "'a' needs 8 bytes, and 4 are set aside"),
        (b'{"a": {"shape": [2]}}', "'a' without type, shape and place"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, header, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(ModelError, match=words):
        check_safetensors(path)


def test_the_names_in_a_file_are_those_that_were_saved(sharded):
    from safetensors.torch import load_file

    for path in weight_files(sharded):
        assert check_safetensors(path) == set(load_file(path))


def test_a_truncated_file_of_torch_is_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(99)}, path)
    assert check_weight_file(path) is None
    os.truncate(path, path.stat().st_size - 30)
    with pytest.raises(ModelError, match=r"pytorch_model.bin is damaged"):
        check_folder(tmp_path)


def test_a_damaged_adapter_is_found_too(tmp_path):
    folder = tiny.checkpoint(tmp_path / "model")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    options = ModelOptions(model=str(folder), adapters=[str(adapter)])
    with pytest.raises(ModelError, match=r"the weights of the adapter are missing"):
        check_weights(model_info(options))
    (adapter / "adapter_model.safetensors").write_bytes(b"123")
    with pytest.raises(ModelError, match=r"adapter_model.safetensors is damaged"):
        check_weights(model_info(options))
