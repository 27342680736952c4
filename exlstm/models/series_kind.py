"""What the series to be learned are: the rules that fit a forecaster's shapes to them."""

import numpy as np
import torch

from exlstm.data.series import SeriesSet, scale_statistics
from exlstm.models.forecast_network import ForecastNetwork, SeriesKind, Standardise


def describe(data: SeriesSet, horizon: int, *, patch: int | None = None, context: int | None = None) -> SeriesKind:
    """Choose patches, context and lags for these series.

    A patch is half the shortest season (16 steps where there is none), from 4 to 48 steps; the context is
    that season, at least 32 steps, in whole patches. Seasons that the longest series passes through at least
    twice are lags, and so is a single step.
    """
    season = min(data.season_lengths, default=16)
    patch = patch or int(np.clip(season // 2, 4, 48))
    context = context or max(season, 32)
    seasons = [season for season in data.season_lengths if 2 * season + horizon <= data.longest]
    lags = sorted({1, *seasons}, key=lambda lag: _naive_error(data, lag, horizon))
    return SeriesKind(
        horizon=horizon,
        patch=patch,
        context=-(-context // patch) * patch,
        lags=tuple(lags),
        frequency=data.frequency,
        cycles=data.cycles,
        columns=data.columns,
        categories=tuple((name, tuple(known)) for name, known in data.categories.items()),
    )


def _naive_error(data: SeriesSet, lag: int, horizon: int) -> float:
    """Mean over series of the error of repeating the last `lag` values over the horizon, in units of their spread."""
    behind, often = np.unique(lag * np.ceil(np.arange(1, horizon + 1) / lag).astype(int), return_counts=True)
    errors = []
    for series in data:
        y = torch.from_numpy(series.y)
        spread = float(scale_statistics(y.nan_to_num(0.0), ~y.isnan())[1])
        sizes = [float((y[steps:] - y[:-steps]).abs().nanmean()) for steps in behind.tolist()]
        if np.isfinite(sizes).any():
            finite = np.isfinite(sizes)
            errors.append(np.average(np.array(sizes)[finite], weights=often[finite]) / spread)
    return float(np.mean(errors)) if errors else float("inf")


def fit_scaling(network: ForecastNetwork, data: SeriesSet) -> None:
    """Set the units of exogenous and numeric static columns to what they spread over in these series."""
    numeric = [name for name in data.columns.static if name not in data.categories]
    _fit(network.future_scaling, np.concatenate([series.future for series in data]))
    _fit(network.past_scaling, np.concatenate([series.past for series in data]))
    statics = [[float(series.static[name]) for name in numeric] for series in data]
    _fit(network.describe_series.scaling, np.array(statics, dtype=np.float32).reshape(len(data), len(numeric)))


def _fit(standardise: Standardise, values: np.ndarray) -> None:
    columns = torch.from_numpy(np.ascontiguousarray(values.T))
    if len(columns):
        centre, scale = scale_statistics(columns.nan_to_num(0.0), ~columns.isnan())
        standardise.centre.copy_(centre)
        standardise.scale.copy_(scale)
