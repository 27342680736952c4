from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from exlstm.data.series import evaluation_windows, read_series
from exlstm.tasks.series_metrics import (
    DECILES,
    coverage,
    crps,
    mae,
    mae_by_horizon,
    mase,
    mase_scales,
    observed_targets,
    score,
    smape,
)

Y = np.array([[1.0, 2.0, np.nan], [4.0, np.nan, 0.0]])
FORECAST = np.array([[2.0, 2.0, 9.0], [1.0, 9.0, 0.0]])


def test_missing_targets_do_not_count() -> None:
    assert mae(Y, FORECAST) == (1 + 0 + 3 + 0) / 4
    assert smape(Y, FORECAST) == pytest.approx((200 * 1 / 3 + 0 + 200 * 3 / 5 + 0) / 4)
    assert mae_by_horizon(Y, FORECAST).tolist() == [2, 0, 0]
    assert np.isnan(mae_by_horizon(np.full((2, 1), np.nan), np.zeros((2, 1)))).all()
    assert coverage(Y, FORECAST - 1, FORECAST + 1) == 3 / 4
    changed = np.where(np.isnan(Y), 1e9, FORECAST)
    assert crps(Y, changed[..., None], [0.5]) == mae(Y, FORECAST)


def test_the_bounds_of_an_interval_belong_to_it() -> None:
    assert coverage(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0]]), np.array([[1.5, 2.0]])) == 1


def test_mase_is_the_mean_over_windows_of_their_own_scaled_error() -> None:
    assert mase(Y, FORECAST, np.array([2.0, 3.0])) == pytest.approx((0.5 / 2 + 1.5 / 3) / 2)
    assert mase(Y, FORECAST, np.array([np.nan, 3.0])) == pytest.approx(1.5 / 3)
    assert np.isnan(mase(Y, FORECAST, np.array([np.nan, np.nan])))


def test_the_scale_of_mase_sees_nothing_after_the_first_origin() -> None:
    values = np.array([1.0, 5.0, 2.0, 7.0, np.nan, 9.0, 100.0, 200.0, 300.0, 400.0])
    flat = np.full(10, 3.0)
    frame = pd.DataFrame({"unique_id": ["a"] * 10 + ["b"] * 10, "ds": [*range(10)] * 2, "y": np.r_[values, flat]})
    windows = evaluation_windows(read_series(frame), 4, 2, 2, 2)
    scales = mase_scales(read_series(frame), windows, season=2)
    assert np.array_equal(scales, [(1 + 2 + 2) / 3] * 2 + [np.nan] * 2, equal_nan=True)
    assert np.isnan(mase_scales(read_series(frame), windows, season=50)).all()
    with pytest.raises(ValueError, match="season of at least 1"):
        mase_scales(read_series(frame), windows, season=0)


def test_crps_is_the_integral_of_the_squared_distance_of_distributions() -> None:
    # Independent: CRPS(F, y) = integral of (F(x) - 1{x >= y})^2 dx, on a fine grid, for a normal F.
    normal, grid = NormalDist(2.0, 3.0), np.linspace(-40, 40, 160_001)
    distribution = np.array([normal.cdf(x) for x in grid])
    y = np.array([[-3.0, 2.0, 2.5, 9.0]])
    integrals = [np.sum((distribution - (grid >= one)) ** 2) * (grid[1] - grid[0]) for one in y[0]]
    count = 2000
    levels = (np.arange(count) + 0.5) / count  # the midpoint rule on (0, 1)
    quantiles = np.broadcast_to([normal.inv_cdf(level) for level in levels], (1, 4, count))
    # The midpoint rule misses less than the tails beyond 1/2000: 2 * 3 / 2000 / 3.3 = 1e-3, of a score of 2.
    assert crps(y, quantiles, levels.tolist()) == pytest.approx(np.mean(integrals), rel=1e-3)


def test_crps_of_nine_deciles_is_twice_the_mean_pinball_loss() -> None:
    normal = NormalDist()
    quantiles = np.array([[[normal.inv_cdf(level) for level in DECILES]]])
    y = 0.7
    losses = [
        2 * (level if y >= q else 1 - level) * abs(y - q) for level, q in zip(DECILES, quantiles[0, 0], strict=True)
    ]
    assert crps(np.array([[y]]), quantiles, DECILES) == pytest.approx(np.mean(losses))


def test_targets_of_windows_are_nan_where_nothing_was_observed() -> None:
    frame = pd.DataFrame({"ds": range(6), "y": [1.0, 2.0, 3.0, 4.0, np.nan, 6.0]})
    windows = evaluation_windows(read_series(frame), 3, 2, 2, 1)
    assert np.array_equal(observed_targets(windows), [[4, np.nan], [np.nan, 6]], equal_nan=True)


def test_the_scores_have_the_names_of_the_run_folder() -> None:
    quantiles = FORECAST[..., None] + np.array([-1.0, 0.0, 1.0])
    scores = score(Y, FORECAST, quantiles, [0.1, 0.5, 0.9], np.array([2.0, 3.0]))
    assert list(scores) == ["MASE", "MAE", "sMAPE", "CRPS", "coverage80"]
    assert scores["coverage80"] == 3 / 4
    assert all(type(value) is float for value in scores.values())
    with pytest.raises(ValueError, match=r"levels with 0\.1 and 0\.9"):
        score(Y, FORECAST, quantiles, [0.1, 0.5, 0.8], np.array([2.0, 3.0]))
    with pytest.raises(ValueError, match="no target was observed"):
        score(np.full_like(Y, np.nan), FORECAST, quantiles, [0.1, 0.5, 0.9], np.array([2.0, 3.0]))
