"""Numeric series: from a CSV or Parquet file or a DataFrame to regular grids, and on to batches."""

from exlstm.data.series.frequency import Frequency
from exlstm.data.series.reading import read_series
from exlstm.data.series.sampling import WindowSampler, evaluation_windows, forecast_windows
from exlstm.data.series.scaling import scale_statistics
from exlstm.data.series.seasonality import calendar_cycles, calendar_features, season_length, season_lengths
from exlstm.data.series.series import Columns, Series, SeriesSet, future_index, require_length
from exlstm.data.series.windows import Batch

__all__ = [
    "Batch",
    "Columns",
    "Frequency",
    "Series",
    "SeriesSet",
    "WindowSampler",
    "calendar_cycles",
    "calendar_features",
    "evaluation_windows",
    "forecast_windows",
    "future_index",
    "read_series",
    "require_length",
    "scale_statistics",
    "season_length",
    "season_lengths",
]
