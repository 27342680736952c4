"""`read_series`: from a user's table to series on regular grids."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from exlstm.data.series.columns import choose_columns
from exlstm.data.series.frequency import Frequency, IntArray, check_frequency, infer_frequency, time_grid
from exlstm.data.series.grids import Grid, Rows, sort_rows, spread_on_grids
from exlstm.data.series.series import Columns, Series, SeriesSet, name_series
from exlstm.data.series.tables import Source, read_table
from exlstm.data.series.times import parse_times
from exlstm.data.series.values import parse_numbers, parse_static


def read_series(
    source: Source,
    *,
    frequency: Frequency | None = None,
    id_column: str = "unique_id",
    time_column: str = "ds",
    target: str = "y",
    future: str | Sequence[str] = (),
    past: str | Sequence[str] = (),
    static: str | Sequence[str] = (),
) -> SeriesSet:
    """The series of a CSV or Parquet file or a DataFrame, each on its regular grid, sorted by id.

    `source` has a row for each series and time. Without the id column it is one series; a table of two
    columns is one series of times and values whatever their names. Times are timestamps or whole numbers.
    `frequency` is a pandas alias or a whole number; without it, it is the most common step. `future` and
    `past` name numeric columns known ahead or only up to now, `static` numeric or text columns with one value
    a series.

    What is done to the data is stated in `notes` of the result: rows out of order are sorted, repeated equal
    rows dropped, series without any observed value left out, columns that nothing names not used. Missing
    values and missing rows are NaN on the grid and never filled. Where there are future columns, the steps
    after the last observed one are the future: they lengthen `Series.future` and nothing else. Times with a
    zone keep it, and steps shorter than a day are equal in absolute time across a change of the clock.

    Raises ValueError for files that cannot be read, missing columns, times that are missing, unreadable, of
    mixed zones or off the grid, two different rows for one time, values that are not finite numbers, and
    static values that change. Data rows are counted from 1 below the header.
    """
    frame = read_table(source, id_column=id_column, time_column=time_column)
    named = Columns(id_column, time_column, target, _names(future), _names(past), _names(static))
    columns, column_notes = choose_columns(frame, named)
    numbers, ids = _number_series(frame, columns)
    static_values = {name: parse_static(frame[name], numbers, ids) for name in columns.static}
    times, time_notes = parse_times(frame[columns.time])
    values = [parse_numbers(frame[name]) for name in (columns.target, *columns.past, *columns.future)]
    rows, row_notes = sort_rows(Rows(ids, numbers, times, np.stack(values, axis=1)))
    if frequency is None:
        frequency = infer_frequency(rows.times, rows.series)
    else:
        frequency = check_frequency(frequency, rows.times)
    series = tuple(
        _make_series(grid, columns, frequency, {name: found[n] for name, found in static_values.items()})
        for n, grid in enumerate(spread_on_grids(rows, frequency))
        if not np.isnan(grid.values[:, 0]).all()
    )
    if not series:
        raise ValueError(f"column {columns.target!r} holds no value in any row")
    categories = {
        name: tuple(sorted({value for value in found if isinstance(value, str)}))
        for name, found in static_values.items()
        if isinstance(found[0], str)
    }
    unobserved = ids.difference([one.unique_id for one in series], sort=False).tolist()
    notes = (*column_notes, *time_notes, *row_notes, *_describe(series, unobserved))
    return SeriesSet(series, frequency, columns, categories, notes)


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _number_series(frame: pd.DataFrame, columns: Columns) -> tuple[IntArray, pd.Index]:
    """The number of the series of each row, and the ids in the order of the numbers."""
    if columns.id not in frame:
        return np.zeros(len(frame), dtype=np.int64), pd.Index([columns.target], dtype=object)
    if (missing := frame[columns.id].isna()).any():
        raise ValueError(f"data row {int(missing.argmax()) + 1} has no series id in column {columns.id!r}")
    codes, ids = pd.factorize(frame[columns.id].astype(object), sort=True)
    return codes.astype(np.int64), pd.Index(ids, dtype=object)


def _make_series(grid: Grid, columns: Columns, frequency: Frequency, static: dict[str, float | str]) -> Series:
    observed_columns = 1 + len(columns.past)
    length = len(grid.values)
    if columns.future:
        observed = ~np.isnan(grid.values[:, :observed_columns]).all(axis=1)
        length = int(np.flatnonzero(observed)[-1]) + 1
    return Series(
        unique_id=grid.unique_id,
        ds=time_grid(grid.start, length, frequency),
        y=grid.values[:length, 0],
        future=grid.values[:, observed_columns:],
        past=grid.values[:length, 1:observed_columns],
        static=static,
        frequency=frequency,
    )


def _describe(series: tuple[Series, ...], unobserved: list[object]) -> list[str]:
    notes = []
    if unobserved:
        notes.append(f"{name_series(unobserved)} left out: no observed value")
    steps, missing = sum(map(len, series)), sum(int(np.isnan(one.y).sum()) for one in series)
    if missing:
        notes.append(f"{missing} of {steps} values are missing; they stay missing")
    constant = [one.unique_id for one in series if np.nanmin(one.y) == np.nanmax(one.y)]
    if constant:
        notes.append(f"{name_series(constant)} constant")
    if known := max(one.known for one in series):
        notes.append(f"future columns are known for up to {known} steps after the last observation")
    return notes
