"""`python -m benchmarks` from end to end, quickly: all of ours take part, whatever peers there are."""

import json

import pytest

from benchmarks.__main__ import GROUPS, main
from benchmarks.measure import missing


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_a_quick_run_measures_all_of_ours_and_lists_the_rest(group, tmp_path):
    assert main([group, "--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
    (data,) = tmp_path.glob("*.json")
    (page,) = tmp_path.glob("*.md")
    for result in json.loads(data.read_text())["results"]:
        for contestant, outcome in zip(result["case"]["contestants"], result["outcomes"], strict=True):
            if contestant["peer"] is None:
                assert (outcome["problem"], len(outcome["seconds"])) == (None, 1)
            elif outcome["problem"]:
                assert outcome["problem"] in page.read_text()


@pytest.mark.parametrize("group", GROUPS)
def test_every_ratio_is_between_contestants_of_its_case(group):
    for case in GROUPS[group](False):
        names = [contestant.name for contestant in case.contestants]
        assert len(set(names)) == len(names)
        assert {name for ratio in case.ratios for name in (ratio.of, ratio.to)} <= set(names)


@pytest.mark.parametrize("group", GROUPS)
def test_ours_need_no_package_and_are_all_checked(group):
    ours = [c for case in GROUPS[group](False) for c in case.contestants if c.name.startswith("exlstm")]
    assert ours
    assert [missing(contestant) for contestant in ours] == [None] * len(ours)
    unchecked = [c.arguments for c in ours if not c.checks]
    assert all(set(arguments["pattern"]) == {"a"} for arguments in unchecked)


def test_a_title_that_no_case_has_is_an_error_that_lists_them(capsys):
    assert main(["TRAIN", "--quick", "--only", "nonsense"]) == 2
    assert "training step, 4 x 64" in capsys.readouterr().err
