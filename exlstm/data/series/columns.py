"""Which column of a table is what."""

from dataclasses import replace

import pandas as pd

from exlstm.data.series.series import Columns


def choose_columns(frame: pd.DataFrame, named: Columns) -> tuple[Columns, list[str]]:
    """The columns to read, and notes.

    A table of two columns is one series whatever their names: the time, then the value. Columns that nothing
    names are not used, which a note says. Raises ValueError for names that are missing or used twice.
    """
    present = list(frame.columns)
    columns, notes = named, []
    if len(present) == 2 and named.id not in present and not {named.time, named.target} <= set(present):
        time, target = _time_and_value(present, named.time, named.target)
        columns = replace(named, time=time, target=target)
        notes.append(f"read column {time!r} as the time and {target!r} as the value")
    wanted = [columns.time, columns.target, *columns.future, *columns.past, *columns.static]
    if twice := [name for name in [columns.id, *wanted] if [columns.id, *wanted].count(name) > 1]:
        raise ValueError(f"column {twice[0]!r} is named for two purposes; name each column once")
    required = wanted if columns.id == Columns.id else [columns.id, *wanted]
    if missing := [name for name in required if name not in present]:
        listed = ", ".join(repr(name) for name in present)
        raise ValueError(
            f"no column {missing[0]!r} among {listed}; name yours with id_column=, time_column= or target="
        )
    if headless := [name for name in wanted if _is_number(name)]:
        raise ValueError(
            f"the first line looks like data ({headless[0]!r}), not names; put a line of column names on top"
        )
    if unused := [name for name in present if name not in {columns.id, *wanted}]:
        listed = ", ".join(repr(name) for name in unused)
        notes.append(f"not used: {listed}; name columns as future=, past= or static= to use them")
    return columns, notes


def _time_and_value(present: list[str], time_column: str, target: str) -> tuple[str, str]:
    first, second = present
    reversed_order = second == time_column or first == target
    return (second, first) if reversed_order else (first, second)


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
