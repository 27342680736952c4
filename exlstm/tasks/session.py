"""What every task does around its training: begin or resume a run's folder, and leave it in order."""

import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from exlstm.console import notes
from exlstm.tasks.options import TrainOptions
from exlstm.tasks.runs import MAY_CHANGE, Run

INTERRUPTED = 130
"""The exit code of a training that was stopped and can be resumed."""


def begin(task: str, options: TrainOptions, more: Mapping[str, Any] | None = None) -> Run:
    """The run's folder: the one to resume, or a new one. `more` is kept with the options."""
    stored = {**asdict(options), **(more or {})}
    del stored["resume"]  # it says how the run goes on, not what it is
    if not options.resume:
        return Run.create(task, stored, out=options.out)
    assert options.out is not None, "the command line names the folder to resume"
    return Run.resume(options.out, task, stored, may_change={*MAY_CHANGE, "device"})


def resume_command(run: Run, prog: str) -> str:
    """What a person types to go on with a run."""
    return f"{prog} train {run.task} --resume --out {shlex.quote(str(run.path))}"


@contextmanager
def training(run: Run, options: TrainOptions, prog: str) -> Iterator[None]:
    """Around training: a run that never began leaves no folder, and one that is broken off says how to go on."""
    try:
        yield
    except ValueError:
        if not options.resume and not run.checkpoints.exists():
            shutil.rmtree(run.path, ignore_errors=True)  # training never began, so nothing is lost
        raise
    except KeyboardInterrupt:
        notes().print(f"to go on, run {resume_command(run, prog)}")
        raise


def require_finished(run: Run, prog: str) -> None:
    """Raise ValueError unless the run was trained and evaluated."""
    if not (run.path / "scores.json").is_file():
        raise ValueError(f"the run in {run.path} was not finished; {resume_command(run, prog)} goes on with it")
