"""The page of a run on a GPU, and what it says of the promised speeds."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import table

Row = dict[str, Any]
MODES = {"forward": "forward", "both": "forward and backward"}
OPERATORS = ("mlstm", "hmlstm", "slstm")
XL_CHUNK = ("xl_chunk 128", "xl_chunk 256", "xl_chunk 128, 8 warps", "xl_chunk 256, 8 warps")

_HOW = """\
Correctness: the error of each output, final state and gradient against float64, ||x - exact|| / ||exact||, may be at
most twice that of the chunkwise PyTorch backend on the same rounded inputs, or what rounding alone costs. Two runs must
give the same bits. Times count only where every check of the operator passed. Times: the median over calls between two
CUDA events, bfloat16, random data, several sets of inputs in turn; forward and backward with the gradients of all
inputs. mLSTM and hmlstm: 8 heads, 65,536 tokens, as many sequences of T as that makes. sLSTM: the loop of torch calls
is timed over fewer steps than the others and its time a step compared; nn.LSTM multiplies its inputs by weights, too,
so it is compared with ours and that product."""


_HOST = """\
Where calls wait for the host, which launches their kernels one by one, what they take when all are launched beforehand
stands in brackets, if that is over 10% less: "2.77 (1.57 on the device)". Promises are judged by the first number."""


class Promise(NamedTuple):
    """A speed that was promised, what was measured (None: it was not), and why it does not count, if it does not."""

    text: str
    goal: float
    at_most: bool
    value: float | None
    where: str = ""
    void: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured" + (f": {self.void}" if self.void else "")
        if self.void:
            return f"does not count: {self.void}"
        met = self.value <= self.goal if self.at_most else self.value >= self.goal
        return "met" if met else "not met"


class Results:
    """The rows of a run so far: "checks", "times", "decode" and "rates"."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {"rates": [], "checks": [], "times": [], "decode": []}

    def failed(self, operator: str) -> str:
        """Why times of this operator do not count; empty if they do."""
        checks = [row for row in self.rows["checks"] if row["operator"] == operator]
        failed = [row for row in checks if not _skipped(row) and not row.get("passed")]
        if failed:
            return f"{len(failed)} of {len(checks)} checks of {operator} failed"
        done = [row for row in checks if not _skipped(row) and row["dtype"] == "bfloat16"]
        return "" if done else f"no check of {operator} in bfloat16 was made"

    def seconds(self, who: str, mode: str, **sizes: int) -> float | None:
        """The time of a contestant at some sizes."""
        for row in self.rows["times"]:
            wanted = {"who": who, "mode": mode, **sizes}
            if "seconds" in row and all(row.get(name) == value for name, value in wanted.items()):
                return float(row["seconds"])
        return None

    def rate(self, what: str) -> float | None:
        """Bytes ("copy") or operations ("product") a second."""
        return next((row["rate"] for row in self.rows["rates"] if row["what"] == what and "rate" in row), None)


def _skipped(row: Row) -> bool:
    return row.get("problem") == "out of time"


def promises(results: Results, lengths: Sequence[int]) -> list[Promise]:
    """All of them."""
    return [*_of_mlstm(results, lengths), *_of_hmlstm(results, lengths), *_of_slstm(results), *_of_decode(results)]


def _of_mlstm(results: Results, lengths: Sequence[int]) -> Iterator[Promise]:
    void = results.failed("mlstm")
    for dk, dv in ((256, 512), (64, 128)):
        shape = f"DK {dk}, DV {dv}"

        def ratio(mode: str, peers: Iterable[str], time: int, dk: int = dk, dv: int = dv) -> float | None:
            return _ratio(results, peers, "mlstm", mode, dk=dk, dv=dv, time=time)

        for mode, name in reversed(MODES.items()):
            value, where = _least((f"T = {t}", ratio(mode, XL_CHUNK, t)) for t in lengths)
            yield Promise(
                f"mLSTM {name} over TFLA xl_chunk (its best variant), {shape}", 1.2, False, value, where, void
            )
        value, where = _least((f"T = {t}", ratio("both", ["flash attention"], t)) for t in lengths if t >= 4096)
        yield Promise(f"mLSTM over flash attention from T = 4096 on, {shape}", 1.0, False, value, where, void)
        value = ratio("both", ["flash attention"], 65536)
        yield Promise(f"mLSTM over flash attention at T = 65536, {shape}", 4.0, False, value, "", void)


def _of_hmlstm(results: Results, lengths: Sequence[int]) -> Iterator[Promise]:
    void = results.failed("hmlstm")
    for dk, dv in ((256, 512), (64, 128)):
        shape = f"DK {dk}, DV {dv}"
        value = _ratio(results, ["hmlstm"], "mlstm", "both", dk=dk, dv=dv, time=65536)
        either = void or results.failed("mlstm")
        yield Promise(f"time of hmlstm over that of mLSTM at T = 65536, {shape}", 2.0, True, value, "", either)
        value, where = _least(
            (
                f"T = {t}",
                _ratio(results, ["log-linear attention"], "hmlstm", "both", dk=dk, dv=dv, time=t),
            )
            for t in lengths
        )
        yield Promise(f"hmlstm over log-linear attention, {shape}", 1.0, False, value, where, void)


def _of_slstm(results: Results) -> Iterator[Promise]:
    void = results.failed("slstm")
    shapes = [row for row in results.rows["times"] if row["who"] == "slstm" and row["mode"] == "both"]
    loops, layers = [], []
    for row in shapes:
        sizes = {name: row[name] for name in ("batch", "heads", "width")}
        where = f"{row['batch']} x {row['time']}, {row['heads']} heads of {row['width']}"
        loop = _step_of_loop(results, "both", **sizes)
        one = row.get("seconds")
        loops.append((where, loop * row["time"] / one if loop and one else None))
        peers = ["nn.LSTM", "nn.LSTM float16"]
        layers.append((where, _ratio(results, peers, "slstm + Linear", "both", time=row["time"], **sizes)))
    for text, goal, found in (
        ("sLSTM forward and backward over a loop of torch calls", 10.0, loops),
        ("sLSTM and its input product over nn.LSTM by cuDNN", 1.0, layers),
    ):
        value, where = _least(found)
        yield Promise(text, goal, False, value, where, void)


def _step_of_loop(results: Results, mode: str, **sizes: int) -> float | None:
    """Seconds a step of the loop of torch calls, which was measured over fewer steps."""
    for row in results.rows["times"]:
        wanted = {"who": "slstm torch", "mode": mode, **sizes}
        if "seconds" in row and all(row.get(name) == value for name, value in wanted.items()):
            return float(row["seconds"]) / int(row["time"])
    return None


def _of_decode(results: Results) -> Iterator[Promise]:
    void = results.failed("mlstm")
    for batch in (1, 64):
        row = next((row for row in results.rows["decode"] if row["batch"] == batch), {})
        reason = row.get("problem", "") or void
        if "passed" in row and not row["passed"]:
            reason = "its logits are not those of the whole sequence"
        text = f"share of the measured bandwidth in a decode step of a 1.3 B model, B = {batch}"
        yield Promise(text, 0.7, False, row.get("share"), "", reason)


def _ratio(results: Results, peers: Iterable[str], ours: str, mode: str, **sizes: int) -> float | None:
    """Time of the fastest of `peers` over ours."""
    one = results.seconds(ours, mode, **sizes)
    others = [x for peer in peers if (x := results.seconds(peer, mode, **sizes)) is not None]
    return min(others) / one if others and one else None


def _least(found: Iterable[tuple[str, float | None]]) -> tuple[float | None, str]:
    """The worst ratio, and where."""
    known = [(value, where) for where, value in found if value is not None]
    return min(known) if known else (None, "")


def write(folder: Path, stem: str, facts: dict[str, str], results: Results, lengths: Sequence[int]) -> Path:
    """Write what there is to STEM.json and STEM.md, anew every time."""
    folder.mkdir(parents=True, exist_ok=True)
    told = [promise._asdict() | {"verdict": promise.verdict} for promise in promises(results, lengths)]
    data = {**facts, "promises": told, **results.rows}
    (folder / f"{stem}.json").write_text(json.dumps(data, indent=1, default=str) + "\n", encoding="utf-8")
    page = folder / f"{stem}.md"
    page.write_text(markdown(facts, results, lengths), encoding="utf-8")
    return page


def markdown(facts: dict[str, str], results: Results, lengths: Sequence[int]) -> str:
    """The page."""
    parts = [
        "# GPU",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        _HOW,
        "## Promises",
        promise_table(results, lengths),
        "## Correctness",
        check_table(results),
        "## Times",
        *_time_tables(results),
        "## Decoding",
        decode_table(results),
    ]
    if problems := list(_problems(results)):
        parts += ["## Not measured", "\n".join(f"- {line}" for line in problems)]
    return "\n\n".join(parts) + "\n"


def summary(results: Results, lengths: Sequence[int]) -> str:
    """What is printed last."""
    return "\n\n".join(
        [check_table(results), *_time_tables(results), decode_table(results), promise_table(results, lengths)]
    )


def promise_table(results: Results, lengths: Sequence[int]) -> str:
    """Each promise, what was measured, and whether it is met; where several sizes count, the worst one."""
    rows = []
    for one in promises(results, lengths):
        is_now = "" if one.value is None else f"{one.value:.2f}" + (f" ({one.where})" if one.where else "")
        rows.append((one.text, is_now, f"{'at most' if one.at_most else 'at least'} {one.goal:g}", one.verdict))
    return table(("promise", "is", "goal", ""), rows)


def check_table(results: Results) -> str:
    """The worst of each operator, gate and type; and every check that failed."""
    rows, failures = [], []
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in results.rows["checks"]:
        groups.setdefault((row["operator"], row["gate"], row["dtype"]), []).append(row)
    for key, group in groups.items():
        done = [row for row in group if not _skipped(row)]
        failed = [row for row in done if not row.get("passed")]
        worst = max((row for row in done if "error" in row), key=lambda row: row.get("ratio", 0.0), default=None)
        rows.append((*key, f"{len(done) - len(failed)} of {len(done)}", str(len(group) - len(done)), _error(worst)))
        failures += [f"- failed: {_where(row)}: {row.get('problem') or _error(row)}" for row in failed]
    heads = ("operator", "input gate", "type", "passed", "not reached", "worst")
    return "\n\n".join([table(heads, rows), *(["\n".join(failures)] if failures else [])])


def _where(row: Row) -> str:
    marks = [name for name, there in (("state", row["state"]), ("mask and reset", row["steps"])) if there]
    return ", ".join(
        [
            f"{row['operator']} {row['gate']} {row['dtype']}",
            f"DK {row['dk']}, DV {row['dv']}" if row["dv"] else f"width {row['dk']}",
            f"T = {row['time']}",
            *marks,
            f"{row['gates']} gates",
        ]
    )


def _error(row: Row | None) -> str:
    if row is None:
        return ""
    if "torch" not in row:
        return f"{row['tensor']}: {row['error']:.1e}, allowed {row['bound']:.0e}"
    bits = "" if row["same_bits"] else ", two runs differ"
    return f"{row['tensor']}: {row['error']:.1e}, torch {row['torch']:.1e}, ratio {row['ratio']:.2f}{bits}"


def _time_tables(results: Results) -> Iterator[str]:
    """Milliseconds: for each shape and mode contestants by lengths, and for sLSTM contestants by shapes."""
    rows = results.rows["times"]
    if any(_waits_for_host(row) for row in rows):
        yield _HOST
    for dk, dv in dict.fromkeys((row["dk"], row["dv"]) for row in rows if "dk" in row):
        of_shape = [row for row in rows if row.get("dk") == dk and row["dv"] == dv]
        for mode, name in MODES.items():
            title = f"ms, {name}, DK {dk}, DV {dv}"
            yield _grid(title, [row for row in of_shape if row["mode"] == mode], _sequence)
    for mode, name in MODES.items():
        chosen = [row for row in rows if "width" in row and row["mode"] == mode]
        if chosen:
            yield _grid(
                f"ms, {name}, sLSTM, heads x width",
                chosen,
                lambda row: f"{_sequence(row)}, {row['heads']} x {row['width']}",
            )

    for mode, name in MODES.items():
        chosen = [row for row in rows if "channels" in row and row["mode"] == mode]
        if chosen:
            title = f"ms, {name}, around the memory, B x T, channels"
            yield _grid(title, chosen, lambda row: f"{_sequence(row)}, {row['channels']}")


def _sequence(row: Row) -> str:
    return f"{row['batch']} x {row['time']}"


def _grid(title: str, rows: list[Row], column: Callable[[Row], str]) -> str:
    columns = list(dict.fromkeys(map(column, rows)))
    lines = []
    for who in dict.fromkeys(row["who"] for row in rows):
        found = {column(row): row for row in rows if row["who"] == who}
        cells = [_milliseconds(found.get(c, {})) for c in columns]
        note = next((row["note"] for row in found.values() if row.get("note")), "")
        lines.append((f"{who} ({note})" if note else who, *cells))
    return table((title, *columns), lines)


def _milliseconds(row: Row) -> str:
    if "seconds" not in row:
        return ""
    device = f" ({1e3 * row['device_seconds']:.3g} on the device)" if _waits_for_host(row) else ""
    return f"{1e3 * row['seconds']:.3g}{device}"


def _waits_for_host(row: Row) -> bool:
    return "device_seconds" in row and row["device_seconds"] < 0.9 * row["seconds"]


def decode_table(results: Results) -> str:
    """A step, the bytes it must move, and the card's rates."""
    lines = []
    for row in results.rows["decode"]:
        if "seconds" in row:
            moved = f"{row['bytes'] / 1e9:.2f} GB, {row['bandwidth'] / 1e12:.2f} TB/s"
            lines.append((f"B = {row['batch']}", f"{1e3 * row['seconds']:.3f} ms", moved, f"{100 * row['share']:.0f}%"))
    rates = [("copy on the card", "", f"{rate / 1e12:.2f} TB/s", "100%") for rate in [results.rate("copy")] if rate]
    rates += [("8192^3 product", "", f"{rate / 1e12:.0f} TFLOP/s", "") for rate in [results.rate("product")] if rate]
    return table(("decode step of a 1.3 B model", "time", "moves", "of the copy's rate"), lines + rates)


def _problems(results: Results) -> Iterator[str]:
    for section, rows in results.rows.items():
        late = sum(map(_skipped, rows))
        if late:
            yield f"{section}: {late} not reached in the time given"
        for row in rows:
            if "problem" in row and not _skipped(row) and section != "checks":
                where = ", ".join(f"{name} {value}" for name, value in row.items() if name != "problem")
                yield f"{section}: {where}: {row['problem']}"
