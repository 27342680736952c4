import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from exlstm.data.series import Columns, SeriesSet, future_index, read_series


def hourly(rows: int, unique_id: str = "a", start: str = "2024-01-01") -> pd.DataFrame:
    values = np.random.default_rng(1).normal(size=rows).astype(np.float32)
    times = pd.date_range(start, periods=rows, freq="h")
    return pd.DataFrame({"unique_id": unique_id, "ds": times, "y": values})


def assert_same(one: SeriesSet, other: SeriesSet) -> None:
    assert (one.frequency, one.columns, one.categories) == (other.frequency, other.columns, other.categories)
    pd.testing.assert_frame_equal(one.to_frame(), other.to_frame())


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.parquet"])
def test_every_file_format_gives_what_the_frame_gives(tmp_path: Path, name: str) -> None:
    frame = pd.concat([hourly(30, "007"), hourly(20, "b")])
    path = tmp_path / name
    if name.endswith("parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if "tsv" in name else ",")
    assert_same(read_series(path), read_series(frame))
    assert [series.unique_id for series in read_series(str(path))] == ["007", "b"]


def test_ids_of_a_file_are_text_and_only_values_can_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("unique_id,ds,y\nNA,1,NA\nNA,2,1\n007,1,2\n007,2,\n")
    series_set = read_series(path)
    assert [series.unique_id for series in series_set] == ["007", "NA"]
    assert np.array_equal([series.y for series in series_set], [[2, np.nan], [np.nan, 1]], equal_nan=True)


def test_a_semicolon_separates_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("ds;y\n2024-01-01;1\n2024-01-02;2.5\n", encoding="utf-8-sig")
    assert read_series(path)[0].y.tolist() == [1, 2.5]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["date", "demand"], ("date", "demand")),
        (["y", "when"], ("when", "y")),
        (["demand", "ds"], ("ds", "demand")),
        (["ds", "y"], ("ds", "y")),
    ],
)
def test_two_columns_are_times_and_values_whatever_their_names(columns: list[str], expected: tuple[str, str]) -> None:
    data = {expected[0]: pd.date_range("2024-01-01", periods=3, freq="D"), expected[1]: [1.0, 2.0, 3.0]}
    series_set = read_series(pd.DataFrame(data)[columns])
    assert (series_set.columns.time, series_set.columns.target) == expected
    assert series_set[0].y.tolist() == [1, 2, 3]
    assert series_set[0].unique_id == expected[1]
    assert bool(series_set.notes) == (expected != ("ds", "y"))


def test_named_or_timed_indexes_serve_as_columns() -> None:
    frame = hourly(5)
    plain = read_series(frame)
    assert_same(read_series(frame.set_index("unique_id")), plain)
    assert_same(read_series(frame.set_index(["unique_id", "ds"])), plain)
    assert read_series(frame.set_index("ds")[["y"]].rename_axis(None))[0].ds.equals(plain[0].ds)


def test_the_names_given_are_kept_in_tables() -> None:
    frame = hourly(4).rename(columns={"unique_id": "shop", "ds": "when", "y": "sales"})
    series_set = read_series(frame, id_column="shop", time_column="when", target="sales")
    assert series_set.columns == Columns("shop", "when", "sales")
    assert list(series_set.to_frame().columns) == ["shop", "when", "sales"]


def test_rows_in_any_order_give_the_same_set_and_a_note() -> None:
    frame = pd.concat([hourly(30, "b"), hourly(20, "a")])
    shuffled = frame.sample(frac=1, random_state=3)
    series_set = read_series(shuffled)
    assert_same(series_set, read_series(frame))
    assert any("sorted" in note for note in series_set.notes)
    assert read_series(frame).notes == ()


def test_gaps_are_nan_on_the_grid_and_never_filled() -> None:
    frame = hourly(10).drop(index=[3, 4])
    frame.loc[7, "y"] = np.nan
    series = read_series(frame)[0]
    assert np.flatnonzero(np.isnan(series.y)).tolist() == [3, 4, 7]
    assert series.ds.equals(pd.DatetimeIndex(hourly(10)["ds"]).as_unit("ns"))
    assert any("3 of 10 values are missing" in note for note in read_series(frame).notes)


def test_repeated_rows_are_dropped_with_a_note() -> None:
    frame = hourly(10)
    frame.loc[5, "y"] = np.nan
    series_set = read_series(pd.concat([frame, frame.iloc[[2, 2, 5]]]))
    assert_same(series_set, read_series(frame))
    assert any("dropped 3 repeated rows" in note for note in series_set.notes)


def test_constant_and_unobserved_series_are_stated() -> None:
    constant, empty = hourly(5, "flat").assign(y=2.0), hourly(5, "none").assign(y=np.nan)
    series_set = read_series(pd.concat([hourly(5), constant, empty]))
    assert [series.unique_id for series in series_set] == ["a", "flat"]
    assert any("'flat' constant" in note for note in series_set.notes)
    assert any("'none' left out" in note for note in series_set.notes)


def test_columns_that_nothing_names_are_stated_and_not_used() -> None:
    series_set = read_series(hourly(5).assign(temperature=1.0))
    assert series_set.notes == ("not used: 'temperature'; name columns as future=, past= or static= to use them",)
    assert "temperature" not in series_set.to_frame()


def test_whole_numbers_serve_as_times() -> None:
    frame = pd.DataFrame({"ds": [10, 15, 25, 20], "y": [1.0, 2.0, 4.0, 3.0]})
    series_set = read_series(frame)
    assert series_set.frequency == 5
    assert series_set[0].y.tolist() == [1, 2, 3, 4]
    assert future_index(series_set[0], 2).tolist() == [30, 35]
    assert (series_set.season_lengths, series_set.season_length, series_set.cycles) == ((), 1, ())


def test_ids_keep_their_type_and_order() -> None:
    frame = pd.concat([hourly(3).assign(unique_id=n) for n in (10, 9, 100)])
    assert [series.unique_id for series in read_series(frame)] == [9, 10, 100]


def test_covariates_lie_beside_the_target_and_the_future_reaches_past_its_end() -> None:
    frame = hourly(10).assign(holiday=np.arange(10.0), weather=np.arange(10.0) * 2)
    frame.loc[7:, ["y", "weather"]] = np.nan
    frame.loc[2, "weather"] = np.nan
    series_set = read_series(frame.drop(index=4), future="holiday", past=["weather"])
    series = series_set[0]
    assert (len(series), series.known) == (7, 3)
    assert np.array_equal(series.future[:, 0], [0, 1, 2, 3, np.nan, 5, 6, 7, 8, 9], equal_nan=True)
    assert np.array_equal(series.past[:, 0], [0, 2, np.nan, 6, np.nan, 10, 12], equal_nan=True)
    assert any("up to 3 steps after" in note for note in series_set.notes)
    again = read_series(series_set.to_frame(), future="holiday", past="weather")
    assert_same(again, series_set)


def test_missing_values_at_the_end_are_gaps_where_no_column_is_known_ahead() -> None:
    frame = hourly(10)
    frame.loc[8:, "y"] = np.nan
    assert len(read_series(frame)[0]) == 10


def test_static_columns_are_numbers_or_categories() -> None:
    frame = pd.concat([hourly(4, "a"), hourly(4, "b")])
    frame["region"] = ["north", None, "north", "north", *["south"] * 4]
    frame["size"] = [3] * 4 + [7] * 4
    series_set = read_series(frame, static=["region", "size"])
    assert [series.static for series in series_set] == [
        {"region": "north", "size": 3.0},
        {"region": "south", "size": 7.0},
    ]
    assert series_set.categories == {"region": ("north", "south")}
    assert series_set.with_categories({"region": ("east",)}).categories == {"region": ("east",)}
    with pytest.raises(ValueError, match="numbers in the other"):
        series_set.with_categories({})


@pytest.mark.parametrize(
    ("texts", "first"),
    [
        (["2024-01-31 10:00", "2024-01-31 11:00"], "2024-01-31 10:00"),
        (["2024-01-31T10:00:00Z", "2024-01-31T11:00:00Z"], "2024-01-31 10:00+00:00"),
        (["2024-01-31T10:00+02:00", "2024-01-31T11:00+02:00"], "2024-01-31 10:00+02:00"),
        (["31/01/2024 10:00", "31/01/2024 11:00"], "2024-01-31 10:00"),
        (["31.01.2024", "01.02.2024"], "2024-01-31"),
        (["01/31/2024", "02/01/2024"], "2024-01-31"),
        (["2024-01", "2024-02"], "2024-01-01"),
        (["20240131", "20240201"], "2024-01-31"),
    ],
)
def test_times_are_read_as_they_are_usually_written(tmp_path: Path, texts: list[str], first: str) -> None:
    path = tmp_path / "a.csv"
    pd.DataFrame({"ds": texts, "y": [1.0, 2.0]}).to_csv(path, index=False)
    assert read_series(path)[0].ds[0] == pd.Timestamp(first)


def test_the_set_without_its_last_steps_is_what_was_known_then() -> None:
    frame = pd.concat([hourly(10, "long"), hourly(3, "short")]).assign(holiday=1.0)
    series_set = read_series(frame, future="holiday").without_last(4)
    assert [len(series) for series in series_set] == [6]
    assert series_set[0].known == 4
    assert any("'short' not used" in note for note in series_set.notes)
    plain = read_series(hourly(10)).without_last(4)
    assert_same(plain, read_series(hourly(10).head(6)))
    with pytest.raises(ValueError, match="nothing is left"):
        series_set.without_last(6)
    with pytest.raises(ValueError, match="at least 0"):
        series_set.without_last(-1)


def test_a_thousand_series_read_in_seconds() -> None:
    frame = pd.concat([hourly(50, str(n)) for n in range(1000)])
    before = time.perf_counter()
    assert len(read_series(frame)) == 1000
    assert time.perf_counter() - before < 10  # it takes half a second; one lookup per row would take minutes
