"""How every task ends: the scores are printed, and the report is written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exlstm.console import print_table
from exlstm.tasks.options import TrainOptions, command_line
from exlstm.tasks.report import Report, write_report
from exlstm.tasks.runs import Run
from exlstm.train import read_metrics


def conclude(
    run: Run,
    options: TrainOptions,
    prog: str,
    *,
    columns: Sequence[str],
    rows: Callable[[dict[str, Any]], list[list[str]]],
    report: Callable[..., Report],
    metrics: Path | None = None,
) -> None:
    """Print the scores that a run has, and only then write its report, so that no picture can cost them.

    Args:
        columns: of the table of scores, the name first.
        rows: of that table, from what is in `scores.json`.
        report: makes the report from the keyword arguments run, scores, history and command.
        metrics: the record of the training that the report shows; None: the run's own.
    """
    scores = run.read_scores()
    print_table(columns, rows(scores), numeric=columns[1:])
    command = [*prog.split(), "train", run.task, *command_line(options, without={"out", "resume", "device"})]
    made = report(run=run, scores=scores, history=read_metrics(metrics or run.metrics), command=command)
    write_report(run.report, made)
    print(f"report: {run.report}")
