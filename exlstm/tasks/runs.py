"""The folder of a run: what lies where in it, how one is begun, resumed and opened again."""

import os
import platform
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from exlstm.train.files import differences, plain, read_json, write_json
from exlstm.train.lock import LOCK, FolderLock

# Options that a resumed run may be given anew: where it is, how it is told to go on, and how long it lasts.
MAY_CHANGE = frozenset({"out", "resume", "steps", "minutes"})


class Run:
    """One training of one task, in a folder of its own.

    `config.json` says what was asked for and where it ran, `metrics.jsonl`, `tensorboard/` and `checkpoints/`
    come from the training loop, `model/` is the best model, `scores.json` and `report.html` its evaluation.

    `Run.create` and `Run.resume` hold a lock on the folder until `close` (or the end of a `with` block);
    `Run.open` only reads.
    """

    def __init__(self, path: Path, config: dict[str, Any], lock: FolderLock | None = None) -> None:
        self.path = path
        self.config = config
        self._lock = lock

    @property
    def task(self) -> str:
        return self.config["task"]

    @property
    def options(self) -> dict[str, Any]:
        """The task's options as JSON gives them back."""
        return self.config["options"]

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @classmethod
    def create(
        cls, task: str, options: Mapping[str, Any], *, out: Path | None = None, root: Path = Path("runs")
    ) -> "Run":
        """Begin a run in `out`, or in `root/task/<time>` when that is None, and write its `config.json`.

        Raises ValueError when `out` is a file, is not empty, or is in use by another process.
        """
        path = _new_folder(root / task) if out is None else out
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"expected a folder for the run, got {path}, which is or lies in a file") from error
        if not (path / LOCK).exists():
            _require_empty(path, task)  # a folder that is refused is left as it was, without a lock
        lock = FolderLock(path)
        try:
            _require_empty(path, task)  # again, for others may have been quicker
            config = plain(
                {
                    "task": task,
                    "seed": options.get("seed"),
                    "options": options,
                    "started": _now(),
                    "environment": environment(),
                    "resumed": [],
                }
            )
            write_json(path / "config.json", config)
        except BaseException:
            lock.release()
            raise
        return cls(path, config, lock)

    @classmethod
    def resume(
        cls,
        path: Path,
        task: str,
        options: Mapping[str, Any],
        *,
        may_change: Iterable[str] = MAY_CHANGE,
    ) -> "Run":
        """Go on with the run in `path`, and note in its `config.json` when and where.

        Raises ValueError when it is no run of this task, when an option that is not in `may_change` differs
        from the run's, or when another process is using the folder.
        """
        run = cls.open(path)
        if run.task != task:
            raise ValueError(f"cannot resume {path} as {task!r}: it is a run of the task {run.task!r}")
        allowed = set(may_change)
        changed = differences(
            {name: value for name, value in run.options.items() if name not in allowed},
            {name: value for name, value in options.items() if name not in allowed},
        )
        if changed:
            raise ValueError(f"cannot resume {path} with other options ({'; '.join(changed)}); start a new run")
        run._lock = FolderLock(path)
        try:
            run.config = plain(
                {
                    **run.config,
                    "options": options,
                    "resumed": [*run.config["resumed"], {"at": _now(), "environment": environment()}],
                }
            )
            write_json(path / "config.json", run.config)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """The run in `path`, to read from. Raises ValueError when it is not a run's folder."""
        if not path.is_dir():
            raise ValueError(f"expected the folder of a run, got {path}, which {_what_it_is(path)}")
        config_path = path / "config.json"
        if not config_path.is_file():
            raise ValueError(f"expected the folder of a run, got {path}, which has no config.json")
        config = read_json(config_path)
        kinds = {"task": str, "options": dict, "resumed": list}
        if not isinstance(config, dict) or any(not isinstance(config.get(key), kind) for key, kind in kinds.items()):
            raise ValueError(f"expected the folder of a run, got {path}, whose config.json is not a run's")
        return cls(path, config)

    @classmethod
    def latest(cls, task: str, root: Path = Path("runs")) -> "Run":
        """The run of the task in `root` that was begun last. Raises ValueError when there is none."""
        folder = root / task
        paths = [path for path in folder.iterdir() if (path / "config.json").is_file()] if folder.is_dir() else []
        if not paths:
            raise ValueError(f"expected a run in {folder}, found none; name its folder with --out")
        return cls.open(max(paths, key=lambda path: (read_json(path / "config.json").get("started", ""), path.name)))

    def write_scores(
        self,
        *,
        model: Mapping[str, float],
        baselines: Mapping[str, Mapping[str, float]],
        data: Mapping[str, Any],
        seconds: float,
        peak_bytes: int,
        split: str = "test",
    ) -> None:
        """Write `scores.json`: metrics of the model and of each baseline on the same split of the data."""
        scores = {
            "split": split,
            "model": model,
            "baselines": baselines,
            "data": data,
            "seconds": seconds,
            "peak_bytes": peak_bytes,
        }
        write_json(self.path / "scores.json", scores)

    def read_scores(self) -> dict[str, Any]:
        """What `write_scores` wrote. Raises ValueError when the run was not evaluated."""
        return read_json(self.path / "scores.json")

    def close(self) -> None:
        """Let other processes use the folder. Does nothing when called again."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def environment() -> dict[str, Any]:
    """What results may depend on besides the options: versions, platform, threads."""
    import torch

    import exlstm

    return {
        "exlstm": exlstm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _new_folder(parent: Path) -> Path:
    """Make `parent/<time>`, with a number behind it when runs begin in the same second."""
    parent.mkdir(parents=True, exist_ok=True)
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1, 1000):
        path = parent / (name if attempt == 1 else f"{name}_{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise ValueError(f"could not make a new folder {parent / name}: a thousand of that name exist")


def _require_empty(path: Path, task: str) -> None:
    ours = (LOCK, ".config.json.")  # what a run killed at its very beginning leaves behind
    if all(entry.name.startswith(ours) for entry in path.iterdir()):
        return
    try:
        other = Run.open(path).task
    except ValueError:
        raise ValueError(f"{path} is not empty and not a run: choose another folder") from None
    remedy = "resume it or choose another folder" if other == task else "choose another folder"
    raise ValueError(f"{path} already holds a run of the task {other!r}: {remedy}")


def _what_it_is(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist"
