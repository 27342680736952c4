"""Cases worked on in processes of their own: a kernel that crashes takes its process along, and no one else's results.

The processes are forked from one that has imported PyTorch and has not touched a GPU, so that each starts at once.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

Case = dict[str, Any]
Row = dict[str, Any]
PRELOADED = ("numpy", "torch", "triton", "exlstm.ops", "torch._dynamo")  # the last: some peers import it
START = ["forkserver"]  # how processes begin; "spawn", which takes seconds for each, where that does not work
TICK = 0.2  # seconds between looks at the clock
GRACE = 15.0  # seconds by which a case may be late
OUT_OF_TIME = "out of time"
DIED, SILENT, UNTRIED = "its process died", "no answer", "not tried"


class Task(NamedTuple):
    """Cases for one process, in this order; to each, "module:name" gives a row.

    After one that ends its process the rest is not tried: what is alike would end alike, and that takes long.
    """

    function: str
    cases: Sequence[Case]


class _Worker:
    """A process, and what it has still to do."""

    def __init__(self, task: Task) -> None:
        context: Any = multiprocessing.get_context(START[0])
        if START[0] == "forkserver":
            context.set_forkserver_preload(list(PRELOADED))
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()
        self.give(task)

    def give(self, task: Task) -> None:
        self.function, self.left = task.function, list(task.cases)
        self.next()

    def next(self) -> None:
        self.begun = time.monotonic()
        with suppress(OSError):  # of a process that is gone: it will not answer either
            self.connection.send((self.function, self.left[0]))

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def run(
    tasks: Iterable[Task], found: Callable[[Row], None], *, processes: int, until: float, limit: float = 120.0
) -> None:
    """Call `found` with a row for every case: the case, and its results or its "problem".

    Args:
        tasks: in the order in which they begin.
        found: called as soon as a row is there.
        processes: how many tasks are worked on at once; 0: none but this process, where nothing is guarded but errors.
        until: when no further case is begun, on the clock `time.monotonic`; nor is one waited for much longer.
        limit: seconds a case may take.
    """
    waiting, workers = list(tasks), list[_Worker]()
    if not processes:
        for task in waiting:
            for case in task.cases:
                found(case | (attempt(task.function, case)[0] if time.monotonic() < until else _late()))
        return
    try:
        while waiting or workers:
            if time.monotonic() >= until:
                for task in waiting:
                    for case in task.cases:
                        found(case | _late())
                waiting.clear()
            while waiting and len(workers) < processes:
                workers.append(_Worker(waiting.pop(0)))
            ready = wait([worker.connection for worker in workers], TICK)
            for worker in list(workers):
                answer = _answer(worker, worker.connection in ready, until + GRACE, limit)
                if answer is None:
                    continue
                row, lost = answer
                found(worker.left.pop(0) | row)
                if ended(row):
                    for case in worker.left:
                        found(case | untried(row))
                    worker.left.clear()
                _go_on(worker, workers, waiting, lost, until)
    finally:
        for worker in workers:
            worker.end()


def _go_on(worker: _Worker, workers: list[_Worker], waiting: list[Task], lost: bool, until: float) -> None:
    """Give the worker its next case or task; where its process is lost, leave the rest to another."""
    if lost:
        workers.remove(worker)
        worker.end()
        if worker.left:
            waiting.insert(0, Task(worker.function, worker.left))
    elif worker.left and time.monotonic() < until:
        worker.next()
    elif worker.left:
        waiting.append(Task(worker.function, worker.left))
        workers.remove(worker)
        worker.end()
    elif waiting and time.monotonic() < until:
        worker.give(waiting.pop(0))
    else:
        workers.remove(worker)
        worker.end()


def _answer(worker: _Worker, ready: bool, until: float, limit: float) -> tuple[Row, bool] | None:
    """What a worker found and whether its process is lost; None if it is still at work."""
    if ready:
        try:
            row, lost = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            return {"problem": f"{DIED} (exit code {worker.process.exitcode})"}, True
        return row, lost
    now = time.monotonic()
    if now > worker.begun + limit:
        return {"problem": f"{SILENT} within {limit:g} s"}, True
    return (_late(), True) if now > until else None


def _late() -> Row:
    return {"problem": OUT_OF_TIME}


def ended(row: Row) -> bool:
    """Whether the case ended its process: died with it, or never answered."""
    return row.get("problem", "").startswith((DIED, SILENT))


def untried(row: Row) -> Row:
    """The problem of cases that are left out because the one with this row ended its process."""
    return {"problem": f"{UNTRIED}: {row['problem']} in a case before"}


def _serve(connection: Connection) -> None:
    """Answer cases until the other side hangs up."""
    import torch

    torch.set_num_threads(1)
    # Locks that a peer makes get a name, and outlive a process that is killed, unless they are for forks alone.
    multiprocessing.set_start_method("fork", force=True)
    warnings.simplefilter("ignore")  # of peers, on what they will no longer do some day
    while True:
        try:
            function, case = connection.recv()
        except (EOFError, OSError):
            return
        row, lost = attempt(function, case)
        connection.send((row, lost))
        if lost:
            return


def attempt(function: str, case: Case) -> tuple[Row, bool]:
    """What the function finds, or the problem; and whether the GPU may be unusable in this process from now on."""
    import torch

    try:
        module, _, name = function.partition(":")
        return getattr(import_module(module), name)(**case), False
    except Exception as error:
        # These leave the GPU as it was; after any other it may answer nothing more.
        harmless = isinstance(error, (torch.OutOfMemoryError, ImportError, ValueError, NotImplementedError))
        return {"problem": describe(error)}, not harmless


def describe(error: BaseException) -> str:
    """Kind and message in a line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:400]
