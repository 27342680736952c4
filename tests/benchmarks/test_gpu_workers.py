"""A case that fails, crashes or hangs takes no other along."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu, gpu_workers
from benchmarks.gpu_workers import Task

UNABLE = "tests.benchmarks.test_gpu_workers:unable"


def unable(value: int) -> dict[str, int]:
    """What goes on in a worker: a result, or what may go wrong."""
    match value:
        case -1:
            raise RuntimeError("an illegal memory access")
        case -2:
            os._exit(3)
        case -3:
            time.sleep(60)
        case -4:
            raise ValueError("shapes do not fit")
        case -5:
            os.abort()
    return {"twice": 2 * value, "process": os.getpid()}


LOCKS = []


def begun(value: int) -> dict[str, object]:
    """How a worker begins; and a lock, such as imports of peers make."""
    LOCKS.append(multiprocessing.Lock())
    ready = [name for name in gpu_workers.PRELOADED if name in sys.modules]
    return {"ready": ready, "on_gpu": torch.cuda.is_initialized()}


def test_what_fails_takes_no_other_case_along():
    rows = []
    tasks = [Task(UNABLE, [{"value": v} for v in (1, -1, 2, -4, 3, -2)])]
    tasks.append(Task(UNABLE, [{"value": 5}]))
    gpu_workers.run(tasks, rows.append, processes=2, until=time.monotonic() + 300)
    found = {row["value"]: row for row in rows}
    assert {value: row["twice"] for value, row in found.items() if value > 0} == {v: 2 * v for v in (1, 2, 3, 5)}
    assert found[-1]["problem"] == "RuntimeError: an illegal memory access"
    assert found[-2]["problem"] == "its process died (exit code 3)"
    assert found[-4]["problem"] == "ValueError: shapes do not fit"
    assert found[1]["process"] != found[2]["process"]


def test_after_a_case_that_ended_its_process_the_task_is_left_out():
    rows = []
    tasks = [Task(UNABLE, [{"value": v} for v in values]) for values in ((1, -5, 2, 3), (4,))]
    gpu_workers.run(tasks, rows.append, processes=1, until=time.monotonic() + 300)
    died = "its process died (exit code -6)"
    assert [row.get("problem") for row in rows] == [None, died, *[f"not tried: {died} in a case before"] * 2, None]


@pytest.mark.slow
def test_a_case_that_hangs_is_ended_and_the_next_task_begun():
    rows = []
    tasks = [Task(UNABLE, [{"value": v} for v in values]) for values in ((-3, 1), (2,))]
    gpu_workers.run(tasks, rows.append, processes=1, until=time.monotonic() + 300, limit=20)
    assert rows[0]["problem"] == "no answer within 20 s"
    assert rows[1]["problem"] == "not tried: no answer within 20 s in a case before"
    assert rows[2]["twice"] == 4


def test_processes_begin_with_what_is_slow_to_import_and_leave_no_lock_behind():
    code = (
        "import json, time\n"
        "from benchmarks import gpu_workers\n"
        "tasks = [gpu_workers.Task('tests.benchmarks.test_gpu_workers:begun', [{'value': 1}])]\n"
        "show = lambda row: print(json.dumps(row))\n"
        "gpu_workers.run(tasks, show, processes=1, until=time.monotonic() + 300)\n"
    )
    path = os.pathsep.join([str(gpu.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=gpu.ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    row = json.loads(done.stdout)
    assert "torch._dynamo" in row["ready"]
    assert not row["on_gpu"]
    assert "leaked" not in done.stderr


@pytest.mark.parametrize("processes", [0, 1])
def test_what_there_is_no_time_for_is_in_the_results(processes):
    rows = []
    tasks = [Task(UNABLE, [{"value": 1}, {"value": 2}])]
    gpu_workers.run(tasks, rows.append, processes=processes, until=time.monotonic() - 1)
    assert rows == [{"value": 1, "problem": "out of time"}, {"value": 2, "problem": "out of time"}]
