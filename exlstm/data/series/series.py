"""One regular series, and a set of them that share a frequency and columns."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from exlstm.data.series.frequency import Frequency, time_grid
from exlstm.data.series.seasonality import repeated_cycles, season_length, season_lengths

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Columns:
    """The names of the columns: which tell series and times, and which carry what.

    `future` is known for the times to be forecast (a public holiday), `past` only up to now (a measured
    temperature), `static` is one value a series (a region).
    """

    id: str = "unique_id"
    time: str = "ds"
    target: str = "y"
    future: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Series:
    """One series on its regular grid of T times. NaN stands wherever nothing was observed.

    `ds` index of length T (DatetimeIndex, or whole numbers), `y [T]`, `past [T, P]`, `future [T + K, F]`
    where K >= 0 further steps are already known; all float32. `static` holds numbers or categories (text) by
    column name.
    """

    unique_id: Hashable
    ds: pd.Index
    y: FloatArray
    future: FloatArray
    past: FloatArray
    static: Mapping[str, float | str]
    frequency: Frequency

    def __len__(self) -> int:
        return len(self.y)

    @property
    def known(self) -> int:
        """K, the number of steps after the last time for which the future columns are known."""
        return len(self.future) - len(self.y)


def future_index(series: Series, horizon: int) -> pd.Index:
    """The `horizon` times that follow the series, in its own time zone."""
    return time_grid(series.ds[-1:], horizon + 1, series.frequency)[1:]


@dataclass(frozen=True, eq=False)
class SeriesSet:
    """Several series with one frequency and the same columns.

    `categories` lists, for each static column that is not numeric, the values known; `notes` states in
    sentences what the reading did to the data.
    """

    series: tuple[Series, ...]
    frequency: Frequency
    columns: Columns = field(default_factory=Columns)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.series)

    def __iter__(self) -> Iterator[Series]:
        return iter(self.series)

    def __getitem__(self, place: int) -> Series:
        return self.series[place]

    @property
    def longest(self) -> int:
        """The number of steps of the longest series."""
        return max(len(series) for series in self.series)

    @property
    def season_lengths(self) -> tuple[int, ...]:
        """All natural seasonal periods of the frequency, in steps."""
        return season_lengths(self.frequency)

    @property
    def season_length(self) -> int:
        """The one seasonal period to measure against; it fits into the longest series at least twice."""
        return season_length(self.frequency, self.longest)

    @property
    def cycles(self) -> tuple[str, ...]:
        """The calendar cycles that the longest series passes through at least twice."""
        return repeated_cycles(self.frequency, self.longest)

    def without_last(self, steps: int) -> "SeriesSet":
        """The set as it stood `steps` steps before the end of each series; future columns stay known.

        Series of which nothing is left are dropped, which a note states. ValueError if that leaves none.
        """
        if steps < 0:
            raise ValueError(f"expected a number of steps of at least 0, received {steps}")
        kept = tuple(_shorten(series, len(series) - steps) for series in self.series if len(series) > steps)
        if not kept:
            raise ValueError(
                f"the longest series has {self.longest} steps, so nothing is left without the last {steps}"
            )
        dropped = [series.unique_id for series in self.series if len(series) <= steps]
        notes = [f"{name_series(dropped)} not used: at most {steps} steps long"] if dropped else []
        return replace(self, series=kept, notes=(*self.notes, *notes))

    def with_categories(self, categories: Mapping[str, tuple[str, ...]]) -> "SeriesSet":
        """The set with the categories of another one, on which a model was trained.

        Values that are not among them get code 0. Raises ValueError where a column is categories in one set
        and numbers in the other.
        """
        if changed := sorted(set(categories) ^ set(self.categories)):
            raise ValueError(f"static column {changed[0]!r} is categories in one data set and numbers in the other")
        return replace(self, categories=dict(categories))

    def to_frame(self) -> pd.DataFrame:
        """One table with the columns that were read, a row for every step of every grid."""
        return pd.concat([self._frame_of(series) for series in self.series], ignore_index=True)

    def _frame_of(self, series: Series) -> pd.DataFrame:
        names, steps = self.columns, len(series.future)
        frame = pd.DataFrame({names.id: [series.unique_id] * steps})
        frame[names.time] = time_grid(series.ds[:1], steps, series.frequency)
        frame[names.target] = _extend(series.y, steps)
        for place, name in enumerate(names.future):
            frame[name] = series.future[:, place]
        for place, name in enumerate(names.past):
            frame[name] = _extend(series.past[:, place], steps)
        for name in names.static:
            frame[name] = series.static[name]
        return frame


def require_length(series_set: SeriesSet, steps: int, purpose: str) -> list[str]:
    """Notes on the series shorter than `steps`; ValueError, naming the purpose ("training"), if all are."""
    short = [series.unique_id for series in series_set if len(series) < steps]
    if len(short) == len(series_set):
        raise ValueError(
            f"{purpose} needs a series of at least {steps} steps, but the longest has {series_set.longest}; "
            "give more data, or ask for a shorter horizon"
        )
    return [f"{name_series(short)} too short for {purpose}: fewer than {steps} steps"] if short else []


def name_series(ids: list[Hashable]) -> str:
    """'series 'a', 'b', 'c' and 4 more', for notes."""
    shown = ", ".join(repr(unique_id) for unique_id in ids[:3])
    return f"series {shown}" + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def _shorten(series: Series, steps: int) -> Series:
    future = series.future if series.future.shape[1] else series.future[:steps]
    return replace(series, ds=series.ds[:steps], y=series.y[:steps], past=series.past[:steps], future=future)


def _extend(values: FloatArray, steps: int) -> FloatArray:
    return np.concatenate([values, np.full(steps - len(values), np.nan, dtype=np.float32)])
