"""What a calendar knows in advance: seasonal periods, and smooth features of day, week and year."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from exlstm.data.series.frequency import Frequency, absolute_length, parse_offset, time_grid, wall_time

_SECONDS = {"minute": 60.0, "hour": 3600.0, "day": 86_400.0, "week": 604_800.0, "year": 365.25 * 86_400.0}
HARMONICS = {"day": 2, "week": 3, "year": 2}
"""Sine and cosine pairs of each cycle. Three pairs tell all seven days of the week apart linearly."""


def step_seconds(frequency: str) -> float:
    """The length of one step; for steps of the calendar, which vary, their mean."""
    offset = parse_offset(frequency)
    if (length := absolute_length(offset)) is not None:
        return length.total_seconds()
    grid = time_grid(pd.DatetimeIndex(["2000-01-01"]), 141, offset.base.freqstr)  # 28 weeks of business days
    return offset.n * (grid[-1] - grid[0]).total_seconds() / 140


def season_lengths(frequency: Frequency) -> tuple[int, ...]:
    """The natural seasonal periods of a frequency, in steps, shortest first.

    Half-hourly (48, 336), hourly (24, 168), minutes (1440, 10080), seconds (3600, 86400), daily (7, 365),
    business days (5, 261), weekly (52,), monthly (12,), quarterly (4,); none for years and for integer times.
    """
    if isinstance(frequency, int):
        return ()
    step = step_seconds(frequency)
    if step < _SECONDS["minute"]:
        cycles = ("hour", "day")
    elif step < 0.75 * _SECONDS["day"]:
        cycles = ("day", "week")
    else:
        cycles = ("week", "year")
    ratios = [_SECONDS[cycle] / step for cycle in cycles]
    return tuple(round(ratio) for ratio in ratios if ratio > 1.5 and abs(ratio / round(ratio) - 1) < 0.01)


def season_length(frequency: Frequency, steps: int | None = None) -> int:
    """The one period to measure against: the longest up to a week, or the year for weeks and longer.

    With `steps`, the length of the history, only periods that fit into it twice count. 1 if there is none.
    """
    if isinstance(frequency, int):
        return 1
    longest = max(1.0, _SECONDS["week"] / step_seconds(frequency))
    weekly_or_longer = longest < 1.5
    periods = [
        period
        for period in season_lengths(frequency)
        if (weekly_or_longer or period < 1.01 * longest) and (steps is None or 2 * period <= steps)
    ]
    return max(periods, default=1)


def calendar_cycles(frequency: Frequency) -> tuple[str, ...]:
    """The cycles ("day", "week", "year") of which one step is a part; none for integer times."""
    if isinstance(frequency, int):
        return ()
    step = step_seconds(frequency)
    return tuple(cycle for cycle in HARMONICS if 1.5 * step < _SECONDS[cycle])


def repeated_cycles(frequency: Frequency, steps: int) -> tuple[str, ...]:
    """The calendar cycles that a history passes through at least twice, so that they can be learned."""
    if isinstance(frequency, int):
        return ()
    span = steps * step_seconds(frequency)
    return tuple(cycle for cycle in calendar_cycles(frequency) if span >= 2 * _SECONDS[cycle])


def calendar_features(
    index: pd.Index, frequency: Frequency, cycles: Sequence[str] | None = None
) -> npt.NDArray[np.float32]:
    """Sines and cosines of the local time of day, day of the week and day of the year: `[T, F]` float32.

    `cycles` names the cycles wanted, by default `calendar_cycles(frequency)`; each gives `2 *
    HARMONICS[cycle]` columns whatever the times are. Integer times give no columns. Raises ValueError for a
    cycle that is not known.
    """
    wanted = calendar_cycles(frequency) if cycles is None else cycles
    if unknown := [cycle for cycle in wanted if cycle not in HARMONICS]:
        raise ValueError(f"expected cycles among {', '.join(HARMONICS)}, received {unknown[0]!r}")
    if not isinstance(index, pd.DatetimeIndex) or not wanted:
        return np.zeros((len(index), 0), dtype=np.float32)
    wall = wall_time(index)
    day = (wall - wall.normalize()) / pd.Timedelta(days=1)
    phases = {
        "day": day.to_numpy(),
        "week": wall.day_of_week.to_numpy() / 7.0,
        "year": (wall.day_of_year.to_numpy() - 1 + day.to_numpy()) / np.where(wall.is_leap_year, 366.0, 365.0),
    }
    angles = [2 * np.pi * k * phases[cycle] for cycle in wanted for k in range(1, HARMONICS[cycle] + 1)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.stack(waves, axis=1).astype(np.float32)
