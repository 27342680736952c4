"""Forecasts of the held-out end of the data, beside the baselines' on the same windows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from exlstm.data.series import SeriesSet, evaluation_windows
from exlstm.tasks.series_baselines import Forecast, ridge, seasonal_naive
from exlstm.tasks.series_metrics import DECILES, mae_by_horizon, mase_scales, observed_targets, score

if TYPE_CHECKING:
    from exlstm.models.forecaster import Forecaster

Array = npt.NDArray[np.float64]
_NAMES = ("unique_id", "ds", "y")
QUANTILES = [f"q{level:g}" for level in DECILES]


@dataclass(frozen=True)
class Evaluation:
    """What came of forecasting N windows of h steps.

    `table` has a row for each window and step: `unique_id, ds, cutoff, y`, the model's quantiles, and one
    column for the point forecast of each baseline. `scales [N]` are what MASE divides a window's errors by.
    """

    table: pd.DataFrame
    scores: dict[str, float]
    baselines: dict[str, dict[str, float]]
    scales: Array
    season: int
    horizon: int
    notes: list[str]

    @property
    def windows(self) -> int:
        """N, over all series."""
        return len(self.scales)

    def values(self, column: str) -> Array:
        """A column of the table as `[N, h]`."""
        return self.table[column].to_numpy(dtype=np.float64).reshape(-1, self.horizon)

    def with_names_of(self, data: SeriesSet) -> pd.DataFrame:
        """The table with the columns called as in the data."""
        return self.table.rename(columns=dict(zip(_NAMES, _names_in(data), strict=True)))

    def window(self, number: int) -> pd.DataFrame:
        """The rows of one window."""
        return self.table.iloc[number * self.horizon : (number + 1) * self.horizon]

    def window_errors(self) -> Array:
        """The mean absolute error of each window `[N]`, scaled as in MASE where there is a scale."""
        errors = np.abs(self.values("y") - self.values("q0.5"))
        observed = np.isfinite(errors)
        means = np.where(observed, errors, 0).sum(axis=1) / np.maximum(observed.sum(axis=1), 1)
        return np.where(observed.any(axis=1), means, np.nan) / np.where(np.isfinite(self.scales), self.scales, 1.0)

    def errors_by_step(self) -> dict[str, Array]:
        """For the model and each baseline, the mean scaled error of each step of the horizon `[h]`."""
        scales = np.where(np.isfinite(self.scales), self.scales, 1.0)[:, None]
        columns = {"model": "q0.5", **{name: name for name in self.baselines}}
        return {
            name: mae_by_horizon(self.values("y") / scales, self.values(column) / scales)
            for name, column in columns.items()
        }


def evaluate(forecaster: "Forecaster", data: SeriesSet, horizon: int, windows: int) -> Evaluation:
    """Forecast the last `windows` windows of each series, each from what lies before it, and score them.

    Raises ValueError where the held-out end holds no observed value.
    """
    table = forecaster.cross_validation(data, horizon, windows, horizon, quantiles=DECILES, fit=False)
    table = table.rename(columns=dict(zip(_names_in(data), _NAMES, strict=True)))
    batch = evaluation_windows(data, 1, horizon, windows, horizon)
    season = data.season_length
    y, scales = observed_targets(batch), mase_scales(data, batch, season)
    baselines, notes = {"seasonal_naive": seasonal_naive(data, batch, season=season)}, []
    try:
        baselines["ridge"] = ridge(data, batch)
    except ValueError as error:
        notes.append(f"no ridge regression: {error}")
    model = table[QUANTILES].to_numpy(dtype=np.float64).reshape(*y.shape, len(QUANTILES))
    return Evaluation(
        table=table.assign(**{name: baseline.point.reshape(-1) for name, baseline in baselines.items()}),
        scores=score(y, model[..., QUANTILES.index("q0.5")], model, DECILES, scales),
        baselines={name: _score(y, baseline, scales) for name, baseline in baselines.items()},
        scales=scales,
        season=season,
        horizon=horizon,
        notes=notes,
    )


def _names_in(data: SeriesSet) -> tuple[str, str, str]:
    return data.columns.id, data.columns.time, data.columns.target


def _score(y: Array, baseline: Forecast, scales: Array) -> dict[str, float]:
    return score(y, baseline.point, baseline.quantiles, DECILES, scales)
