"""This file knows how a checkpoint is whole or not there at all: written beside its place, proved, then renamed.

    .checkpoint-12.partial    is being written
    checkpoint-12             is whole; manifest.json, written last, says what is in it
    .checkpoint-12.old        makes room for a new checkpoint-12, or is being deleted

A process that is killed at any moment leaves checkpoints that are whole, and leftovers that the next run removes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from swift.core.errors import RunError
from swift.core.logs import get_logger
from swift.trainers import processes

MANIFEST = "manifest.json"
FORMAT = 1
PARTIAL, OLD = "partial", "old"
LEFTOVER = re.compile(rf"\.(?P<name>checkpoint-\d+)\.(?P<kind>{PARTIAL}|{OLD})")
NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EACCES)
"""What file systems answer that have no such thing as bringing the entries of a folder to the disk."""
_READERS = 4
_PIECE = 1 << 24


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is written, and where it stands when it is whole."""

    partial: Path
    final: Path

    @classmethod
    def of(cls, run: Path, step: int) -> Place:
        """The place of the checkpoint of a step in the folder of a run."""
        return cls(run / f".checkpoint-{step}.{PARTIAL}", run / f"checkpoint-{step}")


@dataclass(frozen=True)
class Proof:
    """What a file must be: so many bytes, with this SHA-256 as hexadecimal digits (as `sha256sum` prints it)."""

    size: int
    sha256: str


# ------------------------------------------------------------------------------------------------------------- writing


def seal(place: Place, step: int, *, each_node: bool) -> None:
    """Prove and publish what all processes have written; every process calls this, and returns when it is done.

    The processes share the reading. A node that does not see the disk of the first one publishes what it has itself;
    with `each_node` (`--save_on_each_node`) every node does so.
    """
    processes.meet()
    leads = processes.leads(each_node)
    if each_node or processes.alone():
        if leads:
            seal_alone(place, step)
        processes.meet()
        return
    listed = processes.told(_files(place.partial))
    sees = all((place.partial / name).is_file() for name in listed)
    share = listed[processes.rank() :: processes.count()] if sees else []
    proofs = {name: proof for part in processes.gathered(_proofs(place.partial, share)) for name, proof in part.items()}
    if processes.rank() == 0:
        rest = [name for name in listed if name not in proofs]
        _publish(place, step, proofs | _proofs(place.partial, rest))
    elif not sees and processes.leads(each_node=True) and place.partial.is_dir():
        seal_alone(place, step)
    processes.meet()


def seal_alone(place: Place, step: int) -> None:
    """Prove and publish what this process has written."""
    _publish(place, step, _proofs(place.partial, _files(place.partial)))


def _publish(place: Place, step: int, proofs: Mapping[str, Proof]) -> None:
    """Write the manifest and put the checkpoint into its place."""
    _write(place.partial / MANIFEST, _manifest(step, proofs))
    for folder in {file.parent for file in place.partial.rglob("*")}:
        _to_disk(folder)
    old = _old(place.final)
    if place.final.exists():
        if old.exists():
            shutil.rmtree(old)
        place.final.rename(old)
    place.partial.rename(place.final)
    _to_disk(place.final.parent)
    if old.exists():
        shutil.rmtree(old)


def start(place: Place) -> None:
    """Make the folder that is written into, empty."""
    if place.partial.exists():
        shutil.rmtree(place.partial)
    place.partial.mkdir(parents=True)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint, in a way that never leaves half of one in its place."""
    old = _old(checkpoint)
    if old.exists():
        shutil.rmtree(old)
    checkpoint.rename(old)
    shutil.rmtree(old)


def tidy(run: Path) -> None:
    """Remove what a run that was killed left in its folder; what it had moved away for a successor comes back."""
    for leftover in sorted(run.glob(".checkpoint-*")):
        found = LEFTOVER.fullmatch(leftover.name)
        if found is None:
            continue
        checkpoint = run / found["name"]
        if found["kind"] == OLD and not checkpoint.exists() and not damage(leftover):
            leftover.rename(checkpoint)
            get_logger().info("%s is back in its place: the run that was to replace it was killed", checkpoint)
        else:
            shutil.rmtree(leftover)
            get_logger().info("removed %s, which was not finished when its run was killed", leftover)


# ------------------------------------------------------------------------------------------------------------ verifying


def damage(checkpoint: Path) -> list[str]:
    """What is wrong with the files of a checkpoint, by its manifest; [] when every byte is as it was written.

    Files that the manifest does not know are nobody's harm.
    """
    file = checkpoint / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
        proofs = _read_manifest(text)
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, UnicodeDecodeError):
        return [f"{MANIFEST} cannot be read"]
    if proofs is None:
        return [f"{MANIFEST} is not as it was written"]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda item: _difference(checkpoint / item[0], item[0], item[1]), sorted(proofs.items()))
        return [words for words in found if words]


def _difference(file: Path, name: str, proof: Proof) -> str | None:
    try:
        size = file.stat().st_size
        if size != proof.size:
            return f"{name} has {size} bytes and should have {proof.size}"
        digest = _sha256(file)
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({os.strerror(error.errno or 0)})"
    if digest != proof.sha256:
        return f"{name} has other contents than were written (sha256 {digest[:12]}..., expected {proof.sha256[:12]}...)"
    return None


def _manifest(step: int, proofs: Mapping[str, Proof]) -> str:
    """The text of a manifest. It ends with its own digest, so that a change of the manifest is found as well."""
    files = {name: {"size": proof.size, "sha256": proof.sha256} for name, proof in sorted(proofs.items())}
    return _rendered({"format": FORMAT, "global_step": step, "files": files})


def _rendered(body: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(body, ensure_ascii=False).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, indent=1, ensure_ascii=False) + "\n"


def _read_manifest(text: str) -> dict[str, Proof] | None:
    """The files of a manifest; None when it is not to the last byte what `_manifest` wrote."""
    try:
        body = json.loads(text)
        body.pop("sha256")
        proofs = {name: Proof(each["size"], each["sha256"]) for name, each in body["files"].items()}
    except (ValueError, TypeError, AttributeError, KeyError):
        return None
    return proofs if _rendered(body) == text else None


# --------------------------------------------------------------------------------------------------------------- files


def _files(folder: Path) -> list[str]:
    """Every file below the folder but the manifest, as paths inside it, in the order of the alphabet."""
    found = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in found if name != MANIFEST)


def _proofs(folder: Path, names: Iterable[str]) -> dict[str, Proof]:
    """What the files are, each brought to the disk first."""

    def proof(name: str) -> tuple[str, Proof]:
        file = folder / name
        _to_disk(file)
        return name, Proof(file.stat().st_size, _sha256(file))

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(pool.map(proof, names))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    _to_disk(file)


def _to_disk(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk, where the file system has such a thing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_FOR_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def _old(checkpoint: Path) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.{OLD}")


@contextmanager
def written(place: Place) -> Iterator[None]:
    """Where a checkpoint is written. What the disk refuses is a RunError that names what is still there.

    torch and safetensors have errors of their own for a full disk; what had been written is removed.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        shutil.rmtree(place.partial, ignore_errors=True)
        raise RunError(_unwritable(place.final, error)) from error


def _unwritable(checkpoint: Path, error: Exception) -> str:
    run = checkpoint.parent
    before = [child for child in run.glob("checkpoint-*") if (child / MANIFEST).is_file()]
    newest = max(before, key=lambda child: int(child.name.rpartition("-")[2]), default=None)
    kept = f"{newest} is whole and can be continued" if newest else "no checkpoint had been saved before"
    free = shutil.disk_usage(run).free / 2**30
    return (
        f"{checkpoint} could not be written: {error}. Its disk has {free:.1f} GiB free now; {kept}. Make room or choose "
        "another --output_dir, then go on with --resume_from_checkpoint."
    )
