"""What the page of a GPU run says of its promises."""

import json

import pytest

from benchmarks import gpu, gpu_checks, gpu_report
from benchmarks.gpu_report import Results

LENGTHS = (1024, 65536)


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
