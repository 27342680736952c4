"""The script for a GPU, as far as a machine without one can tell: its checks, and what it times."""

import json
import math
import subprocess
import sys
from functools import partial
from itertools import chain

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_decode, gpu_kernels, gpu_layer, gpu_report, gpu_work, gpu_workers
from benchmarks.gpu_workers import Task
from exlstm.ops import mlstm
from exlstm.ops.triton import mlstm_tiles

LENGTHS = (1024, 65536)
CASE = gpu_checks.small_cases("mlstm", 1)[1]


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
