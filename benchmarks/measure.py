"""Contestants in processes of their own, timed in turn."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

from benchmarks.cases import Case, Contestant, Quantity, Ratio
from benchmarks.peers import INSTALL, version

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """How everything in a run is measured."""

    repeats: int = 7  # turns
    turn_seconds: float = 0.3
    seed: int = 20260101
    limit_seconds: float = 900.0  # for one answer of a process
    memory: int | None = None  # bytes a process may allocate; None for any number


@dataclass
class Outcome:
    """What came of one contestant: medians of its turns, in seconds per unit of work, or the problem it had."""

    name: str
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    facts: dict[str, float] = field(default_factory=dict)
    problem: str | None = None

    def values(self, quantity: Quantity) -> list[float]:
        """The quantity, turn by turn where it has turns; empty where it is not known."""
        if self.problem is not None:
            return []
        if quantity == "time":
            return self.seconds
        if quantity == "time per operation":
            return [s / self.facts["operations"] for s in self.seconds]
        value = self.peak_bytes if quantity == "memory" else self.facts.get("state_bytes")
        return [] if value is None else [float(value)]


@dataclass
class Result:
    """The outcomes of a case on a number of threads."""

    case: Case
    threads: int
    outcomes: list[Outcome]

    def ratio(self, ratio: Ratio) -> float | None:
        """The median over turns, each turn's values taken one after the other; None where one is missing."""
        of, to = (self._outcome(name).values(ratio.quantity) for name in (ratio.of, ratio.to))
        pairs = [a / b for a, b in zip(of, to, strict=False) if b]
        return median(pairs) if pairs else None

    def _outcome(self, name: str) -> Outcome:
        return next(outcome for outcome in self.outcomes if outcome.name == name)


class CrashError(Exception):
    """A contestant's process did not answer, or answered with an error."""


class Process:
    """A contestant at work, in a fresh process with a number of threads."""

    def __init__(self, contestant: Contestant, threads: int, settings: Settings) -> None:
        fixed = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        job = asdict(contestant) | {"threads": threads} | asdict(settings)
        self.job, self.limit = job, settings.limit_seconds
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            env=os.environ | fixed,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def prepare(self) -> dict[str, Any]:
        """Check, build and warm the work; its facts and peak memory."""
        return self._ask(self.job)

    def turn(self) -> float:
        """Median seconds per unit of work over one turn."""
        return median(self._ask("turn")["seconds"])

    def _ask(self, request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(self.limit, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            in_time = timer.is_alive()
            timer.cancel()
        if not line:
            raise CrashError(self._last_words() if in_time else f"no answer within {self.limit:g} s")
        answer = json.loads(line)
        if "error" in answer:
            raise CrashError(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        end = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"{end}: {lines[-1]}" if lines else end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def measure(case: Case, threads: int, settings: Settings) -> Result:
    """Time the contestants of a case, a turn each, again and again, so that a drift of the machine hits all alike.

    Processes start at once, but only one at a time has work to do.
    """
    outcomes = {c.name: Outcome(c.name, problem=missing(c)) for c in case.contestants}
    with ExitStack() as stack:
        running = {
            c.name: stack.enter_context(Process(c, threads, settings))
            for c in case.contestants
            if outcomes[c.name].problem is None
        }
        for name, process in list(running.items()):
            outcome = outcomes[name]
            try:
                answer = process.prepare()
            except CrashError as error:
                outcome.problem = f"crashed: {error}"
                running.pop(name)
            else:
                outcome.peak_bytes, outcome.facts = answer["peak_bytes"], answer["facts"]
        for _ in range(settings.repeats):
            for name, process in list(running.items()):
                try:
                    outcomes[name].seconds.append(process.turn())
                except CrashError as error:
                    outcomes[name].problem = f"crashed: {error}"
                    running.pop(name)
    return Result(case, threads, list(outcomes.values()))


def missing(contestant: Contestant) -> str | None:
    """What keeps a contestant from taking part: the package it needs, and the command that installs it."""
    if contestant.peer is None or version(contestant.peer) is not None:
        return None
    return f"{contestant.peer} is not installed: {INSTALL}"
