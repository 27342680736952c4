"""What a learned forecaster must beat on the same windows: a seasonal naive forecast and a ridge regression.

Both learn from what lies before the first origin of each series, and forecast every window from what lies
before its origin. Their quantiles are the point forecast plus the quantiles of their residuals on what they
learnt from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from exlstm.data.series import Batch, SeriesSet, scale_statistics
from exlstm.tasks.series_metrics import DECILES, first_origins

Array = npt.NDArray[np.float64]

PENALTIES = tuple(10.0**power for power in range(-3, 5))
"""What `ridge` chooses from: factors of the squared weights, beside a sum of squared normalised errors."""
_MOST_WINDOWS = 20_000
_CLIP = 10.0


class Forecast(NamedTuple):
    """`point [N, h]` and `quantiles [N, h, Q]` of N windows, float64."""

    point: Array
    quantiles: Array


def seasonal_naive(
    series_set: SeriesSet, windows: Batch, *, season: int, levels: Sequence[float] = DECILES
) -> Forecast:
    """The value of the latest season before the origin in which that phase of the season was observed.

    For a phase never observed (the series may be shorter than a season) it is the last observed value, and 0
    where there is none. The residuals of a step are the differences over as many seasons as it lies ahead;
    without any, all quantiles are the point forecast. Raises ValueError for a season below 1.
    """
    if season < 1:
        raise ValueError(f"expected a season of at least 1 step, received {season}")
    point = np.stack([_repeat_season(history, season, windows.horizon) for history in _histories(series_set, windows)])
    seasons_ahead = season * (1 + np.arange(windows.horizon) // season)
    spread = np.zeros((len(series_set), windows.horizon, len(levels)))
    for place, origin in first_origins(windows).items():
        history = series_set[place].y[:origin].astype(np.float64)
        for distance in np.unique(seasons_ahead):
            residuals = history[distance:] - history[:-distance]
            spread[place, seasons_ahead == distance] = _observed_quantiles(residuals, levels)
    return Forecast(point, point[..., None] + spread[windows.series.numpy()])


def ridge(series_set: SeriesSet, windows: Batch, *, lags: int = 384, levels: Sequence[float] = DECILES) -> Forecast:
    """One linear map for all series, its weights penalised, from the last values to the whole horizon.

    Lags and targets are normalised by the `scale_statistics` of the lags and clipped to 10 scales from the
    centre, so that a spike in one series does not rule the others; missing values in them are interpolated
    (in the lags of a forecast, from those lags alone), and windows with fewer than half of their targets
    observed are not learnt from. It uses `ridge_lags(...)` values, at most 20,000 windows spread evenly, and
    the one of `PENALTIES` with the least absolute error on the last fifth of the windows after fitting those
    before (1 where they are too few for that). Raises ValueError where nothing is long enough for a single
    lag.
    """
    lags = ridge_lags(series_set, windows, lags)
    known = _training_windows(series_set, windows, lags)
    penalty = 1.0
    if known.fitted.any() and known.held_out.any():
        trials = _fit(known.lags[known.fitted], known.targets[known.fitted], PENALTIES)
        targets, observed = known.targets[known.held_out], known.observed[known.held_out]
        errors = [np.abs(trial(known.lags[known.held_out]) - targets)[observed].mean() for trial in trials]
        penalty = PENALTIES[int(np.argmin(errors))]
    (linear,) = _fit(known.lags, known.targets, (penalty,))
    residuals = np.where(known.observed, known.targets - linear(known.lags), np.nan)
    spread = np.stack([_observed_quantiles(of_step, levels) for of_step in residuals.T])

    values = np.stack([_last_values(history, lags) for history in _histories(series_set, windows)])
    centre, scale = _centre_and_scale(values, ~np.isnan(values))
    normalised = (np.stack([_interpolate(row) for row in values]) - centre) / scale
    point = linear(normalised.clip(-_CLIP, _CLIP))
    quantiles = point[..., None] + spread
    return Forecast(centre + scale * point, centre[..., None] + scale[..., None] * quantiles)


def ridge_lags(series_set: SeriesSet, windows: Batch, most: int = 384) -> int:
    """The lags that `ridge` uses: `most`, halved until the series give twice as many windows to learn from.

    Raises ValueError for `most` below 1 and where even one lag gives no two windows.
    """
    if most < 1:
        raise ValueError(f"expected at least 1 lag, received {most}")
    lengths = np.array(list(first_origins(windows).values()))
    lags = most
    while lags > 1 and np.maximum(lengths - lags - windows.horizon + 1, 0).sum() < 2 * lags:
        lags //= 2
    if lengths.max() - lags - windows.horizon + 1 < 2:
        raise ValueError(
            f"a ridge regression needs {windows.horizon + 2} values before the first origin of a series, "
            f"received {lengths.max()}; evaluate fewer windows or a shorter horizon"
        )
    return lags


class _TrainingWindows(NamedTuple):
    """Normalised `lags [n, L]` and `targets [n, h]`, and which targets were `observed [n, h]`.

    `held_out [n]` are the last of each series; the targets of `fitted [n]` end before theirs begin.
    """

    lags: Array
    targets: Array
    observed: npt.NDArray[np.bool_]
    fitted: npt.NDArray[np.bool_]
    held_out: npt.NDArray[np.bool_]


def _training_windows(series_set: SeriesSet, windows: Batch, lags: int) -> _TrainingWindows:
    horizon, ends = windows.horizon, first_origins(windows)
    counts = {place: end - lags - horizon + 1 for place, end in ends.items() if end >= lags + horizon}
    stride = -(-sum(counts.values()) // _MOST_WINDOWS)
    pieces = []
    for place, count in counts.items():
        history = series_set[place].y[: ends[place]].astype(np.float64)
        starts = np.arange(0, count, stride)
        values = np.lib.stride_tricks.sliding_window_view(_interpolate(history), lags + horizon)[starts]
        observed = ~np.isnan(np.lib.stride_tricks.sliding_window_view(history, lags + horizon)[starts])
        centre, scale = _centre_and_scale(values[:, :lags], observed[:, :lags])
        values = ((values - centre) / scale).clip(-_CLIP, _CLIP)
        split = starts[len(starts) * 4 // 5]
        usable = observed[:, :lags].any(axis=1) & (observed[:, lags:].mean(axis=1) >= 0.5)
        piece = (
            values[:, :lags],
            values[:, lags:],
            observed[:, lags:],
            starts + horizon <= split,
            starts >= split,
        )
        pieces.append([part[usable] for part in piece])
    known = _TrainingWindows(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))
    if not len(known.lags):
        raise ValueError("a ridge regression needs windows with half of their values observed, and there are none")
    return known


class _Linear(NamedTuple):
    """`[n, L] -> [n, h]`."""

    weight: Array
    input_mean: Array
    output_mean: Array

    def __call__(self, inputs: Array) -> Array:
        return (inputs - self.input_mean) @ self.weight + self.output_mean


def _fit(inputs: Array, outputs: Array, penalties: Sequence[float]) -> list[_Linear]:
    """Ridge regressions in closed form, one a penalty, all from one eigendecomposition."""
    input_mean, output_mean = inputs.mean(axis=0), outputs.mean(axis=0)
    x, y = inputs - input_mean, outputs - output_mean
    eigenvalues, basis = np.linalg.eigh(x.T @ x)
    projected = basis.T @ (x.T @ y)
    shrunk = [projected / (np.maximum(eigenvalues, 0) + penalty)[:, None] for penalty in penalties]
    return [_Linear(basis @ weight, input_mean, output_mean) for weight in shrunk]


def _histories(series_set: SeriesSet, windows: Batch) -> list[Array]:
    """What lies before the origin of each window."""
    places = zip(windows.series.tolist(), windows.origin.tolist(), strict=True)
    return [series_set[place].y[:origin].astype(np.float64) for place, origin in places]


def _repeat_season(history: Array, season: int, horizon: int) -> Array:
    """`[h]`: the latest observed value of each phase."""
    seasons = -(-len(history) // season)
    by_season = _last_values(history, seasons * season).reshape(seasons, season)
    observed = ~np.isnan(by_season)
    latest = seasons - 1 - observed[::-1].argmax(axis=0)
    known = history[~np.isnan(history)]
    last = known[-1] if len(known) else 0.0
    return np.resize(np.where(observed.any(axis=0), by_season[latest, np.arange(season)], last), horizon)


def _last_values(history: Array, count: int) -> Array:
    """`[count]`, NaN before the start."""
    return np.concatenate([np.full(max(count - len(history), 0), np.nan), history[-count:]])


def _observed_quantiles(residuals: Array, levels: Sequence[float]) -> Array:
    observed = residuals[~np.isnan(residuals)]
    return np.quantile(observed, levels) if len(observed) else np.zeros(len(levels))


def _interpolate(values: Array) -> Array:
    """`values [T]` without NaN: straight lines between neighbours, level before and after; 0 if all are."""
    known = np.flatnonzero(~np.isnan(values))
    return np.interp(np.arange(len(values)), known, values[known]) if len(known) else np.zeros(len(values))


def _centre_and_scale(values: Array, observed: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """`[n, 1]` each."""
    single = torch.from_numpy(values.astype(np.float32))
    centre, scale = scale_statistics(single, torch.from_numpy(observed.copy()))
    return centre.double().numpy()[:, None], scale.double().numpy()[:, None]
