"""Metrics as JSON lines (always, when there is a folder) and as TensorBoard events."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from exlstm.train.files import plain, to_json, write_text


class MetricsLog:
    """Records of the form `{"step": 10, "kind": "train", "loss": 0.5, ...}`, kept in `history`.

    With a folder they are also appended to `out/metrics.jsonl`, and their numbers to `out/tensorboard` under
    the tag `kind/name`. What an earlier session logged after `resume_step` is dropped, since those steps run
    again. Numbers that are not finite are written as null.
    """

    def __init__(self, out: Path | None, *, resume_step: int = 0, tensorboard: bool = True) -> None:
        self.history: list[dict[str, Any]] = []
        self._file = None
        self._events: Any = None
        self._events_folder = out / "tensorboard" if out is not None and tensorboard else None
        self._resume_step = resume_step
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            path = out / "metrics.jsonl"
            if path.exists():
                self.history = [record for record in read_metrics(path) if record["step"] <= resume_step]
            write_text(path, "".join(f"{to_json(record)}\n" for record in self.history))
            self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one record."""
        record = plain({"step": step, "kind": kind, **values})
        self.history.append(record)
        if self._file is not None:
            self._file.write(to_json(record) + "\n")
            self._file.flush()
        if self._events_folder is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._writer().add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """Make what was written so far survive a power cut, as a checkpoint does that refers to it."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def _writer(self) -> Any:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(self._events_folder, purge_step=self._resume_step + 1)
        return self._events

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, oldest first; a last line cut short by a crash is left out.

    Raises ValueError naming the line when another one is no record, or when the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            whole = isinstance(record["step"], int) and isinstance(record["kind"], str)
        except (ValueError, TypeError, KeyError):
            whole = False
        if whole:
            records.append(record)
        elif number < len(lines):
            raise ValueError(f"{path}, line {number} is not a record of metrics with a step and a kind")
    return records
