"""Scores of forecasts over N windows of h steps, in float64; missing targets (NaN) do not count."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from exlstm.data.series import Batch, SeriesSet

Array = npt.NDArray[np.floating]
DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def mae(y: Array, forecast: Array) -> float:
    """Mean absolute error over all observed targets; `y`, `forecast` `[N, h]`."""
    return _mean(np.abs(_float64(y) - forecast))


def mae_by_horizon(y: Array, forecast: Array) -> npt.NDArray[np.float64]:
    """Mean absolute error of each step of the horizon `[h]`; NaN for a step without observed targets."""
    return _row_means(np.abs(_float64(y) - forecast).T)


def smape(y: Array, forecast: Array) -> float:
    """Symmetric mean absolute percentage error (0 to 200): mean of `200 |y - f| / (|y| + |f|)`, 0/0 = 0."""
    y = _float64(y)
    size = np.abs(y) + np.abs(forecast)
    return _mean(200 * np.abs(y - forecast) / np.where(size == 0, 1.0, size))


def mase(y: Array, forecast: Array, scales: Array) -> float:
    """Mean absolute scaled error (Hyndman and Koehler, 2006), window by window.

    `scales [N]` is what `mase_scales` gives. The error of a window is the mean absolute error of its observed
    targets over its scale; the result is the mean over the windows. Windows without an observed target or
    without a scale (NaN) do not count; NaN if none is left.
    """
    scaled = _row_means(np.abs(_float64(y) - forecast)) / scales
    return float(np.nanmean(scaled)) if np.isfinite(scaled).any() else float("nan")


def mase_scales(series_set: SeriesSet, windows: Batch, season: int) -> npt.NDArray[np.float64]:
    """What a seasonal naive forecast misses on average before the evaluation begins, for each window `[N]`.

    For a series it is the mean of `|y_t - y_(t - season)|` over all observed pairs before its first origin
    among `windows`. NaN where there is no such pair, or where the mean is 0: a scaled error means nothing
    there.
    """
    if season < 1:
        raise ValueError(f"expected a season of at least 1 step, received {season}")
    scales = np.full(len(series_set), np.nan)
    for place, origin in first_origins(windows).items():
        history = _float64(series_set[place].y[:origin])
        differences = np.abs(history[season:] - history[:-season])
        scales[place] = _row_means(differences[None])[0] or np.nan
    return scales[windows.series.numpy()]


def crps(y: Array, quantiles: Array, levels: Sequence[float]) -> float:
    """Continuous ranked probability score from quantiles `[N, h, Q]` at `levels`, in units of y.

    Twice the mean of the pinball loss over levels and observed targets, which is the integral of twice the
    loss over levels spread evenly on (0, 1) (Gneiting and Ranjan, 2011, equation 10).
    """
    error = _float64(y)[..., None] - quantiles
    taus = np.asarray(levels, dtype=np.float64)
    return _mean(2 * np.maximum(taus * error, (taus - 1) * error))


def coverage(y: Array, lower: Array, upper: Array) -> float:
    """The share of observed targets from `lower` to `upper`, bounds included."""
    inside = (lower <= y) & (y <= upper)
    return _mean(np.where(np.isnan(y), np.nan, inside))


def observed_targets(windows: Batch) -> npt.NDArray[np.float64]:
    """The targets of windows, `[N, h]`, NaN where none was observed."""
    y, mask = windows.y[:, windows.context :], windows.mask[:, windows.context :]
    return np.where(mask.numpy(), y.numpy(), np.nan).astype(np.float64)


def first_origins(windows: Batch) -> dict[int, int]:
    """The first origin among the windows of each series, by the number of the series."""
    series, origins = windows.series.numpy(), windows.origin.numpy()
    return {int(place): int(origins[series == place].min()) for place in np.unique(series)}


def score(y: Array, point: Array, quantiles: Array, levels: Sequence[float], scales: Array) -> dict[str, float]:
    """MASE, MAE, sMAPE (of `point [N, h]`), CRPS and coverage80 (of `quantiles [N, h, Q]`, from 0.1 to 0.9).

    Raises ValueError where the levels lack 0.1 or 0.9, or where no target was observed.
    """
    ends = [np.flatnonzero(np.isclose(levels, end)) for end in (0.1, 0.9)]
    if not all(len(end) for end in ends):
        raise ValueError(f"expected quantile levels with 0.1 and 0.9, received {tuple(levels)}")
    lower, upper = (quantiles[..., end[0]] for end in ends)
    return {
        "MASE": mase(y, point, scales),
        "MAE": mae(y, point),
        "sMAPE": smape(y, point),
        "CRPS": crps(y, quantiles, levels),
        "coverage80": coverage(y, lower, upper),
    }


def _float64(values: Array) -> npt.NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _mean(values: Array) -> float:
    if np.isnan(values).all():
        raise ValueError("no target was observed, so there is nothing to score; evaluate where there are values")
    return float(np.nanmean(values))


def _row_means(values: Array) -> npt.NDArray[np.float64]:
    """The mean of the observed values of each row; NaN for a row without any."""
    observed = ~np.isnan(values)
    count = observed.sum(axis=1)
    total = np.where(observed, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
