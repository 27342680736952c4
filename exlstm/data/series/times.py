"""Times from a column: timestamps as they are written, or whole numbers."""

from typing import Any

import numpy as np
import pandas as pd

_OFFSET = r":\d{2}(?:\.\d+)?\s*(Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)$"
_DAY_FIRST = ("%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y")
_MONTH_FIRST = ("%m/%d/%Y", "%m.%d.%Y", "%m-%d-%Y")
_CLOCKS = ("", " %H:%M", " %H:%M:%S")


def parse_times(column: pd.Series) -> tuple[pd.Index, list[str]]:
    """The column as whole numbers (int64) or as timestamps in nanoseconds with their zone, and notes.

    Text is read as ISO 8601 (2024-01-31, 2024-01-31 12:30, 2024-01-31T12:30Z), else with the day or the month
    first where only one of the two is possible. Whole numbers that are all dates written YYYYMMDD are dates.
    Raises ValueError, naming the row, for missing or unreadable times, dates of unknown order, and time zones
    or offsets that are not the same in every row.
    """
    if column.isna().any():
        raise ValueError(f"{_row(column, column.isna())} has no time in column {column.name!r}")
    if pd.api.types.is_bool_dtype(column):
        raise ValueError(f"expected times in column {column.name!r}, received true and false")
    if pd.api.types.is_numeric_dtype(column):
        return _whole_numbers(column)
    if isinstance(column.dtype, np.dtype | pd.DatetimeTZDtype) and column.dtype.kind == "M":
        return _timestamps(column), []
    is_text = column.map(lambda value: isinstance(value, str)).astype(bool)
    if is_text.all():
        return _from_text(column.str.strip())
    if is_text.any():
        raise ValueError(f"column {column.name!r} mixes text and times: {_row(column, is_text)}; use one kind")
    _require_one_zone(column, column.map(lambda value: str(getattr(value, "tzinfo", None) or "")))
    return _timestamps(column), []


def _whole_numbers(column: pd.Series) -> tuple[pd.Index, list[str]]:
    numbers = column.to_numpy(dtype="float64")
    bad = pd.Series((numbers != np.round(numbers)) | (np.abs(numbers) > 2**53), column.index)
    if bad.any():
        raise ValueError(
            f"expected timestamps or whole numbers in column {column.name!r}, received {_row(column, bad)}"
        )
    whole = column.astype("int64")
    if whole.between(19_000_101, 21_001_231).all():
        dates = pd.to_datetime(whole.astype(str), format="%Y%m%d", errors="coerce")
        if dates.notna().all():
            return _timestamps(dates), [f"read the numbers in column {column.name!r} as dates (YYYYMMDD)"]
    return pd.Index(whole.to_numpy(dtype="int64")), []


def _from_text(column: pd.Series) -> tuple[pd.Index, list[str]]:
    offsets = column.str.extract(_OFFSET, expand=False).fillna("")
    _require_one_zone(column, offsets.str.replace(r"^(Z|UTC|GMT|[+-]00(:?00)?)$", "+00:00", regex=True))
    iso = pd.to_datetime(column, format="ISO8601", errors="coerce")
    if iso.notna().all():
        return _timestamps(iso), []
    day_first, month_first = (_first_fit(column, formats) for formats in (_DAY_FIRST, _MONTH_FIRST))
    fits = [fit for fit in (day_first, month_first) if fit is not None]
    if not fits:
        raise ValueError(
            f"{_row(column, iso.isna())} in column {column.name!r} is no time; write it as 2024-01-31 12:30"
        )
    if len(fits) == 2 and not fits[0][0].equals(fits[1][0]):
        raise ValueError(
            f"dates like {column.iloc[0]!r} in column {column.name!r} may have the day or the month first; "
            "write them as 2024-01-31"
        )
    times, pattern = fits[0]
    return _timestamps(times), [f"read the times in column {column.name!r} as {pattern}"]


def _first_fit(column: pd.Series, formats: tuple[str, ...]) -> tuple[pd.Series, str] | None:
    for pattern in (date + clock for date in formats for clock in _CLOCKS):
        times = pd.to_datetime(column, format=pattern, errors="coerce")
        if times.notna().all():
            return times, pattern
    return None


def _require_one_zone(column: pd.Series, zones: pd.Series) -> None:
    different = zones != zones.iloc[0]
    if not different.any():
        return
    kinds = [zone or "none" for zone in (zones.iloc[0], zones[different].iloc[0])]
    raise ValueError(
        f"column {column.name!r} mixes time zones ({kinds[0]} and {kinds[1]}): {_row(column, different)}; "
        "write all times in one zone, UTC for example"
    )


def _timestamps(column: pd.Series) -> pd.DatetimeIndex:
    try:
        return pd.DatetimeIndex(pd.to_datetime(column)).as_unit("ns")
    except (ValueError, TypeError) as error:
        raise ValueError(f"column {column.name!r} cannot be read as times: {error}") from None


def _row(column: pd.Series, where: pd.Series) -> str:
    place = int(np.flatnonzero(where.to_numpy())[0])
    value: Any = column.iloc[place]
    return f"data row {place + 1}" + ("" if pd.isna(value) else f" ({value})")
