"""Results as a Markdown page for people and JSON for programs."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import Ratio
from benchmarks.measure import Outcome, Result, Settings

_HOW = """\
Every contestant of a case runs in a fresh process with the same number of threads, on random inputs. Ours are first
compared with the float64 reference there. Contestants take turns, {repeats} each, of {turn_seconds:g} s (one call, if
it takes longer), after a call that is not timed. Time: the median over turns of the median over a turn, with the lowest
and the highest turn. Peak memory: by how much the resident set grew at most during the first full call, inputs and
weights not counted. Ratios: the median over turns. Goals hold for one thread."""


@dataclass(frozen=True)
class Report:
    """A run of one group."""

    group: str
    date: datetime
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    settings: Settings
    results: list[Result]
    quick: bool = False

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write GROUP-DATE.md and .json into `folder`, made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self.group}-{self.date:%Y%m%d-%H%M}{'-quick' if self.quick else ''}"
        page, data = folder / f"{stem}.md", folder / f"{stem}.json"
        page.write_text(self.markdown(), encoding="utf-8")
        data.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        return page, data

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "group": self.group,
            "date": self.date.isoformat(timespec="seconds"),
            "command": self.command,
            "quick": self.quick,
            "machine": self.machine,
            "versions": self.versions,
            "settings": asdict(self.settings),
            "results": [
                {
                    "case": asdict(result.case),
                    "threads": result.threads,
                    "outcomes": [asdict(outcome) for outcome in result.outcomes],
                    "ratios": [asdict(ratio) | {"value": result.ratio(ratio)} for ratio in result.case.ratios],
                }
                for result in self.results
            ],
        }

    def markdown(self) -> str:
        """The page."""
        facts = {"date": f"{self.date:%Y-%m-%d %H:%M %Z}", "command": f"`{self.command}`", **self.machine}
        parts = [
            f"# {self.group}{', a quick run: no evidence' if self.quick else ''}",
            "\n".join(f"- {name}: {value}" for name, value in (facts | self.versions).items()),
            _HOW.format(**asdict(self.settings)),
            "## Ratios",
            table(("work", "threads", "ratio", "is", "goal", ""), _once(self._ratio_rows())),
            "## Times and memory",
            table(
                ("work", "threads", "by", "time", "lowest to highest", "peak memory", ""), _once(self._outcome_rows())
            ),
        ]
        if problems := list(self._problems()):
            parts += ["## Not measured", "\n".join(problems)]
        return "\n\n".join(parts) + "\n"

    def _ratio_rows(self) -> Iterator[Sequence[str]]:
        for result in self.results:
            for ratio in result.case.ratios:
                value = result.ratio(ratio)
                name = f"{ratio.quantity} of {ratio.of} / {ratio.to}"
                bound = ratio.goal if result.threads == 1 else ""
                verdict = "" if value is None or not bound else _verdict(ratio, value)
                yield result.case.title, str(result.threads), name, _number(value), bound, verdict

    def _outcome_rows(self) -> Iterator[Sequence[str]]:
        for result in self.results:
            for outcome in result.outcomes:
                yield result.case.title, str(result.threads), outcome.name, *_cells(outcome)

    def _problems(self) -> Iterator[str]:
        for result in self.results:
            for outcome in result.outcomes:
                if outcome.problem:
                    yield f"- {result.case.title}, threads: {result.threads}, {outcome.name}: {outcome.problem}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _once(rows: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    """The rows, without the work and threads of the row above."""
    above: Sequence[str] = ()
    for work, threads, *rest in rows:
        yield ("", "", *rest) if (work, threads) == above else (work, threads, *rest)
        above = (work, threads)


def describe(outcome: Outcome) -> str:
    """One line on an outcome."""
    time, spread, memory, facts = _cells(outcome)
    if outcome.problem:
        return f"{outcome.name}: {outcome.problem}"
    return f"{outcome.name}: {time} ({spread}), {memory}" + (f", {facts}" if facts else "")


def _cells(outcome: Outcome) -> tuple[str, str, str, str]:
    if outcome.problem is not None:
        return ("crashed" if outcome.problem.startswith("crashed") else "not installed"), "", "", ""
    facts = []
    if "parameters" in outcome.facts:
        facts.append(f"{outcome.facts['parameters'] / 1e6:.1f} M parameters")
    if "state_bytes" in outcome.facts:
        facts.append(f"state of {_size(outcome.facts['state_bytes'])}")
    if "mean_logit_error" in outcome.facts:
        error, most, change = (outcome.facts[x] for x in ("mean_logit_error", "largest_logit_error", "loss_change"))
        facts.append(f"logits off by {error:.2g} on average, {most:.2g} at most, loss {change:+.5f} nats")
    memory = "unknown" if outcome.peak_bytes is None else _size(outcome.peak_bytes)
    spread = f"{_duration(min(outcome.seconds))} to {_duration(max(outcome.seconds))}"
    return _duration(median(outcome.seconds)), spread, memory, ", ".join(facts)


def _verdict(ratio: Ratio, value: float) -> str:
    return "met" if ratio.met(value) else f"missed by {100 * ratio.missed_by(value):.0f}%"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.3g} s"
        if seconds >= 1
        else f"{1e3 * seconds:.3g} ms"
        if seconds >= 1e-3
        else f"{1e6 * seconds:.3g} us"
    )


def _size(number_of_bytes: float) -> str:
    mebibytes = number_of_bytes / 2**20
    return f"{mebibytes / 1024:.3g} GiB" if mebibytes >= 1024 else f"{mebibytes:.3g} MiB"
