"""The data of a forecasting run: from the user's file or the sample, what is held out, and the forecasts."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from exlstm.data.samples import sample
from exlstm.data.series import Frequency, SeriesSet, read_series

if TYPE_CHECKING:
    from exlstm.tasks.forecast import Train

SAMPLE = "electricity"
_MOST_WINDOWS = 100
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class Split:
    """The end of each series that is held out: `windows` windows of `horizon` steps, one after another."""

    horizon: int
    windows: int

    @property
    def steps(self) -> int:
        return self.horizon * self.windows


def read(options: "Train", file: Path | None) -> SeriesSet:
    """The series of `file`, or of the sample where that is None, with the columns that the options name.

    Raises ValueError for what `read_series` cannot read.
    """
    return read_series(
        sample(SAMPLE) if file is None else file,
        frequency=parse_frequency(options.frequency),
        id_column=options.id_column,
        time_column=options.time_column,
        target=options.target,
        future=options.future,
        past=options.past,
        static=options.static,
    )


def parse_frequency(words: str | None) -> Frequency | None:
    """A frequency as it is typed: a whole number, or an alias of pandas."""
    return int(words) if words is not None and words.isdecimal() else words


def digest(file: Path | None) -> str:
    """What tells one version of the file from another; the sample's name where there is no file."""
    if file is None:
        return SAMPLE
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def name_of(file: Path | None) -> str:
    """What to call the data: the file's name without its endings, or the sample's."""
    return SAMPLE if file is None else file.name.partition(".")[0]


def usual_horizon(data: SeriesSet) -> int:
    """The shortest season, or ten steps where there is none, but at most a tenth of the median series."""
    length = int(np.median([len(series) for series in data]))
    return max(1, min(min(data.season_lengths, default=10), length // 10))


def choose_split(data: SeriesSet, horizon: int | None = None, windows: int | None = None) -> Split:
    """What to hold out. By default the horizon is the usual one; the windows are as many as fit in the last sixth of
    the median series, at most 100.

    Raises ValueError for numbers below 1, and where less than a horizon would be left to train on.
    """
    length = int(np.median([len(series) for series in data]))
    if horizon is None:
        horizon = usual_horizon(data)
    if windows is None:
        windows = max(1, min(length // (6 * horizon), _MOST_WINDOWS)) if horizon > 0 else 1
    for name, value in (("--horizon", horizon), ("--test-windows", windows)):
        if value < 1:
            raise ValueError(f"expected {name} to be at least 1, got {value}")
    if data.longest < (windows + 1) * horizon:
        raise ValueError(
            f"the longest series has {data.longest} steps, too few to hold out {windows} x {horizon} and train on "
            f"{horizon} or more; give more data, a smaller --horizon or fewer --test-windows"
        )
    return Split(horizon, windows)


def summary(data: SeriesSet, file: Path | None, split: Split) -> dict[str, Any]:
    """What the data are, for `scores.json`."""
    return {
        "source": SAMPLE if file is None else str(file),
        "series": len(data),
        "steps": sum(map(len, data)),
        "frequency": data.frequency,
        "first": str(min(series.ds[0] for series in data)).removesuffix(" 00:00:00"),
        "last": str(max(series.ds[-1] for series in data)).removesuffix(" 00:00:00"),
        "horizon": split.horizon,
        "windows": split.windows,
        "season": data.season_length,
    }


def require_table_name(file: Path, source: Path | None) -> None:
    """Raises ValueError where `write_table` could not tell the format, or would overwrite the `source`."""
    if file.suffix.lower() not in (".csv", *_PARQUET):
        raise ValueError(f"expected --out to end in .csv or .parquet, got {file}")
    if file.is_dir():
        raise ValueError(f"expected --out to be a file, got the folder {file}")
    if source is not None and file.exists() and file.samefile(source):
        raise ValueError(f"--out would overwrite the data it forecasts, {file}; name another file")


def give(table: pd.DataFrame, data: SeriesSet, file: Path | None) -> None:
    """Print forecasts of the series as CSV, or write them to the file and say so."""
    if file is None:
        print(to_csv(table), end="")
    else:
        write_table(table, file)
        print(f"forecasts of {len(data)} series, {len(table) // len(data)} steps each: {file}")


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Write the table as CSV or Parquet, by the ending of the file's name, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        if file.suffix.lower() in _PARQUET:
            table.to_parquet(temporary, index=False)
        else:
            temporary.write_text(to_csv(table), encoding="utf-8")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def to_csv(table: pd.DataFrame) -> str:
    """The table as CSV, its numbers with the seven digits that float32 holds."""
    return table.to_csv(index=False, float_format="%.7g", lineterminator="\n")
