"""The page and the JSON say what was measured, what was not, and whether goals are met."""

import json
from datetime import UTC, datetime

import pytest

from benchmarks.cases import Case, Contestant, Ratio
from benchmarks.measure import Outcome, Result, Settings
from benchmarks.report import Report, table

OURS, PEER, ABSENT = "exlstm mlstm", "peer", "absent"
CASE = Case(
    "mLSTM | 1 x 4",
    tuple(Contestant(name, "module:function") for name in (OURS, PEER, ABSENT)),
    (
        Ratio(PEER, OURS, at_least=8),
        Ratio(OURS, PEER, at_most=0.5),
        Ratio(PEER, OURS, "memory"),
        Ratio(ABSENT, OURS),
    ),
)


@pytest.fixture
def report() -> Report:
    results = [
        Result(
            CASE,
            threads,
            [
                Outcome(OURS, [0.1, 0.1], 2**20, {"parameters": 3.5e6, "state_bytes": 2**19}),
                Outcome(PEER, [0.4, 0.8], 2**30),
                Outcome(ABSENT, problem="crashed: RuntimeError: no"),
            ],
        )
        for threads in (1, 2)
    ]
    date = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    return Report("OPS", date, "python -m benchmarks OPS", {"processor": "P"}, {"torch": "2"}, Settings(), results)


def rows(page: str, heading: str) -> list[list[str]]:
    part = page.partition(f"## {heading}\n")[2].partition("## ")[0]
    return [[cell.strip() for cell in line.split(" | ")] for line in part.splitlines() if line.startswith("|")][2:]


def test_ratios_stand_beside_their_goals_on_one_thread(report):
    shown = [row[-4:] for row in rows(report.markdown(), "Ratios")]
    assert shown[:4] == [
        ["time of peer / exlstm mlstm", "6", "at least 8", "missed by 25% |"],
        ["time of exlstm mlstm / peer", "0.188", "at most 0.5", "met |"],
        ["memory of peer / exlstm mlstm", "1.02e+03", "", "|"],
        ["time of absent / exlstm mlstm", "", "", "|"],
    ]
    assert [row[-2:] for row in shown[4:]] == [["", "|"]] * 4


def test_times_carry_their_range_and_facts(report):
    first = rows(report.markdown(), "Times and memory")[0]
    assert first[2:] == [OURS, "100 ms", "100 ms to 100 ms", "1 MiB", "3.5 M parameters, state of 0.5 MiB |"]


def test_what_could_not_be_measured_is_listed_with_the_reason(report):
    assert "threads: 1, absent: crashed: RuntimeError: no" in report.markdown()


def test_machine_versions_date_and_command_head_the_page(report):
    head = report.markdown().partition("##")[0]
    for line in ("date: 2026-01-02 03:04 UTC", "command: `python -m benchmarks OPS`", "processor: P", "torch: 2"):
        assert f"- {line}\n" in head


def test_both_files_are_written_and_hold_the_same(report, tmp_path):
    page, data = report.write(tmp_path / "new")
    assert (page.name, data.name) == ("OPS-20260102-0304.md", "OPS-20260102-0304.json")
    assert page.read_text() == report.markdown()
    assert json.loads(data.read_text()) == json.loads(json.dumps(report.as_dict()))
    assert json.loads(data.read_text())["results"][0]["ratios"][0]["value"] == 6


def test_bars_in_cells_do_not_break_a_table():
    assert table(("a", "b"), [("x | y", "z")]) == "| a | b |\n| --- | --- |\n| x \\| y | z |"
