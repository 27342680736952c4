"""Contestants run in processes of their own, in turn, and nothing that one of them does ends the run."""

import os
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from benchmarks.cases import Case, Contestant, Ratio
from benchmarks.measure import Outcome, Result, Settings, measure

MEBIBYTE = 2**20
SETTINGS = Settings(repeats=2, turn_seconds=0.0)


def toy(name: str, function: str, peer: str | None = None, **arguments: object) -> Contestant:
    return Contestant(name, f"tests.benchmarks.toys:{function}", arguments, peer=peer)


def run(*contestants: Contestant, settings: Settings = SETTINGS, threads: int = 2) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in measure(Case("toys", contestants), threads, settings).outcomes}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Outcome], str]:
    """Two that work among several that do not; and the calls that the two made."""
    log = tmp_path_factory.mktemp("toys") / "log"
    outcomes = run(
        toy("a", "diligent", log=str(log), letter="a"),
        toy("failing", "failing"),
        toy("dying", "dying"),
        toy("late", "late", calls=2),  # the full call that shows the memory, and a turn
        toy("absent", "diligent", peer="no-such-distribution"),
        toy("b", "diligent", log=str(log), letter="b"),
    )
    return outcomes, log.read_text()


def test_contestants_take_turns_after_warming(mixed):
    _, calls = mixed
    small_full, turn = 3, 1  # with turns of no length the call that warms is the one that counts
    assert calls == "a" * small_full + "b" * small_full + ("a" * turn + "b" * turn) * SETTINGS.repeats


def test_each_has_a_fresh_process_with_the_threads_asked_for(mixed):
    outcomes, _ = mixed
    pids = {outcomes[name].facts["pid"] for name in "ab"}
    assert len(pids - {os.getpid()}) == 2
    assert [outcomes[name].facts["threads"] for name in "ab"] == [2, 2]


def test_those_that_work_have_one_time_a_turn(mixed):
    outcomes, _ = mixed
    assert [(len(outcomes[name].seconds), outcomes[name].problem) for name in "ab"] == [(2, None)] * 2


def test_an_error_is_reported_by_its_last_line(mixed):
    assert mixed[0]["failing"].problem == "crashed: RuntimeError: the shapes do not fit"


def test_a_process_that_dies_is_reported_with_its_last_words(mixed):
    assert mixed[0]["dying"].problem == "crashed: ended by signal 6: Fatal: illegal instruction"


def test_a_crash_in_a_later_turn_takes_the_times_back(mixed):
    late = mixed[0]["late"]
    assert late.problem == "crashed: ValueError: enough"
    assert late.values("time") == []


def test_a_peer_that_is_not_installed_is_listed_with_the_command_that_installs_it(mixed):
    problem = mixed[0]["absent"].problem
    assert problem == 'no-such-distribution is not installed: python -m pip install -e ".[peers,export]"'


def test_a_process_that_does_not_answer_is_ended():
    settings = Settings(repeats=1, limit_seconds=0.1)
    assert run(toy("hanging", "hanging"), settings=settings)["hanging"].problem == "crashed: no answer within 0.1 s"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from the Linux kernel")
def test_peak_memory_is_the_growth_in_a_call_and_allocations_have_a_bound():
    settings = Settings(repeats=1, turn_seconds=0.0, memory=1024 * MEBIBYTE)
    outcomes = run(
        toy("greedy", "greedy", before=400 * MEBIBYTE, during=100 * MEBIBYTE),
        toy("too greedy", "greedy", before=0, during=2048 * MEBIBYTE),
        settings=settings,
    )
    peak = outcomes["greedy"].peak_bytes
    assert peak is not None
    assert peak == pytest.approx(100 * MEBIBYTE, rel=0.05)
    assert re.search("allocate|memory", outcomes["too greedy"].problem or "")


def test_ratios_are_medians_of_the_ratios_turn_by_turn():
    ratio = Ratio("slow", "fast")
    drifting = [Outcome("fast", [1.0, 2.0, 4.0]), Outcome("slow", [3.0, 6.0, 40.0])]
    assert Result(Case("", ()), 1, drifting).ratio(ratio) == 3


def test_times_per_operation_and_sizes_make_ratios_too():
    outcomes = [
        Outcome("a", [3.0], peak_bytes=40, facts={"operations": 2, "state_bytes": 6}),
        Outcome("b", [1.0], peak_bytes=10, facts={"operations": 1, "state_bytes": 3}),
    ]
    result = Result(Case("", ()), 1, outcomes)
    values = [result.ratio(Ratio("a", "b", what)) for what in ("time per operation", "memory", "state size")]
    assert values == [1.5, 4, 2]


def test_a_ratio_to_a_crash_is_unknown():
    result = Result(Case("", ()), 1, [Outcome("a", [1.0]), Outcome("b", [1.0], problem="crashed: no")])
    assert result.ratio(Ratio("a", "b")) is None


def test_no_file_of_the_benchmarks_is_installed_with_exlstm():

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert not any(fnmatch("benchmarks", pattern) for pattern in patterns)
