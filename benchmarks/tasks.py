"""What trained runs scored, as one page: `python -m benchmarks.tasks RUN...`, with folders that `exlstm train` made.

Only what the runs themselves kept is shown: their options, seeds, times, scores and those of their baselines.
"""

import argparse
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.machine import machine
from benchmarks.report import table
from exlstm.data.get import SOURCES
from exlstm.tasks.options import command_line, restore
from exlstm.tasks.runs import Run

RESULTS = Path(__file__).parent / "results"


def main(words: Sequence[str] | None = None) -> int:
    """Write the page and its JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description="What trained runs scored.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--note", default="", metavar="TEXT", help="how they were run, for the page")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args(words)
    date = datetime.now(UTC)
    facts = {"date": f"{date:%Y-%m-%d %H:%M %Z}", **machine()}
    facts.pop("load before the run", None)  # that of now has nothing to do with the runs
    facts |= {"note": options.note} if options.note else {}
    found = [describe(Run.open(path)) for path in options.runs]
    stem = options.out / f"TASKS-{date:%Y%m%d-%H%M}"
    stem.with_suffix(".json").write_text(json.dumps({**facts, "runs": found}, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(page(facts, found), encoding="utf-8")
    print(stem.with_suffix(".md"))
    return 0


def describe(run: Run) -> dict[str, Any]:
    """A run's command, cost and scores."""
    module = import_module(f"exlstm.tasks.{run.task.replace('-', '_')}")
    options = restore(module.Train, run.options)
    words = command_line(options, without={"out", "resume", "device"})
    scores, environment = run.read_scores(), run.config["environment"]
    # A run in folds has a model in each, all of one size.
    model = next(iter(sorted(run.path.glob("**/model/model.safetensors"))))
    with safe_open(model, "pt") as file:
        weights = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - it is no mapping
    return {
        "task": run.task,
        "command": shlex.join(["exlstm", "train", run.task, *map(_without_machine, words)]),
        "data": _without_machine(str(options.data)) if options.data else "the sample",
        "seed": options.seed,
        "weights": weights,
        "minutes": scores["seconds"] / 60,
        "peak_bytes": scores["peak_bytes"],
        "environment": {name: environment[name] for name in ("exlstm", "python", "torch", "threads")},
        "scores": {"model": scores["model"], **scores["baselines"]},
        "by_length": scores["data"].get("by_length", []),
    }


def _without_machine(word: str) -> str:
    """A path inside a data set by the name of that, as `exlstm data get` gives its folder; other words as they are."""
    parts = Path(word).parts
    known = [place for place, part in enumerate(parts) if part in SOURCES]
    return "/".join(["DATA", *parts[known[-1] :]]) if known and len(parts) > 1 else word


def page(facts: Mapping[str, str], runs: Sequence[Mapping[str, Any]]) -> str:
    """The runs as Markdown: for each task and data set a table of scores, then the commands."""
    parts = ["# TASKS", "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    parts.append(
        "`DATA` is where `exlstm data get NAME` puts a data set. Every run trained on the threads that it names."
    )
    for task, data in dict.fromkeys((run["task"], run["data"]) for run in runs):
        same = [run for run in runs if (run["task"], run["data"]) == (task, data)]
        parts += [f"## {task}, {data}", _scores(same), *_by_length(same), "\n".join(_commands(same))]
    return "\n\n".join(parts) + "\n"


def _scores(runs: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for run in runs for scores in run["scores"].values() for name in scores))
    rows, baselines = [], {}
    for number, run in enumerate(runs, 1):
        for name, scores in run["scores"].items():
            cells = [f"{scores[x]:.4g}" if x in scores else "" for x in names]
            if name == "model":
                cost = f"{run['weights'] / 1e6:.2f} M", f"{run['minutes']:.1f}", f"{run['environment']['threads']}"
                rows.append([f"run {number}", *cells, *cost])
            else:
                baselines[name, *cells] = [name, *cells, "", "", ""]
    return table(["", *names, "weights", "minutes", "threads"], [*rows, *baselines.values()])


def _by_length(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    runs = [run for run in runs if run["by_length"]]
    if runs:
        metric = list(runs[0]["by_length"][0])[3]
        columns = [f"{part['from']} to {part['to']} ({part['pairs']:,})" for part in runs[0]["by_length"]]
        rows = [[f"run {n}", *(f"{x[metric]:.4g}" for x in run["by_length"])] for n, run in enumerate(runs, 1)]
        yield f"{metric} by words of the source, and how many there are:"
        yield table(["", *columns], rows)


def _commands(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for number, run in enumerate(runs, 1):
        size = f"{run['peak_bytes'] / 2**20:,.0f} MiB"
        versions = ", ".join(f"{name} {run['environment'][name]}" for name in ("exlstm", "python", "torch"))
        yield f"- run {number}: `{run['command']}` (seed {run['seed']}, at most {size}; {versions})"


if __name__ == "__main__":
    raise SystemExit(main())
