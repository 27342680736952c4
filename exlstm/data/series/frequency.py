"""Frequencies: the regular grid of time that a series lies on.

A frequency is a pandas alias ("30min", "D", "W-MON", "ME", ...) for timestamps, or a whole number for integer
times. Aliases shorter than a day ("h", "24h") step in absolute time, so a day of a zone with summer time may
have 23 or 25 of them; the others ("D", "B", "MS", ...) step in calendar time, so every step falls on the same
time of the local day.
"""

from typing import Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import BaseOffset, Day, Tick

Frequency: TypeAlias = str | int
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

_DAY = 86_400_000_000_000  # nanoseconds
_MONTH_ALIASES = {"MS": ("QS", "YS"), "ME": ("QE", "YE"), "BMS": ("BQS", "BYS"), "BME": ("BQE", "BYE")}
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")


def parse_offset(frequency: str) -> BaseOffset:
    """The pandas offset of an alias; ValueError for one that is not known or does not step forwards."""
    try:
        offset = to_offset(frequency)
    except ValueError as error:
        raise ValueError(f"frequency {frequency!r} is not known: {error}; try '30min', 'h', 'D' or 'MS'") from None
    if offset.n < 1:
        raise ValueError(f"expected a frequency that steps forwards, received {frequency!r}")
    return offset


def absolute_length(offset: BaseOffset) -> pd.Timedelta | None:
    """The length of an offset in absolute time; None for a step of the calendar."""
    return pd.Timedelta(offset) if isinstance(offset, Tick) and not isinstance(offset, Day) else None


def check_frequency(frequency: Frequency, times: pd.Index) -> Frequency:
    """The frequency in its normal spelling; ValueError where it does not suit the kind of `times`."""
    if isinstance(frequency, int):
        if isinstance(times, pd.DatetimeIndex):
            raise ValueError(
                f"frequency {frequency} is for whole-number times; timestamps want one like '30min' or 'D'"
            )
        if frequency < 1:
            raise ValueError(f"expected a frequency of at least 1, received {frequency}")
        return frequency
    if not isinstance(times, pd.DatetimeIndex):
        raise ValueError(f"frequency {frequency!r} is for timestamps; whole-number times want a whole number like 1")
    return parse_offset(frequency).freqstr


def wall_time(times: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """What a clock on the wall shows: the same times without their zone."""
    return times if times.tz is None else times.tz_localize(None)


def localise(wall: pd.DatetimeIndex, like: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Wall times in the zone of `like`: the first of two equal ones, the next where one does not exist."""
    if like.tz is None:
        return wall
    first = np.ones(len(wall), dtype=bool)
    return wall.tz_localize(like.tz, ambiguous=first, nonexistent="shift_forward")


def time_grid(start: pd.Index, steps: int, frequency: Frequency) -> pd.Index:
    """`steps` times from the only element of `start` (which lies on the grid) onwards."""
    if isinstance(frequency, int):
        first = int(start[0])
        return pd.RangeIndex(first, first + steps * frequency, frequency)
    start = cast(pd.DatetimeIndex, start)
    if absolute_length(parse_offset(frequency)) is not None:
        utc = start if start.tz is None else start.tz_convert("UTC")
        grid = pd.date_range(utc[0], periods=steps, freq=frequency, unit="ns")
        return grid if start.tz is None else grid.tz_convert(start.tz)
    return localise(pd.date_range(wall_time(start)[0], periods=steps, freq=frequency, unit="ns"), start)


def steps_since(first: pd.Index, times: pd.Index, frequency: Frequency) -> tuple[IntArray, BoolArray]:
    """Row by row, the steps from `first` to `times`, and whether `times` is on the grid that starts there."""
    if isinstance(frequency, int):
        steps, rest = np.divmod(times.to_numpy() - first.to_numpy(), frequency)
        return steps, rest == 0
    offset = parse_offset(frequency)
    first, times = cast(pd.DatetimeIndex, first), cast(pd.DatetimeIndex, times)
    if (length := absolute_length(offset)) is not None:
        steps, rest = np.divmod(times.asi8 - first.asi8, length.as_unit("ns").value)
        return steps, rest == 0
    return _calendar_steps(first, times, offset)


def _calendar_steps(first: pd.DatetimeIndex, times: pd.DatetimeIndex, offset: BaseOffset) -> tuple[IntArray, BoolArray]:
    first_wall, wall = wall_time(first), wall_time(times)
    first_day, day = first_wall.normalize(), wall.normalize()
    dates = pd.date_range(min(first_day.min(), day.min()), max(first_day.max(), day.max()), freq=offset.base)
    first_place, place = dates.get_indexer(first_day), dates.get_indexer(day)
    steps, rest = np.divmod(place - first_place, offset.n)
    nominal = day + (first_wall - first_day)
    same_clock = (wall == nominal) | (times == localise(nominal, times))
    return steps, (first_place >= 0) & (place >= 0) & (rest == 0) & same_clock


def infer_frequency(times: pd.Index, series: IntArray) -> Frequency:
    """The frequency of times sorted within each series (`series [N]`, equal numbers side by side).

    It follows the most common step between neighbours, so gaps do not disturb it. Months, quarters and years
    are recognised by their first or last (business) day, business days by the absence of weekends. Raises
    ValueError where no series has two different times.
    """
    neighbours = series[1:] == series[:-1]
    if not isinstance(times, pd.DatetimeIndex):
        return _most_common(np.diff(times.to_numpy())[neighbours])
    step = _most_common(np.diff(times.asi8)[neighbours])
    if step < _DAY or step % _DAY:
        return to_offset(pd.Timedelta(step, unit="ns")).freqstr
    wall = wall_time(times)
    if times.tz is not None and _steady(times.asi8) and not _steady(wall.asi8):
        return f"{24 * (step // _DAY)}h"
    return _calendar_frequency(wall.normalize(), step // _DAY, neighbours)


def _most_common(steps: IntArray) -> int:
    values, counts = np.unique(steps[steps > 0], return_counts=True)
    if not len(values):
        raise ValueError("the frequency cannot be found from one row a series; give it, as frequency='D' for example")
    return int(values[counts.argmax()])


def _steady(nanoseconds: IntArray) -> bool:
    return bool((nanoseconds % _DAY == nanoseconds[0] % _DAY).all())


def _calendar_frequency(dates: pd.DatetimeIndex, days: int, neighbours: BoolArray) -> str:
    if days >= 28 and (monthly := _month_anchor(dates.unique())):
        months = dates.year.to_numpy() * 12 + dates.month.to_numpy()
        step = _most_common(np.diff(months)[neighbours].astype(np.int64))
        quarterly, yearly = _MONTH_ALIASES[monthly]
        anchor = _MONTHS[int(np.bincount(dates.month).argmax()) - 1]
        if step % 12 == 0:
            return parse_offset(f"{step // 12}{yearly}-{anchor}").freqstr
        return f"{quarterly}-{anchor}" if step == 3 else parse_offset(f"{step}{monthly}").freqstr
    if days % 7 == 0:
        anchor = _WEEKDAYS[int(np.bincount(dates.day_of_week).argmax())]
        return parse_offset(f"{days // 7}W-{anchor}").freqstr
    if days == 1 and _skips_weekends(dates, neighbours):
        return "B"
    return parse_offset(f"{days}D").freqstr


def _month_anchor(dates: pd.DatetimeIndex) -> Literal["MS", "ME", "BMS", "BME"] | None:
    """The kind of month day on which most dates fall, if there is one."""
    shares: dict[Literal["MS", "ME", "BMS", "BME"], float] = {
        "MS": float(dates.is_month_start.mean()),
        "ME": float(dates.is_month_end.mean()),
        "BMS": float(np.mean([pd.offsets.BMonthBegin().is_on_offset(date) for date in dates])),
        "BME": float(np.mean([pd.offsets.BMonthEnd().is_on_offset(date) for date in dates])),
    }
    best = max(shares, key=lambda alias: shares[alias])
    return best if shares[best] > 0.5 else None


def _skips_weekends(dates: pd.DatetimeIndex, neighbours: BoolArray) -> bool:
    friday_to_monday = (dates.day_of_week[:-1] == 4) & (np.diff(dates.asi8) == 3 * _DAY) & neighbours
    return bool(friday_to_monday.any() and (dates.day_of_week < 5).all())
