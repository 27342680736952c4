"""Checkpoints on disk: directories `step-N` that are written whole or not at all, and verified on load.

A checkpoint holds named groups of tensors (one safetensors file each), `state.json`, and `manifest.json` with
the size and SHA-256 digest of every other file. It is written beside its final place, flushed to the disk and
then renamed, so a directory called `step-N` is always complete. Nothing is ever pickled or unpickled.
"""

import hashlib
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from exlstm.train.files import read_json, sync_directory, to_json

_FORMAT = 1
_MANIFEST = "manifest.json"
_STATE = "state.json"
_TEMPORARY = ".writing-"


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete or not one of ours; the message names the file."""


class Checkpoint(NamedTuple):
    """What one checkpoint holds. Tensors are on the CPU."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    directory: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write `directory/step-N` and return its path.

    `tensors` maps the name of a group to its tensors; `state` is anything `to_json` accepts. One process at a
    time may write into `directory`; what an interrupted write left there is deleted.
    Raises FileExistsError when there is one already, and OSError (with the directory left as it was) when the
    disk refuses.
    """
    path = directory / f"step-{step}"
    if path.exists():
        raise FileExistsError(f"{path} exists already, and a checkpoint is never overwritten")
    temporary = directory / f"{_TEMPORARY}{path.name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        delete_leftovers(directory)
        temporary.mkdir()
        for group, values in tensors.items():
            save_file(_without_sharing(values), temporary / f"{group}.safetensors")
        (temporary / _STATE).write_text(to_json(state, indent=2) + "\n", encoding="utf-8")
        files = {file.name: _describe(file) for file in sorted(temporary.iterdir())}
        (temporary / _MANIFEST).write_text(_manifest_text(files), encoding="utf-8")
        for file in temporary.iterdir():
            _flush(file)
        sync_directory(temporary)
        temporary.rename(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write checkpoint {path}; earlier ones are untouched: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_directory(directory)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises CheckpointError naming what is missing, extra or damaged."""
    step = _step(path)
    if step is None or not path.is_dir():
        raise CheckpointError(f"expected a checkpoint directory named step-N, got {path}")
    try:
        groups = [name for name in _verify(path) if name.endswith(".safetensors")]
        tensors = {name.removesuffix(".safetensors"): load_file(path / name) for name in groups}
        return Checkpoint(path, step, tensors, read_json(path / _STATE))
    except CheckpointError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error}") from error


def latest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest good checkpoint in `directory`, None when it has none at all.

    Damaged ones are passed over with a warning. Raises CheckpointError when every one is damaged.
    """
    paths = checkpoint_paths(directory)
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
    if paths:
        raise CheckpointError(f"none of the {len(paths)} checkpoints in {directory} can be read")
    return None


def checkpoint_paths(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, whether good or damaged, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if _step(path) is not None), key=lambda p: _step(p) or 0)


def keep_last(directory: Path, count: int) -> None:
    """Delete all but the last `count` checkpoints."""
    for path in checkpoint_paths(directory)[:-count]:
        _delete(path)


def delete_after(directory: Path, step: int) -> None:
    """Delete the checkpoints later than `step`: a run resumed there writes them anew."""
    for path in checkpoint_paths(directory):
        if (_step(path) or 0) > step:
            _delete(path)


def delete_leftovers(directory: Path) -> None:
    """Delete what writes and deletions cut short by a crash left behind."""
    if directory.is_dir():
        for path in directory.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path)


def _delete(path: Path) -> None:
    """Take the checkpoint out of sight first, so that a crash midway leaves no half of it under its name."""
    doomed = path.with_name(f"{_TEMPORARY}{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _step(path: Path) -> int | None:
    prefix, _, number = path.name.partition("-")
    return int(number) if prefix == "step" and number.isascii() and number.isdigit() else None


def _without_sharing(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: contiguous, and each in memory of its own (tied ones are copied)."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return plain


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _manifest_text(files: Mapping[str, Any]) -> str:
    return to_json({"format": _FORMAT, "files": files}, indent=2) + "\n"


def _verify(path: Path) -> list[str]:
    """Names of the checkpoint's files, after checking that they are all there, alone and unchanged."""
    described = _read_manifest(path / _MANIFEST)
    expected = {*described, _MANIFEST}
    found = {file.name for file in path.iterdir() if not file.name.startswith(".")}
    for name in sorted(expected - found):
        raise CheckpointError(f"{path / name} is missing")
    for name in sorted(found - expected):
        raise CheckpointError(f"{path / name} is no part of the checkpoint according to its {_MANIFEST}")
    for name, description in described.items():
        if _describe(path / name) != description:
            raise CheckpointError(f"{path / name} is damaged: its size or digest is not what {_MANIFEST} says")
    return list(described)


def _read_manifest(manifest: Path) -> dict[str, Any]:
    try:
        files = read_json(manifest)["files"]
        intact = manifest.read_bytes() == _manifest_text(files).encode() and isinstance(files, dict)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest} is damaged: it lists no files") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not intact:
        raise CheckpointError(f"{manifest} is damaged or was written by another version of exlstm")
    return files


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
