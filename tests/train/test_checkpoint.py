"""Checkpoints are whole or absent, and damage never goes unnoticed."""

import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from exlstm.train import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from exlstm.train.checkpoint import delete_after, delete_leftovers, keep_last

TENSORS = {
    "model": {
        "weight": torch.arange(12.0).view(3, 4),
        "steps": torch.tensor(7),
        "half": torch.ones(3).bfloat16(),
    },
    "optimizer": {"weight/exp_avg": torch.linspace(0, 1, 5)},
}
STATE = {"step": 3, "best": {"loss": 0.1 + 0.2}}


def save(directory: Path, step: int = 3) -> Path:
    return save_checkpoint(directory, step, TENSORS, {**STATE, "step": step})


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path))
    assert checkpoint.step == 3
    assert checkpoint.state == STATE
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for group, tensors in TENSORS.items():
        assert checkpoint.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            found = checkpoint.tensors[group][name]
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)


def test_tied_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors = {"a": base, "tied": base, "part": base[1:3], "transposed": base.T, "empty": base[:0]}
    found = load_checkpoint(save_checkpoint(tmp_path, 1, {"model": tensors}, {})).tensors["model"]
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_flipped_bit_is_detected_wherever_it_is(name: str, tmp_path: Path) -> None:
    file = save(tmp_path) / name
    content = file.read_bytes()
    places = random.Random(7).sample(range(8 * len(content)), min(250, 8 * len(content)))
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="step-3"):
            load_checkpoint(file.parent)
    file.write_bytes(content)
    load_checkpoint(file.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_truncated_or_missing_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file = save(tmp_path) / name
    content = file.read_bytes()
    for length in random.Random(8).sample(range(len(content)), 50):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(file.parent)
    file.unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(file.parent)


def test_a_file_that_does_not_belong_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path)
    (path / ".DS_Store").touch()
    load_checkpoint(path)
    (path / "model-2.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is no part"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"state.json": 3}}',
        '{"format": 1, "files": {}}',
        "[" * 10**5,
    ],
)
def test_nonsense_for_a_manifest_is_refused(manifest: str, tmp_path: Path) -> None:
    path = save(tmp_path)
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_a_pickle_in_disguise_is_not_executed(tmp_path: Path) -> None:
    class Gadget:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    content = pickle.dumps(Gadget())
    for name in ("model.safetensors", "state.json", "manifest.json"):
        path = save(tmp_path / name)
        (path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    for name in ("step-5", "step-x", "other"):
        with pytest.raises(CheckpointError, match="expected a checkpoint directory named step-N"):
            load_checkpoint(tmp_path / name)
    (tmp_path / "step-4").mkdir()
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_checkpoint(tmp_path / "step-4")
    assert latest_checkpoint(tmp_path / "absent") is None


def test_the_latest_good_checkpoint_is_found_and_damaged_ones_are_warned_about(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step in (9, 10, 100):
        save(tmp_path, step)
    assert latest_checkpoint(tmp_path).step == 100
    (tmp_path / "step-100" / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"step-100.model\.safetensors is damaged.*falling back"):
        assert latest_checkpoint(tmp_path).step == 10
    for step in (9, 10):
        (tmp_path / f"step-{step}" / "state.json").unlink()
    with (
        pytest.warns(UserWarning, match="falling back"),
        pytest.raises(CheckpointError, match="none of the 3"),
    ):
        latest_checkpoint(tmp_path)


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    path = save(tmp_path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(FileExistsError, match="never overwritten"):
        save_checkpoint(tmp_path, 3, {"model": {"weight": torch.zeros(1)}}, {})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.parametrize("group", ["small", "large"])
def test_a_full_disk_is_a_clear_error_and_leaves_no_litter(group: str, tmp_path: Path) -> None:
    save(tmp_path)
    tensors = {"small": {"x": torch.zeros(2)}, "large": {"x": torch.zeros(100_000)}}
    state = {"text": "x" * 300_000} if group == "small" else {}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        with pytest.raises(OSError, match=r"cannot write checkpoint .*step-4; earlier ones are untouched"):
            save_checkpoint(tmp_path, 4, {group: tensors[group]}, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    assert latest_checkpoint(tmp_path).step == 3


def test_an_interrupted_write_is_never_taken_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Death(BaseException):
        """Ends the process just before the rename, with no time to tidy up."""

    def die(*_: object) -> None:
        raise Death

    save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Death):
            save(tmp_path, 4)
    assert len(list(tmp_path.iterdir())) == 2
    assert latest_checkpoint(tmp_path).step == 3
    delete_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_old_checkpoints_and_later_ones_can_be_deleted(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    keep_last(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-15", "step-20"]
    delete_after(tmp_path, 15)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-15"]


def test_a_digest_that_fits_does_not_excuse_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    path = save(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    save_file({"x": torch.zeros(1)}, path / "model.safetensors")
    content = b"\xff" * 7 + b"\x7f" + (path / "model.safetensors").read_bytes()  # a header of 2^63 bytes
    (path / "model.safetensors").write_bytes(content)
    manifest["files"]["model.safetensors"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        load_checkpoint(path)
