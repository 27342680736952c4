import numpy as np
import pandas as pd
import pytest

from exlstm.data.samples import sample
from exlstm.data.series import Batch, SeriesSet, evaluation_windows, read_series
from exlstm.tasks.series_baselines import Forecast, ridge, ridge_lags, seasonal_naive
from exlstm.tasks.series_metrics import DECILES, mase_scales, observed_targets, score


@pytest.fixture(scope="module")
def electricity() -> tuple[SeriesSet, Batch]:
    series_set = read_series(sample("electricity"))
    return series_set, evaluation_windows(series_set, 336, 48, 14, 48)


def scores_of(forecast: Forecast, electricity: tuple[SeriesSet, Batch], season: int) -> dict[str, float]:
    scales = mase_scales(*electricity, season)
    return score(observed_targets(electricity[1]), *forecast, DECILES, scales)


def one_series(y: np.ndarray) -> SeriesSet:
    return read_series(pd.DataFrame({"ds": range(len(y)), "y": y}))


def test_seasonal_naive_reaches_its_known_figures(electricity: tuple[SeriesSet, Batch]) -> None:
    scores = scores_of(seasonal_naive(*electricity, season=336), electricity, 336)
    assert round(scores["MAE"], 1) == 513.9
    assert round(scores["MASE"], 3) == 0.888
    assert round(scores["sMAPE"], 2) == 1.74
    assert 0.7 < scores["coverage80"] < 0.9
    daily = scores_of(seasonal_naive(*electricity, season=48), electricity, 48)
    assert round(daily["MASE"], 3) == 1.037


def test_ridge_reaches_its_known_figure(electricity: tuple[SeriesSet, Batch]) -> None:
    scores = scores_of(ridge(*electricity), electricity, 336)
    assert scores["MASE"] == pytest.approx(0.62, abs=0.01)
    assert 0.7 < scores["coverage80"] < 0.9
    assert ridge_lags(*electricity) == 384


def test_neither_sees_a_target_it_forecasts(electricity: tuple[SeriesSet, Batch]) -> None:
    series_set, windows = electricity
    frame = sample("electricity")
    frame.loc[len(frame) - 48 :, "y"] = 1e6  # the targets of the last window, which no earlier window knows
    changed = read_series(frame)
    for baseline in (lambda one: seasonal_naive(one, windows, season=336), lambda one: ridge(one, windows)):
        for before, after in zip(baseline(series_set), baseline(changed), strict=True):
            assert np.array_equal(before, after)


def test_quantiles_rise_with_their_level(electricity: tuple[SeriesSet, Batch]) -> None:
    for forecast in (seasonal_naive(*electricity, season=336), ridge(*electricity)):
        assert forecast.quantiles.shape == (14, 48, 9)
        assert (np.diff(forecast.quantiles, axis=-1) >= 0).all()


def test_seasonal_naive_goes_back_to_a_season_that_is_known() -> None:
    series_set = one_series(np.array([1, 2, 3, 4, 5, 6, 7, np.nan, 9, 0, 0, 0, 0, 0]))
    windows = evaluation_windows(series_set, 3, 5, 1, 1)
    points = {season: seasonal_naive(series_set, windows, season=season).point for season in (1, 3, 12, 20)}
    assert points[1].tolist() == [[9, 9, 9, 9, 9]]
    assert points[3].tolist() == [[7, 5, 9, 7, 5]]
    assert points[12].tolist() == [[9, 9, 9, 1, 2]]  # nothing is known of the first three phases
    assert points[20].tolist() == [[9, 9, 9, 9, 9]]
    with pytest.raises(ValueError, match="season of at least 1"):
        seasonal_naive(series_set, windows, season=0)


def test_quantiles_of_seasonal_naive_are_those_of_differences_over_as_many_seasons_as_it_looks_ahead() -> None:
    y = np.random.default_rng(2).normal(size=60).cumsum().astype(np.float32).astype(np.float64)
    series_set = one_series(y)
    windows = evaluation_windows(series_set, 3, 6, 1, 1)
    forecast = seasonal_naive(series_set, windows, season=4)
    spread = forecast.quantiles - forecast.point[..., None]
    known = y[:54]
    assert np.allclose(spread[0, 3], np.quantile(known[4:] - known[:-4], DECILES), atol=1e-12)
    assert np.allclose(spread[0, 4], np.quantile(known[8:] - known[:-8], DECILES), atol=1e-12)


def test_ridge_finds_a_linear_rule() -> None:
    steps = np.arange(600)
    series_set = one_series(10 + np.sin(steps / 7) + 0.5 * np.sin(steps / 3))
    windows = evaluation_windows(series_set, 3, 12, 5, 12)
    error = ridge(series_set, windows).point - observed_targets(windows)
    assert np.abs(error).max() < 0.01  # of an amplitude of 1.5; the penalty keeps it from 0


def test_ridge_is_the_same_in_any_unit_and_pools_series() -> None:
    y = np.random.default_rng(3).normal(size=300).cumsum()
    frame = pd.DataFrame({"unique_id": ["a"] * 300 + ["b"] * 300, "ds": [*range(300)] * 2, "y": np.r_[y, 1024 * y]})
    series_set = read_series(frame)
    forecast = ridge(series_set, evaluation_windows(series_set, 3, 8, 2, 8))
    # float32 statistics of the lags agree to about 1e-6 of the size of the values
    assert np.allclose(forecast.quantiles[2:], 1024 * forecast.quantiles[:2], rtol=1e-4)
    assert ridge_lags(series_set, evaluation_windows(series_set, 3, 8, 2, 8)) == 96


@pytest.mark.parametrize("length", [12, 30, 70, 200])
def test_ridge_uses_fewer_lags_on_less_data(length: int) -> None:
    series_set = one_series(np.random.default_rng(4).normal(size=length))
    windows = evaluation_windows(series_set, 3, 5, 1, 1)
    lags = ridge_lags(series_set, windows)
    assert length - 5 - lags - 5 + 1 >= 2 * lags or lags == 1
    assert np.isfinite(ridge(series_set, windows).quantiles).all()


def test_ridge_refuses_what_is_too_short_and_what_is_mostly_missing() -> None:
    series_set = one_series(np.arange(11.0))
    with pytest.raises(ValueError, match="needs 7 values before the first origin of a series, received 6"):
        ridge(series_set, evaluation_windows(series_set, 3, 5, 1, 1))
    with pytest.raises(ValueError, match="at least 1 lag"):
        ridge_lags(series_set, evaluation_windows(series_set, 3, 5, 1, 1), 0)
    gaps = np.full(40, np.nan)
    gaps[::5] = 1.0
    series_set = one_series(np.r_[gaps, 1.0])
    with pytest.raises(ValueError, match="half of their values observed"):
        ridge(series_set, evaluation_windows(series_set, 3, 5, 1, 1))


def test_gaps_constant_spiked_and_short_series_give_finite_forecasts() -> None:
    random = np.random.default_rng(5)
    wave = np.sin(np.arange(200) / 5) + random.normal(size=200) * 0.1
    series = {
        "constant": np.full(200, 7.0),
        "gaps": np.where(random.random(200) < 0.3, np.nan, wave),
        "short": wave[:9],
        "spike": np.where(np.arange(200) == 100, 1e30, wave),
        "unseen": np.r_[np.full(195, np.nan), wave[:5]],
        "zero": np.zeros(200),
    }
    frames = [pd.DataFrame({"unique_id": name, "ds": range(len(y)), "y": y}) for name, y in series.items()]
    series_set = read_series(pd.concat(frames))
    windows = evaluation_windows(series_set, 20, 5, 2, 5)
    for forecast in (seasonal_naive(series_set, windows, season=24), ridge(series_set, windows)):
        assert np.isfinite(forecast.point).all()
        assert np.isfinite(forecast.quantiles).all()
    without_spike = read_series(pd.concat([frame for frame in frames if frame["unique_id"].iloc[0] != "spike"]))
    calm = ridge(without_spike, evaluation_windows(without_spike, 20, 5, 2, 5))
    assert np.allclose(ridge(series_set, windows).point[2:4], calm.point[2:4], atol=0.5)  # of an amplitude of 1
