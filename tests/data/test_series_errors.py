"""Whatever is wrong with the input gives one clear sentence that names it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from exlstm.data.series import read_series, require_length

DAYS = [str(day.date()) for day in pd.date_range("2024-01-01", periods=5, freq="D")]


def days(**changes: Any) -> pd.DataFrame:
    return pd.DataFrame({"unique_id": "a", "ds": DAYS, "y": [1.0, 2.0, 3.0, 4.0, 5.0]} | changes)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (days(y=["1", "2", "x", "4", "5"]), r"numbers in column 'y', received 'x' in data row 3"),
        (days(y=[1, 2, 3, 4, np.inf]), r"'y', received 'inf' in data row 5"),
        (days(y=[1, 2, 3, 4, 1e39]), r"'y', received '1e\+39' in data row 5"),
        (days(y=pd.date_range("2024", periods=5)), r"expected numbers in column 'y', received datetime64"),
        (days(y=pd.to_timedelta(range(5), unit="h")), r"expected numbers in column 'y', received timedelta"),
        (days(y=np.nan), r"column 'y' holds no value"),
        (days(ds=[*DAYS[:4], "soon"]), r"data row 5 \(soon\) in column 'ds' is no time"),
        (days(ds=[*DAYS[:4], None]), r"data row 5 has no time"),
        (days(ds=[1, 2, 3, 4, 5.5]), r"expected timestamps or whole numbers .* data row 5 \(5.5\)"),
        (days(ds=[1, 2, 3, 4, np.inf]), r"expected timestamps or whole numbers .* data row 5 \(inf\)"),
        (days(ds=[True] * 5), r"received true and false"),
        (
            days(ds=["01/02/2024", "02/02/2024", "03/02/2024", "04/02/2024", "05/02/2024"]),
            r"day or the month",
        ),
        (days(ds=[*DAYS[:4], "9999-12-31"]), r"9999-12-31"),
        (days(ds=[*DAYS[:4], "2024-01-05 12:00"]), r"'a': 2024-01-05 12:00:00 is not on the grid of .*'D'"),
        (days(ds=[*DAYS[:4], DAYS[3]]), r"'a' has two different rows for 2024-01-04"),
        (days(unique_id=["a", "a", "a", "a", None]), r"data row 5 has no series id"),
        (days(ds="2024-01-01 00:00", unique_id=list("abcde")), r"frequency cannot be found"),
        (days().iloc[:0], r"holds no rows"),
        (days().drop(columns="y").assign(z=1), r"no column 'y' among 'unique_id', 'ds', 'z'"),
        (pd.concat([days(), days()[["y"]]], axis=1), r"two columns named 'y'"),
        (pd.DataFrame({"2024-01-01": DAYS, "5.0": 1.0}), r"first line looks like data"),
    ],
)
def test_wrong_tables(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_series(frame)


NAIVE, UTC = "2024-01-01 00:00", "2024-01-01 01:00Z"


@pytest.mark.parametrize(
    "times",
    [
        [NAIVE, UTC],
        ["2024-03-31 01:00+01:00", "2024-03-31 03:00+02:00"],
        [pd.Timestamp(NAIVE), pd.Timestamp(UTC)],
        [pd.Timestamp(UTC), pd.Timestamp("2024-01-01 02:00", tz="Asia/Tokyo")],
    ],
)
def test_mixed_time_zones(times: list[object]) -> None:
    with pytest.raises(ValueError, match=r"mixes time zones .* data row 2"):
        read_series(pd.DataFrame({"ds": pd.Series(times, dtype=object), "y": [1.0, 2.0]}))


def test_text_mixed_with_times() -> None:
    times = pd.Series([pd.Timestamp(NAIVE), "2024-01-01 01:00"], dtype=object)
    with pytest.raises(ValueError, match="mixes text and times"):
        read_series(pd.DataFrame({"ds": times, "y": [1.0, 2.0]}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"future": "y"}, r"'y' is named for two purposes"),
        ({"future": "x", "past": "x"}, r"'x' is named for two purposes"),
        ({"past": "wind"}, r"no column 'wind'"),
        ({"id_column": "shop"}, r"no column 'shop'"),
        ({"static": "x"}, r"static column 'x' changes within a series, to '2.0' in data row 2"),
        ({"static": "empty"}, r"'empty' has no value for series 'a'"),
        ({"future": "word"}, r"numbers in column 'word', received 'w' in data row 1"),
        ({"frequency": "fortnight"}, r"frequency 'fortnight' is not known"),
        ({"frequency": "-1D"}, r"steps forwards"),
        ({"frequency": 1}, r"frequency 1 is for whole-number times"),
        ({"frequency": "2D"}, r"2024-01-02 00:00:00 is not on the grid of frequency '2D'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    frame = days(x=[1.0, 2.0, 3.0, 4.0, 5.0], empty=np.nan, word="w")
    with pytest.raises(ValueError, match=message):
        read_series(frame, **arguments)


@pytest.mark.parametrize(("frequency", "message"), [("D", "is for timestamps"), (0, "at least 1")])
def test_wrong_frequencies_of_whole_numbers(frequency: str | int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_series(pd.DataFrame({"ds": [1, 2], "y": [1.0, 2.0]}), frequency=frequency)


def test_a_grid_that_is_nearly_all_missing_is_questioned() -> None:
    times = pd.to_datetime(["2020-01-01 00:00:00", "2020-01-01 00:00:01", "2024-01-01 00:00:00"])
    with pytest.raises(ValueError, match="3 rows at frequency 's' spread over 126230401 steps"):
        read_series(pd.DataFrame({"ds": times, "y": [1.0, 2.0, 3.0]}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"ds,y\n", "holds no rows"),
        ("a.csv", b"ds,y\n2024-01-01,\xff\xfe\n", "cannot be read as a .csv file"),
        ("a.csv", b"ds,y\n1,2\n2,3,4,5\n", "cannot be read as a .csv file"),
        ("a.csv", b"ds,y\n1,2,3\n2,3,4\n", "cannot be read as a .csv file"),
        ("a.csv", b"unique_id,ds,y\n,1,2\n,2,3\n", "data row 1 has no series id"),
        ("a.csv.gz", b"ds,y\n1,2\n", "cannot be read as a .csv file"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", "cannot be read as a .csv file"),
        ("a.parquet", b"ds,y\n1,2\n", "cannot be read as a .parquet file"),
        ("a.xlsx", b"", "expected a .csv, .csv.gz or .parquet file"),
        ("a", b"ds,y\n1,2\n", "expected a .csv, .csv.gz or .parquet file"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_series(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        read_series(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="is a directory"):
        read_series(tmp_path)
    with pytest.raises(ValueError, match="received list"):
        read_series([1, 2])  # type: ignore[arg-type]


def test_series_too_short_are_named_and_refused_if_all_are() -> None:
    series_set = read_series(pd.concat([days(), days(unique_id="b").head(2)]))
    assert require_length(series_set, 2, "training") == []
    assert require_length(series_set, 5, "training") == ["series 'b' too short for training: fewer than 5 steps"]
    with pytest.raises(ValueError, match="training needs a series of at least 6 steps, but the longest has 5"):
        require_length(series_set, 6, "training")
