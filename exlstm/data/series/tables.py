"""A table from what the user has: a CSV or Parquet file, or a DataFrame."""

import gzip
import warnings
import zlib
from pathlib import Path

import pandas as pd

Source = str | Path | pd.DataFrame

_TEXT = (".csv", ".tsv", ".txt")
_PARQUET = (".parquet", ".pq")
_MISSING = ["", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaN", "nan", "null", "NULL", "None"]
_EXPECTED = "expected a .csv, .csv.gz or .parquet file or a DataFrame"


def read_table(source: Source, *, id_column: str, time_column: str) -> pd.DataFrame:
    """The table as it stands; in a text file series ids are text, whatever they look like ("007", "NA").

    The separator of a text file (comma, semicolon, tab) is taken from its first line; files are UTF-8.
    An index of a DataFrame that is named like the id or time column, or holds timestamps, becomes a column.
    Raises ValueError for what cannot be read, is empty, or has two columns of one name.
    """
    if isinstance(source, pd.DataFrame):
        frame, name = _index_to_columns(source, id_column, time_column), "the DataFrame"
    elif isinstance(source, str | Path):
        frame, name = _read_file(Path(source), id_column), str(source)
    else:
        raise ValueError(f"{_EXPECTED}, received {type(source).__name__}")
    if frame.empty:
        raise ValueError(f"{name} holds no rows")
    frame.columns = [str(column) for column in frame.columns]
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"{name} has two columns named {twice!r}; rename or drop one")
    return frame.reset_index(drop=True)


def _index_to_columns(frame: pd.DataFrame, id_column: str, time_column: str) -> pd.DataFrame:
    named = [name for name in frame.index.names if name in (id_column, time_column) and name not in frame.columns]
    if named:
        return frame.reset_index(level=named)
    if isinstance(frame.index, pd.DatetimeIndex) and time_column not in frame.columns:
        return frame.rename_axis(time_column).reset_index()
    return frame.copy(deep=False)


def _read_file(path: Path, id_column: str) -> pd.DataFrame:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")
    if path.is_dir():
        raise ValueError(f"{path} is a directory; {_EXPECTED}")
    if kind not in _TEXT + _PARQUET:
        raise ValueError(f"{_EXPECTED}, received {path}")
    try:
        if kind in _PARQUET:
            return pd.read_parquet(path)
        with (gzip.open if suffixes[-1] == ".gz" else open)(path, "rt", encoding="utf-8-sig") as lines:
            separator = max(",;\t", key=lines.readline().count)
        return _read_text(path, separator, id_column)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} is empty") from None
    except (OSError, EOFError, zlib.error, ValueError, pd.errors.ParserWarning) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} cannot be read as a {kind} file: {reason}") from None


def _read_text(path: Path, separator: str, id_column: str) -> pd.DataFrame:
    names = pd.read_csv(path, sep=separator, encoding="utf-8-sig", nrows=0).columns
    with warnings.catch_warnings():
        # Without index_col=False, lines longer than the first would silently move every value one column on.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            path,
            sep=separator,
            encoding="utf-8-sig",
            index_col=False,
            dtype={id_column: str},
            keep_default_na=False,
            na_values={name: [""] if name == id_column else _MISSING for name in names},
            low_memory=False,
        )
