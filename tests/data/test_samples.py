from importlib import resources

import pandas as pd
import pytest

from exlstm.data.samples import sample
from exlstm.data.series import read_series


def test_electricity_is_twelve_whole_weeks_of_half_hours() -> None:
    frame = sample("electricity")
    assert list(frame.columns) == ["unique_id", "ds", "y"]
    assert frame["unique_id"].nunique() == 1
    assert len(frame) == 12 * 7 * 48
    assert frame["ds"].iloc[0] == pd.Timestamp("2000-06-05 00:00")
    assert frame["ds"].iloc[-1] == pd.Timestamp("2000-08-27 23:30")
    assert frame["y"].head(3).tolist() == [22262, 21756, 22247]
    assert frame["y"].tail(3).tolist() == [25996, 24610, 23132]


def test_electricity_reads_as_a_series_without_a_word() -> None:
    series_set = read_series(sample("electricity"))
    assert series_set.frequency == "30min"
    assert series_set.notes == ()
    assert (series_set.season_lengths, series_set.season_length) == ((48, 336), 336)
    assert series_set.cycles == ("day", "week")


def test_the_licence_travels_with_the_sample() -> None:
    notice = (resources.files("exlstm.data.samples") / "README.md").read_text()
    assert "Copyright (c) 2017 Taylor G Smith" in notice
    assert "Taylor (2003)" in notice


def test_an_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(ValueError, match="electricity"):
        sample("gas")
