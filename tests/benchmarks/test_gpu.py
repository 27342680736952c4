"""The script for a GPU, as far as a machine without one can tell: checks, processes, times and the page."""

import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from functools import partial
from itertools import chain

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_decode, gpu_kernels, gpu_layer, gpu_report, gpu_work, gpu_workers
from benchmarks.gpu_report import Results
from benchmarks.gpu_workers import Task
from exlstm.ops import mlstm
from exlstm.ops.triton import mlstm_tiles

LENGTHS = (1024, 65536)
CASE = gpu_checks.small_cases("mlstm", 1)[1]


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


def test_without_gpu_and_interpreter_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.count(".") == 1


def test_a_quick_run_compares_with_float64_and_writes_what_it_found(tmp_path, capsys):
    pytest.importorskip("triton")
    assert gpu.main(["--quick", "--only", "mlstm", "--out", str(tmp_path), "--seed", "8", "--commit", "abc"]) == 0
    (data,) = tmp_path.glob("GPU-*-quick.json")
    found = json.loads(data.read_text())
    assert (found["seed"], found["commit"]) == ("8", "abc")
    assert [row["passed"] for row in found["checks"]] == [True] * 3
    assert not any(row["value"] for row in found["promises"])
    assert "| mlstm | exp | float32 | 1 of 1 | 0 |" in capsys.readouterr().out


def test_a_part_that_there_is_not_is_an_error(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--only", "nonsense"])
    assert "unknown: nonsense; there are mlstm" in capsys.readouterr().err


@pytest.mark.parametrize("change", [lambda x: x * 1.01, lambda x: x * math.nan])
def test_a_kernel_that_is_off_fails(monkeypatch, change):
    def off(*tensors, backend, **options):
        h, state = mlstm(*tensors, backend="torch", **options)
        return (change(h) if backend == "triton" else h), state

    monkeypatch.setitem(gpu_checks.OPERATORS, "mlstm", off)
    found = gpu_checks.check(**CASE)
    assert not found["passed"]
    assert found["ratio"] > gpu_checks.MOST[CASE["dtype"]]


def test_a_kernel_whose_bits_change_fails(monkeypatch):
    calls = []

    def restless(*tensors, backend, **options):
        calls.append(backend)
        h, state = mlstm(*tensors, backend="torch", **options)
        return (h + 1e-7 * len(calls) if backend == "triton" else h), state

    monkeypatch.setitem(gpu_checks.OPERATORS, "mlstm", restless)
    found = gpu_checks.check(**CASE)
    assert (found["passed"], found["same_bits"]) == (False, False)
    assert found["ratio"] <= gpu_checks.MOST[CASE["dtype"]]


@pytest.mark.parametrize("operator", gpu_report.OPERATORS)
def test_checks_cover_what_is_timed_and_odd_widths_in_every_type(operator):
    cases = gpu_checks.cases(operator, 1)
    assert {case["dtype"] for case in cases} == set(gpu_checks.DTYPES)
    widths = {(case["dk"], case["dv"]) for case in cases if case["dtype"] == "bfloat16"}
    assert widths >= ({(64, 0), (192, 0), (128, 0), (17, 0)} if operator == "slstm" else {*gpu.SHAPES, (24, 17)})
    assert {case["time"] for case in cases} >= {1, 17, 64, 257}


def test_what_fails_takes_no_other_case_along():
    rows = []
    tasks = [Task("tests.benchmarks.test_gpu:unable", [{"value": v} for v in (1, -1, 2, -4, 3, -2)])]
    tasks.append(Task("tests.benchmarks.test_gpu:unable", [{"value": 5}]))
    gpu_workers.run(tasks, rows.append, processes=2, until=time.monotonic() + 300)
    found = {row["value"]: row for row in rows}
    assert {value: row["twice"] for value, row in found.items() if value > 0} == {v: 2 * v for v in (1, 2, 3, 5)}
    assert found[-1]["problem"] == "RuntimeError: an illegal memory access"
    assert found[-2]["problem"] == "its process died (exit code 3)"
    assert found[-4]["problem"] == "ValueError: shapes do not fit"
    assert found[1]["process"] != found[2]["process"]


def test_after_a_case_that_ended_its_process_the_task_is_left_out():
    rows = []
    tasks = [
        Task("tests.benchmarks.test_gpu:unable", [{"value": v} for v in values]) for values in ((1, -5, 2, 3), (4,))
    ]
    gpu_workers.run(tasks, rows.append, processes=1, until=time.monotonic() + 300)
    died = "its process died (exit code -6)"
    assert [row.get("problem") for row in rows] == [None, died, *[f"not tried: {died} in a case before"] * 2, None]


@pytest.mark.slow
def test_a_case_that_hangs_is_ended_and_the_next_task_begun():
    rows = []
    tasks = [Task("tests.benchmarks.test_gpu:unable", [{"value": v} for v in values]) for values in ((-3, 1), (2,))]
    gpu_workers.run(tasks, rows.append, processes=1, until=time.monotonic() + 300, limit=20)
    assert rows[0]["problem"] == "no answer within 20 s"
    assert rows[1]["problem"] == "not tried: no answer within 20 s in a case before"
    assert rows[2]["twice"] == 4


def test_processes_begin_with_what_is_slow_to_import_and_leave_no_lock_behind():
    code = (
        "import json, time\n"
        "from benchmarks import gpu_workers\n"
        "tasks = [gpu_workers.Task('tests.benchmarks.test_gpu:begun', [{'value': 1}])]\n"
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


def started(tmp_path, *arguments: str) -> gpu._Run:
    run = gpu._Run(gpu._parse([*arguments, "--out", str(tmp_path)]), False, 1, LENGTHS)
    run.stem = "GPU-x"
    return run


def test_ours_with_a_promise_are_timed_first_and_no_one_twice(tmp_path):
    groups = gpu.TIMED_FIRST, gpu.TIMED_LAST
    assert sorted(chain(*groups)) == sorted(gpu_work.CONTESTANTS)
    order = [task.cases[0]["who"] for group in groups for task in started(tmp_path)._times(group)]
    assert list(dict.fromkeys(order)) == list(chain(*groups))
    assert order[:4] == ["mlstm", "mlstm", "hmlstm", "hmlstm"]
    few = started(tmp_path, "--only", "hmlstm")
    assert {task.cases[0]["who"] for group in groups for task in few._times(group)} == {
        "mlstm", "hmlstm", "log-linear attention",
    }  # fmt: skip
    two = started(tmp_path, "--who", "mlstm", "--who", "xl_chunk 128, 8 warps")
    assert {task.cases[0]["who"] for group in groups for task in two._times(group)} == {
        "mlstm", "xl_chunk 128, 8 warps",
    }  # fmt: skip


def test_a_peer_whose_compilation_ended_a_process_is_not_timed_at_those_widths(tmp_path, monkeypatch):
    died = "its process died (exit code -6)"

    def work(tasks, found, **_):
        for case in chain.from_iterable(task.cases for task in tasks):
            compiles = "mode" not in case
            dies = compiles and case["who"] == "xl_chunk 256" and case["dk"] == 64
            raises = compiles and case["who"] == "xl_chunk 128"
            found(case | ({"problem": died} if dies else {"problem": "ValueError: no"} if raises else {"seconds": 1.0}))

    monkeypatch.setattr(gpu_workers, "run", work)
    run = started(tmp_path, "--only", "mlstm")
    run._section("checks", [Task("", cases) for cases in run._to_compile(gpu.COMPILED_FIRST)], 1, 1.0)
    run._section("times", list(run._times(gpu.TIMED_LAST)), 1, 1.0)
    assert run.results.rows["checks"] == []
    untried = [row for row in run.results.rows["times"] if "problem" in row]
    assert {(row["who"], row["dk"], row["dv"]) for row in untried} == {("xl_chunk 256", 64, 128)}
    assert len(untried) == 2 * len(LENGTHS)
    assert {row["problem"] for row in untried} == {f"not tried: {died} in a case before"}


@pytest.mark.parametrize("processes", [0, 1])
def test_what_there_is_no_time_for_is_in_the_results(processes):
    rows = []
    tasks = [Task("tests.benchmarks.test_gpu:unable", [{"value": 1}, {"value": 2}])]
    gpu_workers.run(tasks, rows.append, processes=processes, until=time.monotonic() - 1)
    assert rows == [{"value": 1, "problem": "out of time"}, {"value": 2, "problem": "out of time"}]


def test_times_are_medians_of_calls_that_take_turns():
    made, asked = [], []

    def clock(calls):
        asked.append(len(calls))
        for call in calls:
            call()
        return [0.1] * (len(calls) - 1) + [0.7]

    found = gpu_work.measure([lambda: made.append("a"), lambda: made.append("b")], clock, seconds=0.5)
    assert found == {"seconds": 0.1, "lowest": 0.1, "highest": 0.7, "calls": 5}
    assert asked == [2, 5]
    assert "".join(made) == "ab" + "ab" + "ababa"


def test_calls_are_queued_while_the_device_waits(monkeypatch):
    made = []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            made.append("mark")

        def elapsed_time(self, end):
            return 5.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: made.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: made.append(cycles))
    call = partial(made.append, "call")
    assert gpu_work.event_clock([call]) == [0.005]
    assert gpu_work.event_clock([call] * 2, ahead=0.5) == [0.005] * 2
    assert made == [
        "wait",
        "mark",
        "call",
        "mark",
        "wait",
        "wait",
        *[1_500_000_000, "mark", "call", "mark"] * 2,
        "wait",
    ]


@pytest.mark.parametrize("mode", ["forward", "both"])
@pytest.mark.parametrize(
    ("who", "sizes"),
    [
        ("mlstm torch", {"dk": 8, "dv": 16}),
        ("flash attention", {"dk": 8, "dv": 16}),
        ("slstm torch", {"heads": 2, "width": 8}),
        ("nn.LSTM", {"heads": 2, "width": 8}),
    ],
)
def test_contestants_run(who, sizes, mode, monkeypatch):
    monkeypatch.setattr(gpu_work, "MOST", 3)
    if torch.cuda.is_available():
        pytest.skip("sizes are those for a CPU")
    found = gpu_work.timed(who, mode, clock=gpu_work.host_clock, batch=1, time=16, **sizes)
    assert found["lowest"] <= found["seconds"] <= found["highest"]


def time_row(who, seconds, mode="both", **sizes):
    return {"who": who, "mode": mode, "seconds": seconds, **sizes}


@pytest.fixture
def results() -> Results:
    """A run in which ours takes 1 s wherever it was timed."""
    found = Results()
    for operator in ("mlstm", "hmlstm", "slstm"):
        for case in gpu_checks.cases(operator, 1):
            errors = {"tensor": "h", "error": 1e-3, "torch": 1e-3, "ratio": 1.0, "same_bits": True, "passed": True}
            found.rows["checks"].append(case | errors)
    rows = found.rows["times"]
    for dk, dv in gpu.SHAPES:
        for length in LENGTHS:
            sizes = {"batch": 65536 // length, "time": length, "dk": dk, "dv": dv}
            for mode in ("forward", "both"):
                rows.append(time_row("mlstm", 1.0, mode, **sizes))
                rows.append(time_row("xl_chunk 128", 1.3, mode, **sizes))
                rows.append(time_row("xl_chunk 256", 1.1 if length == 1024 else 1.5, mode, **sizes))
            rows.append(time_row("flash attention", length / 10000, **sizes))
            rows.append(time_row("hmlstm", 2.5, **sizes))
            rows.append({"who": "log-linear attention", "mode": "both", **sizes, "problem": "ImportError: no fla"})
    sizes = {"batch": 16, "heads": 4, "width": 64}
    rows.append(time_row("slstm", 1.0, time=1024, **sizes))
    rows.append(time_row("slstm + Linear", 1.2, time=1024, **sizes))
    rows.append(time_row("nn.LSTM", 1.5, time=1024, **sizes))
    rows.append(time_row("slstm torch", 2.0, time=128, **sizes))
    found.rows["rates"] = [{"what": "copy", "rate": 3e12}, {"what": "product", "rate": 8e14}]
    step = {"seconds": 1e-3, "bytes": 2.6e9, "bandwidth": 2.6e12, "share": 0.87, "passed": True}
    found.rows["decode"] = [{"batch": 1, **step}, {"batch": 64, "problem": "out of time"}]
    return found


def verdicts(results: Results) -> dict[str, tuple[float | None, str]]:
    return {one.text: (one.value, one.verdict) for one in gpu_report.promises(results, LENGTHS)}


def test_promises_stand_beside_the_worst_that_was_measured(results):
    found = verdicts(results)
    shape = "DK 256, DV 512"
    assert found[f"mLSTM forward over TFLA xl_chunk (its best variant), {shape}"] == (1.1, "not met")
    assert found[f"mLSTM over flash attention at T = 65536, {shape}"] == (6.5536, "met")
    assert found[f"time of hmlstm over that of mLSTM at T = 65536, {shape}"] == (2.5, "not met")
    assert found[f"hmlstm over log-linear attention, {shape}"] == (None, "not measured")
    assert found["sLSTM forward and backward over a loop of torch calls"] == (16.0, "met")
    assert found["sLSTM and its input product over nn.LSTM by cuDNN"] == (1.25, "met")
    share = "share of the measured bandwidth in a decode step of a 1.3 B model"
    assert found[f"{share}, B = 1"] == (0.87, "met")
    assert found[f"{share}, B = 64"] == (None, "not measured: out of time")


def test_no_time_counts_for_an_operator_that_failed_a_check(results):
    failing = next(row for row in results.rows["checks"] if row["operator"] == "mlstm" and row["dtype"] == "float32")
    failing["passed"] = False
    void = {text: verdict for text, (_, verdict) in verdicts(results).items() if "mLSTM" in text or "model" in text}
    assert all("checks of mlstm failed" in v or v.startswith("not measured") for v in void.values())
    assert verdicts(results)["sLSTM forward and backward over a loop of torch calls"][1] == "met"


def test_checks_there_was_no_time_for_are_counted_apart(results):
    late = [row for row in results.rows["checks"] if row["operator"] == "hmlstm" and row["time"] == 64]
    for row in late:
        for name in ("error", "torch", "ratio", "passed"):
            del row[name]
        row["problem"] = "out of time"
    assert not results.failed("hmlstm")
    in_bfloat16 = sum(row["dtype"] == "bfloat16" for row in late)
    assert f"| hmlstm | exp | bfloat16 | 20 of 20 | {in_bfloat16} |" in gpu_report.check_table(results)


def test_the_page_has_the_times_the_promises_and_what_was_not_measured(results, tmp_path):
    page = gpu_report.write(tmp_path, "GPU-x", {"card": "a card"}, results, LENGTHS).read_text()
    assert "| ms, forward and backward, DK 64, DV 128 | 64 x 1024 | 1 x 65536 |" in page
    assert "| xl_chunk 256 | 1.1e+03 | 1.5e+03 |" in page
    assert "on the device" not in page
    assert "| B = 1 | 1.000 ms | 2.60 GB, 2.60 TB/s | 87% |" in page
    assert "log-linear attention" in page.partition("## Not measured")[2]
    assert "- decode: 1 not reached in the time given" in page
    assert json.loads((tmp_path / "GPU-x.json").read_text())["card"] == "a card"


def test_what_the_host_takes_beyond_the_device_is_in_brackets(results):
    chosen = [row for row in results.rows["times"] if row["who"] == "mlstm" and row["dk"] == 64]
    for row, device in zip(chosen, (0.5, 0.95, 0.8, 1.0), strict=True):
        row["device_seconds"] = device
    text = gpu_report.summary(results, LENGTHS)
    assert '"2.77 (1.57 on the device)"' in text
    assert "| mlstm | 1e+03 (500 on the device) | 1e+03 (800 on the device) |" in text
    assert "| mlstm | 1e+03 | 1e+03 |" in text
    assert verdicts(results)["mLSTM over flash attention at T = 65536, DK 64, DV 128"][0] == 6.5536


def test_a_walk_in_segments_is_among_the_checks():
    long = [case for case in gpu_checks.cases("mlstm", 1) if case["time"] == gpu_checks.LONG]
    assert len(long) == 2
    for case in long:
        tiles = mlstm_tiles.tiles_of(gpu_checks.DTYPES[case["dtype"]], case["dk"], case["dv"], case["time"])
        rows, chunks = gpu_checks.BATCH * gpu_checks.HEADS, -(-case["time"] // tiles.chunk)
        assert mlstm_tiles.segments_of(tiles.states, rows, case["dk"], case["dv"], chunks) > 1


@pytest.mark.parametrize("part", gpu_layer.PARTS)
def test_what_surrounds_the_memory_is_compared_with_all_its_gradients(part, monkeypatch):
    pytest.importorskip("triton")
    (case, *_) = gpu_layer.small_cases(part, 3)
    assert gpu_layer.check(**case)["passed"]
    names, draw, run = gpu_layer._PARTS[part]

    def wrong(*x, backend, **options):
        outputs = run(*x, backend=backend, **options)
        return tuple(1.001 * y for y in outputs) if backend == "triton" else outputs

    monkeypatch.setitem(gpu_layer._PARTS, part, (names, draw, wrong))
    assert not gpu_layer.check(**case)["passed"]


@pytest.mark.parametrize("who", gpu_layer.CONTESTANTS)
def test_what_surrounds_the_memory_is_timed(who):
    if "torch" not in who:
        pytest.importorskip("triton")
    sizes = {"batch": 1, "time": 8, "channels": 128}
    found = gpu_work.timed(who, "both", clock=gpu_work.host_clock, **sizes)
    assert found["seconds"] > 0


@pytest.mark.parametrize("batch", [1, 2])
def test_a_decode_step_is_compared_and_its_bytes_are_counted(batch):
    sizes = gpu_decode.Sizes(width=64, blocks=2, heads=2, vocabulary=50)
    found = gpu_decode.decode(batch, 1e9, sizes=sizes, device="cpu", clock=gpu_work.host_clock)
    assert found["passed"]
    memories = 2 * batch * 2 * (16 * 32 + 16 + 1) * 4  # blocks, rows, heads; C, n, m in float32
    assert found["state_bytes"] == memories
    assert found["bytes"] == 2 * (found["parameters"] - 50 * 64) + 2 * memories
    assert found["share"] == pytest.approx(found["bytes"] / found["seconds"] / 1e9)
    assert gpu_decode.compiled(batch, sizes=sizes, device="cpu")


def test_it_needs_nothing_that_a_bare_machine_has_not():
    code = (
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'pandas', 'pyarrow', 'rich', 'safetensors', 'jinja2', 'matplotlib'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refused())\n"
        "from benchmarks import gpu, gpu_checks, gpu_decode, gpu_work\n"
        "gpu_decode.Decoder(gpu_decode.Backbone('m', 16, 2), batch=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("operator", "field", "values"),
    [("mlstm", "values", [64, 64, 32, 4, 2]), ("hmlstm", "keys", [{"BS": 32, "BD": 64, "BT": 64}, 4, 2])],
)
def test_kernels_are_timed_with_other_tiles(operator, field, values):
    sizes, reader = (torch.bfloat16, 256, 512, 4096), gpu_kernels.TABLES[operator][0]
    before = reader.tiles_of(*sizes)
    with gpu_kernels.tiles(operator, {field: values}):
        assert reader.tiles_of(*sizes) == before._replace(**{field: tuple(values)})
    assert reader.tiles_of(*sizes) == before


@pytest.mark.parametrize(
    ("of", "tile", "message"),
    [
        ("mlstm", ("score", "[64, 0, 64, 4, 2]"), "the table of mlstm has the fields states, scores"),
        ("mlstm", ("scores", "[64, 0, 64]"), "scores needs a JSON list of rows, columns, inner, warps, stages"),
        ("hmlstm", ("scores", "64"), "scores needs a JSON list of blocks, warps, stages"),
        ("hmlstm", ("scores", "{64"), "scores needs a JSON list of blocks, warps, stages"),
        ("mlstm torch", ("scores", "[1]"), "tiles are those of mlstm, mlstm sigmoid, hmlstm, got 'mlstm torch'"),
    ],
)
def test_a_tile_that_no_table_has_is_refused(of, tile, message, capsys):
    with pytest.raises(SystemExit):
        gpu_kernels.main([of, "--tile", *tile])
    assert message in capsys.readouterr().err
