"""Forecasters behind GluonTS's interface; GluonTS itself need not be there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from exlstm.data.series import Columns, Frequency, Series, SeriesSet
from exlstm.data.series.frequency import parse_offset, time_grid
from exlstm.models.forecast_network import LEVELS
from exlstm.models.forecaster import Forecaster
from exlstm.models.tirex import TirexForecaster

_NO_CALENDAR: Frequency = 1
"""Of the times that a TiRex is given, which does not look at them."""


class Predictor:
    """`predict(dataset)` as GluonTS calls it, so that `evaluate_model(predictor, test_data=..., ...)` works.

    Args:
        model: of a Forecaster, one that needs no columns beside the target.
        prediction_length: steps to forecast.
        quantiles: between 0.1 and 0.9.
        batch_size: series that are forecast together.

    Raises:
        ValueError: the model is not trained, or needs further columns.
    """

    lead_time = 0

    def __init__(
        self,
        model: Forecaster | TirexForecaster,
        prediction_length: int,
        *,
        quantiles: Sequence[float] = LEVELS,
        batch_size: int = 256,
    ) -> None:
        if prediction_length < 1 or batch_size < 1:
            raise ValueError(
                "expected prediction_length and batch_size of at least 1, "
                f"received {prediction_length} and {batch_size}"
            )
        self.columns, self.frequency = Columns(), _NO_CALENDAR
        if isinstance(model, Forecaster):
            self.columns, self.frequency = model.series.columns, model.series.frequency
        if more := (*self.columns.future, *self.columns.past, *self.columns.static):
            raise ValueError(f"of GluonTS's data the target alone is read, but this model needs {', '.join(more)} too")
        self.model, self.prediction_length = model, prediction_length
        self.quantiles, self.batch_size = tuple(quantiles), batch_size

    def predict(self, dataset: Iterable[Mapping[str, Any]], **_: Any) -> Iterator[Any]:
        """A forecast for each entry of the dataset, in order.

        Args:
            dataset: entries with `start` (a `pandas.Period`), `target` [T] (NaN where missing) and perhaps `item_id`.

        Returns:
            GluonTS's `QuantileForecast`s, or those below where GluonTS is not installed.

        Raises:
            ValueError: an entry is not as described or, for a Forecaster, not of the frequency of training.
        """
        entries = iter(dataset)
        while batch := list(islice(entries, self.batch_size)):
            yield from self._forecasts(batch)

    def _forecasts(self, entries: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
        series = tuple(self._series(entry, place) for place, entry in enumerate(entries))
        data = SeriesSet(series, self.frequency, self.columns)
        table = self.model.predict(data, self.prediction_length, self.quantiles)
        names = [f"q{level:g}" for level in self.quantiles]
        values = table[names].to_numpy().reshape(len(entries), self.prediction_length, -1)
        make = _forecast_class()
        for entry, found in zip(entries, values, strict=True):
            yield make(
                forecast_arrays=found.T,
                start_date=entry["start"] + len(entry["target"]),
                forecast_keys=[f"{level:g}" for level in self.quantiles],
                item_id=entry.get("item_id"),
                info=entry.get("info"),
            )

    def _series(self, entry: Mapping[str, Any], place: int) -> Series:
        name = entry.get("item_id", place)
        if not isinstance(start := entry.get("start"), pd.Period):
            raise ValueError(f"expected a pandas.Period as start of series {name!r}, received {type(start).__name__}")
        y = np.asarray(entry.get("target"), dtype=np.float32)
        if y.ndim != 1 or not len(y) or np.isinf(y).any():
            raise ValueError(
                f"expected finite values [T] or NaN as target of series {name!r}, received shape {y.shape}"
            )
        nothing = np.zeros((len(y), 0), dtype=np.float32)
        return Series(name, self._times(start, len(y)), y, nothing, nothing, {}, self.frequency)

    def _times(self, start: pd.Period, steps: int) -> pd.Index:
        if isinstance(self.frequency, int):
            return pd.RangeIndex(0, steps * self.frequency, self.frequency)
        first, second = (_timestamp(period, self.frequency) for period in (start, start + 1))
        if time_grid(pd.DatetimeIndex([first]), 2, self.frequency)[1] != second:
            raise ValueError(
                f"expected series of frequency {self.frequency!r}, as in training, received {start.freqstr!r}"
            )
        return time_grid(pd.DatetimeIndex([first]), steps, self.frequency)


def _timestamp(period: pd.Period, frequency: Frequency) -> pd.Timestamp:
    """The beginning of a period, or its last day where series of this frequency have that, as by months' ends."""
    begin = period.to_timestamp(how="start")
    assert isinstance(frequency, str)
    return begin if parse_offset(frequency).is_on_offset(begin) else period.to_timestamp(how="end").normalize()


@dataclass(frozen=True, eq=False)
class QuantileForecast:
    """What of GluonTS's class of this name a consumer of quantiles reads."""

    forecast_arrays: npt.NDArray[np.floating]
    """`[Q, h]`"""
    start_date: pd.Period
    forecast_keys: Sequence[str]
    """Q quantiles, such as "0.1"."""
    item_id: str | None = None
    info: Mapping[str, Any] | None = None

    @property
    def prediction_length(self) -> int:
        return self.forecast_arrays.shape[1]

    @property
    def index(self) -> pd.PeriodIndex:
        """The times of the forecast."""
        return pd.period_range(self.start_date, periods=self.prediction_length, freq=self.start_date.freq)

    @property
    def median(self) -> npt.NDArray[np.floating]:
        return self.quantile(0.5)

    def quantile(self, level: float | str) -> npt.NDArray[np.floating]:
        """`[h]` at one of `forecast_keys`, or between two by linear interpolation; ValueError beyond them."""
        levels = [float(key) for key in self.forecast_keys]
        wanted = float(level)
        if not min(levels) <= wanted <= max(levels):
            raise ValueError(f"expected a quantile between {min(levels)} and {max(levels)}, received {wanted}")
        order = np.argsort(levels)
        steps = self.forecast_arrays[order].T
        return np.array([np.interp(wanted, np.array(levels)[order], values) for values in steps])


def _forecast_class() -> Any:
    try:
        from gluonts.model.forecast import QuantileForecast as Theirs
    except ImportError:
        return QuantileForecast
    return Theirs
