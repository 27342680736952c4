"""JSON files are whole, strict and comparable."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from exlstm.train.files import differences, read_json, write_json
from exlstm.train.lock import FolderLock
from exlstm.train.metrics import read_metrics
from exlstm.train.progress import format_seconds


def test_json_takes_numbers_of_every_library_and_stays_strict(tmp_path: Path) -> None:
    value = {
        "a": np.float32(0.5),
        "b": torch.tensor(3),
        "c": (math.nan, -math.inf, 1e-300),
        "p": Path("x/y"),
        "t": True,
    }
    write_json(tmp_path / "f.json", value)
    assert read_json(tmp_path / "f.json") == {
        "a": 0.5,
        "b": 3,
        "c": [None, None, 1e-300],
        "p": "x/y",
        "t": True,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "f.json", {"a": object()})
    assert read_json(tmp_path / "f.json") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"f\.json"):
        read_json(tmp_path / "f.json")
    with pytest.raises(ValueError, match=r"cannot read .*absent\.json"):
        read_json(tmp_path / "absent.json")


def test_differences_see_what_json_would_store_differently() -> None:
    before = {"betas": (0.9, 0.95), "path": Path("a"), "model": {"width": 8, "deep": {"x": 1}}, "gone": None}
    after = {"betas": [0.9, 0.95], "path": "a", "model": {"width": 8, "deep": {"x": 2}}}
    assert differences(before, before) == []
    assert differences(before, after) == ["gone: was None, now absent", "model.deep.x: was 1, now 2"]


def test_a_metrics_line_cut_short_is_dropped_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "kind": "train", "note": "\u2028"}, ensure_ascii=False) for step in (1, 2)]
    path.write_text("\n".join(lines) + '\n{"step": 3, "ki')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    path.write_text("\n".join(["3", *lines]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1"):
        read_metrics(path)
    path.write_text("")
    assert read_metrics(path) == []


def test_a_folder_is_locked_for_one_at_a_time(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        with pytest.raises(ValueError, match=r"in use by process \d+"):
            FolderLock(tmp_path)
    lock = FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


def test_time_is_told_in_minutes_and_hours() -> None:
    assert [format_seconds(s) for s in (0, 75, 4000.4)] == ["0:00", "1:15", "1:06:40"]
