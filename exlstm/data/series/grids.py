"""From rows of all series, in any order, to one regular grid a series."""

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import pandas as pd

from exlstm.data.series.frequency import BoolArray, Frequency, IntArray, steps_since
from exlstm.data.series.series import FloatArray

_MOST_STEPS_UNQUESTIONED = 1_000_000


class Rows(NamedTuple):
    """`ids` of the series, and N rows: which `series [N]` by number, `times [N]`, `values [N, columns]`."""

    ids: pd.Index
    series: IntArray
    times: pd.Index
    values: FloatArray

    def take(self, places: IntArray) -> "Rows":
        """The rows at these places, in this order."""
        return Rows(self.ids, self.series[places], self.times[places], self.values[places])

    def name(self, place: int) -> str:
        """The series of a row, for messages."""
        return f"series {self.ids[self.series[place]]!r}"


class Grid(NamedTuple):
    """`values [T, columns]` of one series on its grid; `start` is an index of its first time alone."""

    unique_id: Hashable
    start: pd.Index
    values: FloatArray


def sort_rows(rows: Rows) -> tuple[Rows, list[str]]:
    """The rows by series and time without repeated ones, and notes on what was done.

    Raises ValueError where two rows of one series and time differ.
    """
    ticks = rows.times.asi8 if isinstance(rows.times, pd.DatetimeIndex) else rows.times.to_numpy()
    by_series = np.argsort(rows.series, kind="stable")
    backwards = (np.diff(rows.series[by_series]) == 0) & (np.diff(ticks[by_series]) < 0)
    notes = ["rows were not in order of time within a series: sorted"] if backwards.any() else []

    order = np.lexsort((ticks, rows.series))
    rows, ticks = rows.take(order), ticks[order]
    repeated = np.zeros(len(order), dtype=bool)
    repeated[1:] = (np.diff(rows.series) == 0) & (np.diff(ticks) == 0)
    if not repeated.any():
        return rows, notes
    _require_no_conflict(rows, repeated)
    return rows.take(np.flatnonzero(~repeated)), [*notes, f"dropped {int(repeated.sum())} repeated rows"]


def _require_no_conflict(rows: Rows, repeated: BoolArray) -> None:
    before, after = rows.values[:-1], rows.values[1:]
    same = ((before == after) | (np.isnan(before) & np.isnan(after))).all(axis=1)
    conflict = repeated[1:] & ~same
    if conflict.any():
        place = int(conflict.argmax()) + 1
        raise ValueError(
            f"{rows.name(place)} has two different rows for {rows.times[place]}; keep one. If these are "
            "several series, name their column as id_column; if clocks were set back, write times with a zone"
        )


def spread_on_grids(rows: Rows, frequency: Frequency) -> list[Grid]:
    """Each series of sorted rows on the grid that starts at its first time, NaN where there is no row.

    Raises ValueError for a time off the grid, and where the grids would be nearly empty and huge.
    """
    starts = np.flatnonzero(np.diff(rows.series, prepend=-1))
    firsts = rows.times[starts][rows.series]
    steps, on_grid = steps_since(firsts, rows.times, frequency)
    if not on_grid.all():
        place = int((~on_grid).argmax())
        raise ValueError(
            f"{rows.name(place)}: {rows.times[place]} is not on the grid of frequency {frequency!r} that "
            f"starts at {firsts[place]}; correct the time, or give another frequency"
        )
    lengths = steps[np.append(starts[1:], len(steps)) - 1] + 1
    total = int(lengths.sum())
    if total > max(_MOST_STEPS_UNQUESTIONED, 100 * len(steps)):
        raise ValueError(
            f"{len(steps)} rows at frequency {frequency!r} spread over {total} steps, nearly all missing; "
            "give the frequency, or correct the times"
        )
    ends = np.cumsum(lengths)
    filled = np.full((total, rows.values.shape[1]), np.nan, dtype=np.float32)
    filled[(ends - lengths)[rows.series] + steps] = rows.values
    return [
        Grid(unique_id, rows.times[start : start + 1], values)
        for unique_id, start, values in zip(rows.ids, starts, np.split(filled, ends[:-1]), strict=True)
    ]
