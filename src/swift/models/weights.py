"""This file knows the files that hold weights: which there are, and whether they are whole."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from swift.core.errors import ModelError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of one element of each type the safetensors format knows."""
ZIP_TAIL = 65_557
"""Bytes in which the directory of a zip archive must begin, counted from its end: 22 and a comment of up to 65,535."""


def weight_files(folder: Path) -> list[Path]:
    """The files a checkpoint's weights are read from, in the order transformers looks for them; [] when none.

    Raises ModelError when the index names files that are not there, or cannot be read.
    """
    for single, index in zip(SINGLES, INDEXES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _indexed(folder / index)
    return []


def check_safetensors(path: Path) -> set[str]:
    """The names of the tensors of a safetensors file, after its size was found to agree with its header.

    The layout: 8 bytes with the length of the header (little endian), the header as JSON, then the tensors. Only the
    header is read, so that a checkpoint of any size is checked in milliseconds. Raises ModelError naming the file and
    the bytes expected and found.
    """
    size = path.stat().st_size
    header, begin = _read_header(path)
    end = begin + _end_of_tensors(path, header)
    if end != size:
        raise _broken(path, f"{end} bytes are expected, {size} were found")
    return set(header)


def described_tensors(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file by name: `dtype`, `shape` and `data_offsets`. Only the header is read.

    Raises ModelError when the header cannot be read.
    """
    return _read_header(path)[0]


def check_folder(folder: Path) -> None:
    """Check every file of weights of a checkpoint, and that the index and the files name the same tensors.

    Raises ModelError for the first fault.
    """
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    named: dict[str, str] = _read_index(index) if index else {}
    for path in weight_files(folder):
        tensors = check_weight_file(path)
        if tensors is None:
            continue
        missing = sorted(name for name, file in named.items() if file == path.name and name not in tensors)
        if index and missing:
            raise ModelError(
                f"{index.name} in {folder} places {missing[0]!r} (and {len(missing) - 1} more) in {path.name}, which "
                f"does not hold it. The index and the files are not of one checkpoint: copy it again."
            )


def check_weight_file(path: Path) -> set[str] | None:
    """Check one file of weights; the names of its tensors, or None for a `.bin` file, whose names are pickled.

    A `.bin` file is a zip archive, whose directory stands at its end: a truncated file has none.
    """
    if path.suffix == ".safetensors":
        return check_safetensors(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(max(0, size - ZIP_TAIL))
        if is_zip and b"PK\x05\x06" not in file.read():
            raise _broken(path, f"its directory, which stands at the end, is not among its {size} bytes")
    return None


def _indexed(index: Path) -> list[Path]:
    """The files an index names, all of which must be there."""
    files = sorted(set(_read_index(index).values()))
    absent = [name for name in files if not (index.parent / name).is_file()]
    if absent:
        raise ModelError(
            f"{index.parent} is incomplete: {index.name} names {len(files)} files of weights, and {len(absent)} of "
            f"them are not there ({', '.join(absent[:4])}). Copy the checkpoint again."
        )
    return [index.parent / name for name in files]


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise ModelError(f"{index} is no index of weights: no JSON with a `weight_map`. Copy it again.") from None


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """What the header of a safetensors file says of its tensors, and the place in bytes where they begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise _broken(path, f"at least 8 bytes are expected, {size} were found")
        length = struct.unpack("<Q", start)[0]
        if 8 + length > size:
            raise _broken(path, f"the header alone takes {8 + length} bytes, {size} were found")
        try:
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise _broken(path, "its header is not the JSON the format asks for") from None
    header.pop("__metadata__", None)
    return header, 8 + length


def _end_of_tensors(path: Path, header: dict[str, Any]) -> int:
    """The bytes behind the header that the tensors take, each checked against its own shape and type."""
    end = 0
    for name, entry in header.items():
        try:
            begin, stop = entry["data_offsets"]
            bits = DTYPE_BITS.get(entry["dtype"])
            for size in entry["shape"]:
                bits = None if bits is None else bits * size
        except (KeyError, TypeError, ValueError):
            raise _broken(path, f"its header describes {name!r} without type, shape and place") from None
        if bits is not None and bits != 8 * (stop - begin):
            raise _broken(path, f"{name!r} needs {bits // 8} bytes, and {stop - begin} are set aside for it")
        end = max(end, stop)
    return end


def _broken(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is damaged or was not copied to its end: {why}. Copy this file again.")
