"""One contestant in a process of its own: checked, warmed, then timed whenever it is its turn.

Requests come as JSON lines on the standard input, first the job, then one for every turn; to each goes one JSON line.
An error is the last answer.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from benchmarks import memory
from benchmarks.checks import check
from benchmarks.work import Work

MOST_CALLS = 200  # in a turn


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what packages print must not mix with the answers
    try:
        job = json.loads(sys.stdin.readline())
        work, answer = prepare(job)
        print(json.dumps(answer), file=answers)
        for _ in sys.stdin:
            print(json.dumps({"seconds": turn(work, job["turn_seconds"])}), file=answers)
    except Exception as error:
        message = str(error).strip().splitlines()
        print(json.dumps({"error": ": ".join([type(error).__name__, *message[-1:]])}), file=answers)


def prepare(job: Mapping[str, Any]) -> tuple[Work, dict[str, Any]]:
    """The work, checked and called once; and its facts with the memory that this call took."""
    if job["memory"] is not None:
        memory.limit(job["memory"])
    torch.set_num_threads(job["threads"])
    module, _, function = job["build"].partition(":")
    build = getattr(import_module(module), function)
    torch.manual_seed(job["seed"])
    for operator in job["checks"]:
        check(operator)
    small = build(**job["arguments"] | job["small"])
    for _ in range(2):
        small.call()
    del small
    torch.manual_seed(job["seed"])
    work = build(**job["arguments"])
    return work, {"peak_bytes": memory.growth(work.call), "facts": dict(work.facts)}


def turn(work: Work, seconds: float) -> list[float]:
    """Times of calls, in seconds per unit, for about `seconds` and at least once, after one that warms the caches."""
    gc.collect()
    first = _time(work)
    if first > seconds:  # what takes this long needs no warming
        return [first / work.units]
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or (time.perf_counter() < until and len(times) < MOST_CALLS):
        times.append(_time(work) / work.units)
    return times


def _time(work: Work) -> float:
    begin = time.perf_counter()
    work.call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
