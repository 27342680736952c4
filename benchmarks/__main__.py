"""The command line: `python -m benchmarks OPS|TRAIN|DECODE|EXPORT`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import decode, export, ops, train
from benchmarks.machine import available_memory, machine, versions
from benchmarks.measure import Result, Settings, measure
from benchmarks.report import Report, describe

GROUPS = {"OPS": ops.cases, "TRAIN": train.cases, "DECODE": decode.cases, "EXPORT": export.cases}
RESULTS = Path(__file__).parent / "results"
MEMORY_SHARE = 0.8  # of the memory that is free, for one process


def main(words: Sequence[str] | None = None) -> int:
    """Measure one group; its exit code."""
    words = list(sys.argv[1:] if words is None else words)
    options = _parser().parse_args(words)
    cases = [case for case in GROUPS[options.group](options.quick) if options.only in case.title]
    if not cases:
        titles = "\n  ".join(case.title for case in GROUPS[options.group](options.quick))
        print(f"no case of {options.group} has {options.only!r} in its title; there are:\n  {titles}", file=sys.stderr)
        return 2
    free = available_memory()
    settings = Settings(
        repeats=options.repeats or (1 if options.quick else Settings.repeats),
        turn_seconds=options.turn_seconds or (0.01 if options.quick else Settings.turn_seconds),
        memory=None if free is None else int(MEMORY_SHARE * free),
    )
    results: list[Result] = []
    report = Report(
        options.group,
        datetime.now(UTC),
        shlex.join(["python", "-m", "benchmarks", *words]),
        machine(),
        versions(),
        settings,
        results,
        quick=options.quick,
    )
    folder = options.out or (None if options.quick else RESULTS)
    for case in cases:
        for threads in options.threads:
            print(f"{case.title}, threads: {threads}", file=sys.stderr)
            results.append(measure(case, threads, settings))
            for outcome in results[-1].outcomes:
                print(f"  {describe(outcome)}", file=sys.stderr)
            if folder is not None:  # a run that is stopped leaves what it has
                files = report.write(folder)
    print(report.markdown() if folder is None else "\n".join(map(str, files)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Time exlstm and its peers in turn; write a table and JSON."
    )
    parser.add_argument("group", type=str.upper, choices=GROUPS, help="what to measure")
    parser.add_argument("--threads", type=_positive, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help=f"turns of each contestant (default: {Settings.repeats})"
    )
    parser.add_argument(
        "--turn-seconds",
        type=float,
        metavar="S",
        help=f"length of a turn; one call, if it takes longer (default: {Settings.turn_seconds})",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with TEXT in their title")
    parser.add_argument(
        "--quick", action="store_true", help="few and small cases, one turn, printed unless --out is given"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: benchmarks/results)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
