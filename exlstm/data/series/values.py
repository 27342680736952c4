"""Numbers from a column, as float32 with NaN where nothing was observed, and static values."""

import numpy as np
import pandas as pd

from exlstm.data.series.frequency import BoolArray, IntArray
from exlstm.data.series.series import FloatArray

_LARGEST = 1e38


def parse_numbers(column: pd.Series) -> FloatArray:
    """The column as float32 `[N]`, missing values as NaN.

    Raises ValueError, naming the data row (the first below the header is 1), for text that is no number and
    for values that are infinite or over 1e38 in size, so that differences stay finite in float32.
    """
    if getattr(column.dtype, "kind", "O") in "mMc":  # pandas would read times as counts of nanoseconds
        raise ValueError(f"expected numbers in column {column.name!r}, received {column.dtype}")
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(dtype="float64", na_value=np.nan)
    else:
        parsed = pd.to_numeric(column, errors="coerce")
        if (no_number := (parsed.isna() & column.notna()).to_numpy()).any():
            raise ValueError(f"expected numbers in column {column.name!r}, received {_row(column, no_number)}")
        numbers = parsed.to_numpy(dtype="float64", na_value=np.nan)
    if (too_large := np.abs(numbers) > _LARGEST).any():
        raise ValueError(f"expected numbers up to 1e38 in column {column.name!r}, received {_row(column, too_large)}")
    return numbers.astype(np.float32)


def parse_static(column: pd.Series, series: IntArray, ids: pd.Index) -> list[float] | list[str]:
    """The one value a series of a static column: numbers, or categories (text) for any other type.

    `series [N]` numbers the series of each row, `ids` names them. Raises ValueError for a series with no
    value or with several.
    """
    is_category = pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column)
    values: pd.Series = column.astype("str") if is_category else pd.Series(parse_numbers(column), column.index)
    grouped = values.where(column.notna()).groupby(series)
    first = grouped.first()
    if (empty := first.isna()).any():
        raise ValueError(
            f"static column {column.name!r} has no value for series {ids[int(empty.argmax())]!r}; fill it in"
        )
    if (grouped.nunique() > 1).any():
        changes = (values != first.to_numpy()[series]).to_numpy() & column.notna().to_numpy()
        raise ValueError(
            f"static column {column.name!r} changes within a series, to {_row(column, changes)}; "
            "name it as future= or past= if it varies with time"
        )
    return [str(value) for value in first] if is_category else [float(value) for value in first]


def _row(column: pd.Series, where: BoolArray) -> str:
    place = int(np.flatnonzero(where)[0])
    return f"{str(column.iloc[place])!r} in data row {place + 1}"
