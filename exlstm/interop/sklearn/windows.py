"""Histories and what follows them, as arrays, to the windows that a forecaster reads."""

import numpy as np
import torch
from torch import Tensor

from exlstm.data.series import Batch, Columns
from exlstm.interop.sklearn.sequences import FloatArray
from exlstm.models.forecast_network import SeriesKind

_NO_SEASON = 16
"""Steps that count as the season where there is none."""
_AS_GOOD = 0.05
"""The share by which the error of a lag may be larger than the smallest for the lag to be as good."""


def describe_windows(X: FloatArray, y: FloatArray) -> SeriesKind:
    """What kind of windows these are, as `exlstm.models.series_kind.describe` does it, but by the values alone.

    The lags are 1 and that one, of those that a history passes through twice, whose values repeated come closest to y,
    or a shorter one that is about as good, as a season is beside its multiples.

    Args:
        X: histories [n, T, features] of which the first feature goes on as y; NaN where nothing was observed.
        y: what follows [n, h], in units in which the samples are alike.
    """
    steps = X.shape[1]
    errors = {lag: _naive_error(X[:, :, 0], y, lag) for lag in range(1, max(1, steps // 2) + 1)}
    best = min(lag for lag, error in errors.items() if error <= (1 + _AS_GOOD) * min(errors.values()))
    season = best if best > 1 else _NO_SEASON
    patch = min(steps, int(np.clip(season // 2, 4, 48)))
    compared = max(steps - best, 1)  # steps that have one a season before
    return SeriesKind(
        horizon=y.shape[1],
        patch=patch,
        context=-(-compared // patch) * patch,
        lags=tuple(sorted({1, best}, key=lambda lag: errors[lag])),
        frequency=1,
        cycles=(),
        columns=Columns(past=tuple(f"feature_{number}" for number in range(1, X.shape[2]))),
        categories=(),
    )


def _naive_error(history: FloatArray, y: FloatArray, lag: int) -> float:
    """The mean distance of y from the last `lag` values repeated; infinite if none of these is ever known."""
    distance = np.abs(y - history[:, history.shape[1] - lag + np.arange(y.shape[1]) % lag])
    known = ~np.isnan(distance)
    return float(distance[known].mean()) if known.any() else float("inf")


def make_windows(X: FloatArray, y: FloatArray | None, kind: SeriesKind, dtype: torch.dtype) -> Batch:
    """The windows of histories X [n, T, features] with what follows them y [n, h], if it is known.

    Where T is below `kind.history`, the histories count as series that are no longer than that.
    """
    n, steps, features = X.shape
    steps = min(steps, kind.history)
    values = torch.full((n, kind.history + kind.horizon, features), torch.nan, dtype=dtype)
    values[:, kind.history - steps : kind.history] = torch.from_numpy(X[:, X.shape[1] - steps :])
    if y is not None:
        values[:, kind.history :, 0] = torch.from_numpy(y)
    observed, values = ~values.isnan(), values.nan_to_num(0.0)
    inside = torch.arange(-kind.history, kind.horizon) >= -steps
    no_columns, no_numbers = values[:, :, :0], values[:, 0, :0]
    return Batch(
        y=values[:, :, 0],
        mask=observed[:, :, 0],
        inside=inside.expand(n, -1),
        calendar=no_columns,
        future=no_columns,
        future_mask=no_columns.bool(),
        past=values[:, : kind.history, 1:],
        past_mask=observed[:, : kind.history, 1:],
        static=no_numbers,
        static_codes=no_numbers.long(),
        series=torch.arange(n),
        origin=torch.full((n,), steps),
    )


def some(windows: Batch, which: Tensor | slice) -> Batch:
    """Some of the windows."""
    return Batch(*(tensor[which] for tensor in windows))
