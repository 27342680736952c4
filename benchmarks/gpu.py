"""GPU: are the Triton kernels right on this card, how fast are they, and how fast are others'?

    python benchmarks/gpu.py [--minutes M] [--only mlstm,hmlstm,slstm,layer,decode] [--who NAME ...] [--out DIR] [--all]

needs PyTorch, triton and numpy and nothing installed of this project; peers take part where they are importable. First
correctness against float64, then times, then what a decode step makes of the card's bandwidth. Whatever fails is in the
results with its message and ends nothing else. Results are written after every section. With --quick and
TRITON_INTERPRET=1 it only compares a few tiny cases, on any machine.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # so that looking for a GPU does not yet occupy it

import torch  # noqa: E402

from benchmarks import gpu_checks, gpu_layer, gpu_workers  # noqa: E402
from benchmarks.gpu_report import OPERATORS, XL_CHUNK, Results, check_table, summary, write  # noqa: E402
from benchmarks.gpu_workers import Row, Task  # noqa: E402
from benchmarks.machine import commit, machine  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SECTIONS = (*OPERATORS, "layer", "decode")
TOKENS = 65536
LENGTHS = (1024, 4096, 16384, 65536)
SHAPES = ((256, 512), (64, 128))
SCALAR = ((16, 1024, 4, 64), (16, 1024, 4, 192), (64, 512, 4, 128), (1, 1024, 4, 64))  # B, T, heads, head width
DECODED = (1, 64)  # rows
LOOP = 128  # steps of the loop of torch calls; the rest would take as long for each
CHECKED_UNTIL = 0.45  # of the time there is
DISTRIBUTIONS = ("triton", "numpy", "mlstm_kernels", "flash-linear-attention", "fla-core")

GATED = ("mlstm torch", "simple GLA", "gated delta rule")
CONTESTANTS = {
    "mlstm": ("mlstm", *XL_CHUNK, "flash attention", "mlstm sigmoid", "xl_chunk sigmoid 128", *GATED),
    "hmlstm": ("mlstm", "hmlstm", "log-linear attention"),
    "slstm": ("slstm", "slstm + Linear", "nn.LSTM", "nn.LSTM float16", "slstm torch"),
    "layer": tuple(gpu_layer.CONTESTANTS),
}
ALL = tuple(dict.fromkeys(chain.from_iterable(CONTESTANTS.values())))
# The order of the times: ours with a promise, then what they are compared with; what no promise needs, after decoding.
PROMISED = ("mlstm", "hmlstm", "slstm", "slstm + Linear", "nn.LSTM", "nn.LSTM float16")
COMPARED = ("xl_chunk 128, 8 warps", "xl_chunk 256, 8 warps", "flash attention", "log-linear attention")
TIMED_FIRST = (*PROMISED, *COMPARED, *CONTESTANTS["layer"], "slstm torch", "mlstm sigmoid")
TIMED_LAST = ("xl_chunk 128", "xl_chunk 256", "xl_chunk sigmoid 128", *GATED)
COMPILED_FIRST = (
    *("xl_chunk 128, 8 warps", "xl_chunk 256, 8 warps", "log-linear attention"),
    *("xl_chunk 128", "xl_chunk 256", "xl_chunk sigmoid 128"),
)
COMPILED_LAST = ("simple GLA", "gated delta rule")  # compiling and tuning these takes longest


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    on_gpu, interpreted = torch.cuda.is_available(), os.environ.get("TRITON_INTERPRET") == "1"
    quick = interpreted or options.quick
    if not on_gpu and not interpreted:
        print(
            "PyTorch sees no GPU, and TRITON_INTERPRET=1, with which kernels run on a CPU, is not set.", file=sys.stderr
        )
        return 2
    date = datetime.now(UTC)
    seed = int(f"{date:%y%m%d%H%M}") if options.seed is None else options.seed
    run = _Run(options, quick, seed, [2**n for n in range(10, 17)] if options.all else LENGTHS)
    run.facts = _facts(date, seed, options.commit, arguments, on_gpu)
    run.stem = f"GPU-{date:%Y%m%d-%H%M}{'-quick' if quick else ''}"
    try:
        run.all()
    except KeyboardInterrupt:
        run.say("stopped")
    print(check_table(run.results) if quick else summary(run.results, run.lengths))
    if run.page:
        print(f"\n{run.page}")
    wrong = [row for row in run.results.rows["checks"] if not row.get("passed") and row.get("problem") != "out of time"]
    return 1 if wrong else 0


class _Run:
    """One run, and what it has found so far."""

    def __init__(self, options: argparse.Namespace, quick: bool, seed: int, lengths: Sequence[int]) -> None:
        self.options, self.quick, self.seed, self.lengths = options, quick, seed, lengths
        self.chosen: tuple[str, ...] = options.only
        # hmlstm is compared with mlstm, and decoding is made of it.
        needed = {"mlstm"} if {"hmlstm", "decode"} & set(self.chosen) else set()
        self.checked = [operator for operator in OPERATORS if operator in needed | set(self.chosen)]
        self.around = gpu_layer.PARTS if "layer" in self.chosen else ()
        self.begun = time.monotonic()
        self.results = Results()
        self.ending: dict[tuple[Any, ...], Row] = {}  # compilations that ended their process, by `_kind`
        self.facts: dict[str, str] = {}
        self.stem = ""
        self.page: Path | None = None

    def all(self) -> None:
        """Every section in turn."""
        if self.quick:
            tasks = [
                Task("benchmarks.gpu_checks:check", gpu_checks.small_cases(operator, self.seed))
                for operator in self.checked
            ]
            tasks += [Task("benchmarks.gpu_layer:check", gpu_layer.small_cases(x, self.seed)) for x in self.around]
            self._section("checks", tasks, 0, 1.0)
            return
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._rates()
        self._section("checks", list(self._checks()), max(1, min(16, os.cpu_count() or 1)), CHECKED_UNTIL)
        # Decoding is short, and matters more than peers without a promise.
        self._section("times", list(self._times(TIMED_FIRST)), 1, 0.8)
        if "decode" in self.chosen:
            rate = self.results.rate("copy") or float("nan")
            cases = [{"batch": batch, "rate": rate} for batch in DECODED]
            self._section("decode", [Task("benchmarks.gpu_decode:decode", cases)], 1, 0.9)
        self._section("times", list(self._times(TIMED_LAST)), 1, 1.0)

    def _rates(self) -> None:
        task = Task("benchmarks.gpu_decode:rates", [{"what": what} for what in ("copy", "product")])
        self._section("rates", [task], 1, 1.0)
        if any("fork" in row.get("problem", "") for row in self.results.rows["rates"]):
            gpu_workers.START[0] = "spawn"
            self.results.rows["rates"].clear()
            self._section("rates", [task], 1, 1.0)

    def _checks(self) -> Iterator[Task]:
        """Checks of all operators in turn, so that time running out hits all alike; and peers' kernels are compiled."""
        of_operators = [
            *([Task("benchmarks.gpu_checks:check", [x]) for x in gpu_checks.cases(o, self.seed)] for o in self.checked),
            *([Task("benchmarks.gpu_layer:check", [x]) for x in gpu_layer.cases(o, self.seed)] for o in self.around),
        ]
        checks = [task for task in chain.from_iterable(zip_longest(*of_operators)) if task is not None]
        compiled_first, compiled_last = (
            [Task("benchmarks.gpu_work:compiled", cases) for cases in self._to_compile(group)]
            for group in (COMPILED_FIRST, COMPILED_LAST)
        )
        if "decode" in self.chosen:
            compiled_first += [Task("benchmarks.gpu_decode:compiled", [{"batch": batch}]) for batch in DECODED]
        head = 16  # enough to begin with; then what takes longest
        yield from (*checks[:head], *compiled_first, *checks[head:], *compiled_last)

    def _to_compile(self, group: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """What takes long to compile one kernel after the other, when its turn to be timed has come."""
        for who in self._taking_part(group):
            lengths = self.lengths if who == "log-linear attention" else self.lengths[:1]  # it has kernels for each
            for dk, dv in SHAPES:
                yield [{"who": who, "batch": 1, "time": length, "dk": dk, "dv": dv} for length in lengths]

    def _taking_part(self, group: Sequence[str]) -> list[str]:
        wanted = {who for part in self.chosen for who in CONTESTANTS.get(part, ())} & set(self.options.who or ALL)
        return [who for who in group if who in wanted]

    def _times(self, group: Sequence[str]) -> Iterator[Task]:
        function = "benchmarks.gpu_work:timed"
        for who in self._taking_part(group):
            if who in CONTESTANTS["layer"]:
                yield Task(function, list(gpu_layer.timed_cases(who)))
            elif who in CONTESTANTS["slstm"]:
                yield Task(function, list(_scalar_cases(who)))
            else:
                yield from (Task(function, list(self._cases(who, *shape))) for shape in SHAPES)

    def _cases(self, who: str, dk: int, dv: int) -> Iterator[dict[str, Any]]:
        lengths = self.lengths[:1] if who == "mlstm torch" else self.lengths
        for length in lengths:
            for mode in ("forward", "both"):
                sizes = {"batch": TOKENS // length, "time": length, "dk": dk, "dv": dv}
                yield {"who": who, "mode": mode, **sizes}

    def _section(self, name: str, tasks: list[Task], processes: int, share: float) -> None:
        """Work on the tasks until `share` of the time is spent, and write what there is then."""
        until = self.begun + 60 * self.options.minutes * share

        def found(row: Row) -> None:
            if name != "checks" or "operator" in row:
                self.results.rows[name].append(row)
            elif "who" in row and gpu_workers.ended(row):  # a peer's kernels; any other failure will come again
                self.ending[_kind(row)] = row
            else:
                return
            if "problem" in row and not row["problem"].startswith((gpu_workers.OUT_OF_TIME, gpu_workers.UNTRIED)):
                self.say(f"{name}: {', '.join(map(str, row.values()))}"[:300])

        tried = [task for task in tasks if _kind(task.cases[0]) not in self.ending]
        gpu_workers.run(tried, found, processes=processes, until=until)
        for case in chain.from_iterable(task.cases for task in tasks if task not in tried):
            found(case | gpu_workers.untried(self.ending[_kind(case)]))
        if self.options.out or not self.quick:
            self.page = write(self.options.out or RESULTS, self.stem, self.facts, self.results, self.lengths)
        self.say(f"{name} done")

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begun:5.0f} s] {text}", file=sys.stderr, flush=True)


def _kind(case: dict[str, Any]) -> tuple[Any, ...]:
    """Cases of one kind share their kernels."""
    return tuple(case.get(name) for name in ("who", "dk", "dv"))


def _scalar_cases(who: str) -> Iterator[dict[str, Any]]:
    for batch, length, heads, width in SCALAR:
        steps = LOOP if who == "slstm torch" else length
        for mode in ("forward", "both"):
            yield {"who": who, "mode": mode, "batch": batch, "time": steps, "heads": heads, "width": width}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="gpu.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=7.0, metavar="M", help="for everything; default: 7")
    parser.add_argument("--only", type=_sections, default=SECTIONS, metavar="A,B", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument(
        "--who", action="append", choices=ALL, metavar="NAME", help=f"whose times, each by one --who: {'; '.join(ALL)}"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results; none with --quick")
    parser.add_argument("--all", action="store_true", help="all lengths from 1k to 64k, not only every other")
    parser.add_argument("--quick", action="store_true", help="tiny checks only; with TRITON_INTERPRET=1 on any machine")
    parser.add_argument("--seed", type=int, metavar="N", help="of the checks' data; default: the date")
    parser.add_argument("--commit", metavar="ID", help="of the sources, where there is no git")
    return parser.parse_args(arguments)


def _sections(text: str) -> tuple[str, ...]:
    chosen = tuple(filter(None, text.split(",")))
    if unknown := set(chosen) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return chosen


def _facts(
    date: datetime, seed: int, given: str | None, arguments: Sequence[str] | None, on_gpu: bool
) -> dict[str, str]:
    """Where, when and with what."""
    command = shlex.join(["python", "benchmarks/gpu.py", *(sys.argv[1:] if arguments is None else arguments)])
    facts = {
        "date": f"{date:%Y-%m-%d %H:%M %Z}",
        "command": f"`{command}`",
        "commit": given or commit().strip(" ()") or "unknown",
        "seed": str(seed),
        "card": "none: Triton's interpreter on a CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if on_gpu:
        facts |= {"card": _card(), "cuda": str(torch.version.cuda or torch.version.hip)}
        facts["cudnn"] = str(torch.backends.cudnn.version())
    for name in DISTRIBUTIONS:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts | {name: value for name, value in machine().items() if name in ("processor", "system", "memory")}


def _card() -> str:
    """Name, driver and memory, without occupying the card."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return torch.cuda.get_device_name()
    name, driver, memory = (part.strip() for part in told.split(","))
    return f"{name}, {memory}, driver {driver}"


if __name__ == "__main__":
    raise SystemExit(main())
