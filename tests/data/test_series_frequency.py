import numpy as np
import pandas as pd
import pytest

from exlstm.data.series import (
    SeriesSet,
    calendar_cycles,
    calendar_features,
    future_index,
    read_series,
    season_length,
    season_lengths,
)

ALIASES = ["ms", "s", "min", "15min", "30min", "h", "6h", "36h", "D", "2D", "B", "W-SUN", "2W-WED"]
ALIASES += ["MS", "ME", "BMS", "BME", "2MS", "QS-JAN", "QE-NOV", "BQE-DEC", "YS-APR", "YE-DEC", "BYE-DEC"]


def read(times: pd.DatetimeIndex, frequency: str | None = None) -> SeriesSet:
    return read_series(pd.DataFrame({"ds": times, "y": np.arange(len(times)) * 1.0}), frequency=frequency)


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_a_frequency_is_found_among_gaps_and_its_grid_is_that_of_pandas(alias: str, zone: str | None) -> None:
    times = pd.date_range("2019-12-01", periods=40, freq=alias, tz=zone, unit="ns")
    kept = times.delete([5, 6, 11, 24])
    series_set = read(kept)
    found = series_set.frequency
    assert pd.date_range(times[0], periods=40, freq=found, tz=zone).equals(times)
    assert series_set[0].ds.equals(times)
    assert np.flatnonzero(np.isnan(series_set[0].y)).tolist() == [5, 6, 11, 24]
    assert read(kept, frequency=alias)[0].ds.equals(times)


@pytest.mark.parametrize("alias", ALIASES)
def test_the_future_index_continues_the_grid(alias: str) -> None:
    times = pd.date_range("2019-12-01", periods=50, freq=alias, unit="ns")
    series = read(times[:40], frequency=alias)[0]
    assert future_index(series, 10).equals(times[40:])


def test_series_of_one_table_may_start_at_their_own_times() -> None:
    first = pd.date_range("2024-01-01 00:07", periods=5, freq="2D")
    second = pd.date_range("2024-01-02 12:00", periods=4, freq="2D")
    frame = pd.DataFrame({"unique_id": ["a"] * 5 + ["b"] * 4, "ds": first.append(second), "y": 1.0})
    series_set = read_series(frame)
    assert series_set.frequency == "2D"
    assert series_set[1].ds.equals(second.as_unit("ns"))


def test_hours_stay_equal_in_absolute_time_across_both_changes_of_the_clock() -> None:
    for day in ("2024-03-30", "2024-10-26"):
        times = pd.date_range(day, periods=72, freq="h", tz="Europe/Berlin", unit="ns")
        series_set = read(times[:30])
        assert series_set.frequency == "h"
        assert series_set[0].ds.equals(times[:30])
        assert future_index(series_set[0], 42).equals(times[30:])


def test_days_stay_at_midnight_across_the_change_even_where_midnight_does_not_exist() -> None:
    # In Santiago clocks jump from 24:00 on 7 September 2024 to 1:00.
    days = pd.date_range("2024-09-05", periods=8, freq="D", unit="ns")
    times = days.tz_localize("America/Santiago", nonexistent="shift_forward")
    assert times[3].hour == 1
    series_set = read(times[:6])
    assert series_set.frequency == "D"
    assert series_set[0].ds.equals(times[:6])
    assert future_index(series_set[0], 2).equals(times[6:])


def test_days_counted_in_absolute_time_are_24_hours() -> None:
    times = pd.date_range("2024-03-28", periods=6, freq="24h", tz="UTC", unit="ns").tz_convert("Europe/Berlin")
    assert read(times).frequency == "24h"
    assert read(times)[0].ds.equals(times)


def test_text_with_an_offset_keeps_it() -> None:
    frame = pd.DataFrame({"ds": ["2024-01-01T00:00+05:30", "2024-01-01T01:00+05:30"], "y": [1.0, 2.0]})
    assert str(future_index(read_series(frame)[0], 1)[0]) == "2024-01-01 02:00:00+05:30"


@pytest.mark.parametrize(
    ("frequency", "lengths", "length"),
    [
        ("s", (3600, 86400), 86400),
        ("min", (1440, 10080), 10080),
        ("15min", (96, 672), 672),
        ("30min", (48, 336), 336),
        ("h", (24, 168), 168),
        ("D", (7, 365), 7),
        ("B", (5, 261), 5),
        ("W", (52,), 52),
        ("2W", (26,), 26),
        ("MS", (12,), 12),
        ("ME", (12,), 12),
        ("QS", (4,), 4),
        ("YE", (), 1),
        (1, (), 1),
    ],
)
def test_natural_seasons(frequency: str | int, lengths: tuple[int, ...], length: int) -> None:
    assert season_lengths(frequency) == lengths
    assert season_length(frequency) == length


def test_the_season_fits_into_the_history_twice() -> None:
    assert [season_length("h", steps) for steps in (336, 335, 48, 47)] == [168, 24, 24, 1]


@pytest.mark.parametrize(
    ("frequency", "cycles", "columns"),
    [
        ("30min", ("day", "week", "year"), 14),
        ("D", ("week", "year"), 10),
        ("W", ("year",), 4),
        ("MS", ("year",), 4),
        ("YS", (), 0),
    ],
)
def test_a_frequency_has_a_fixed_number_of_calendar_features(
    frequency: str, cycles: tuple[str, ...], columns: int
) -> None:
    assert calendar_cycles(frequency) == cycles
    for periods in (1, 50):
        features = calendar_features(pd.date_range("2024", periods=periods, freq=frequency), frequency)
        assert (features.shape, features.dtype) == ((periods, columns), np.float32)
        assert np.abs(features).max(initial=0) <= 1


def test_calendar_features_follow_the_clock_on_the_wall() -> None:
    summer = pd.date_range("2024-07-01", periods=24, freq="h", tz="Europe/Berlin")
    winter = pd.date_range("2024-01-01", periods=24, freq="h", tz="Europe/Berlin")  # a Monday too
    cycles = ("day", "week")
    assert np.array_equal(calendar_features(summer, "h", cycles), calendar_features(winter, "h", cycles))


def test_calendar_features_tell_every_day_of_the_week_apart_linearly() -> None:
    week = calendar_features(pd.date_range("2024-01-01", periods=7, freq="D"), "D", ("week",))
    assert np.linalg.matrix_rank(np.concatenate([week, np.ones((7, 1))], axis=1)) == 7


def test_calendar_features_close_the_year() -> None:
    ends = pd.DatetimeIndex(["2023-01-01", "2023-12-31 23:59:59", "2024-01-01", "2024-12-31 23:59:59"])
    features = calendar_features(ends, "s", ("year",))
    step = 2 * 2 * np.pi / (365 * 86400)  # of the second harmonic in one second; and float32
    assert np.ptp(features, axis=0).max() < step + 1e-6


def test_whole_numbers_have_no_calendar_and_unknown_cycles_are_refused() -> None:
    assert calendar_features(pd.RangeIndex(5), 1).shape == (5, 0)
    with pytest.raises(ValueError, match="expected cycles among day, week, year, received 'moon'"):
        calendar_features(pd.date_range("2024", periods=2, freq="D"), "D", ("moon",))


def test_only_cycles_that_repeat_are_proposed() -> None:
    hours = pd.date_range("2024-01-01", periods=24 * 14, freq="h")
    assert read(hours).cycles == ("day", "week")
    assert read(hours[:-1]).cycles == ("day",)
