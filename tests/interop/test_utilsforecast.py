"""Our tables are utilsforecast's, and its metrics agree with ours on real series."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from exlstm.data.samples import sample
from exlstm.data.series import evaluation_windows, read_series
from exlstm.interop.utilsforecast import to_utilsforecast
from exlstm.tasks.series_metrics import coverage, crps, mae, mase, mase_scales, smape
from tests.models.forecaster_cases import fitted

HORIZON, SEASON = 24, 48


@pytest.fixture(scope="module")
def demand():
    """Two series: three weeks of demand, and the same weeks turned round."""
    week = sample("electricity").tail(21 * 48).reset_index(drop=True)
    return pd.concat([week, week.assign(unique_id="reversed", y=week.y[::-1].to_numpy())], ignore_index=True)


@pytest.fixture(scope="module")
def model(demand):
    return fitted(demand.groupby("unique_id").head(18 * 48), HORIZON)


@pytest.fixture(scope="module", params=[1, 3])
def table(request, model, demand):
    return model.cross_validation(demand, HORIZON, request.param, fit=False)


def test_quantiles_become_a_forecast_and_intervals(model, demand):
    predicted = model.predict(demand, 4, (0.1, 0.25, 0.5, 0.75, 0.9))
    frame = to_utilsforecast(predicted, "ours")
    assert list(frame) == ["unique_id", "ds", "ours", "ours-lo-80", "ours-lo-50", "ours-hi-50", "ours-hi-80"]
    pd.testing.assert_series_equal(frame["ours-lo-50"], predicted["q0.25"], check_names=False)
    pd.testing.assert_series_equal(frame["ours-hi-80"], predicted["q0.9"], check_names=False)
    pd.testing.assert_series_equal(frame["ours"], predicted["q0.5"], check_names=False)


def test_cross_validation_keeps_cutoff_and_target(table):
    assert list(to_utilsforecast(table))[:5] == ["unique_id", "ds", "cutoff", "y", "exlstm"]
    assert len(to_utilsforecast(table)) == len(table)


@pytest.mark.parametrize(
    ("quantiles", "message"),
    [
        ((0.1, 0.5), "quantile 0.1 has no 0.9 beside it"),
        ((0.2, 0.8), "expected the quantile 0.5"),
        ((), "such as q0.5"),
    ],
)
def test_what_makes_no_intervals_is_named(model, demand, quantiles, message):
    table = model.predict(demand, 2, quantiles or (0.5,)).rename(columns={} if quantiles else {"q0.5": "median"})
    with pytest.raises(ValueError, match=message):
        to_utilsforecast(table)


def test_its_metrics_agree_with_ours(table, demand):
    evaluation, losses = pytest.importorskip("utilsforecast.evaluation"), pytest.importorskip("utilsforecast.losses")
    levels = [20, 40, 60, 80]
    metrics = [losses.mae, losses.smape, losses.mqloss, losses.coverage]
    # Means over series and windows of means over steps: all have equally many.
    theirs = evaluation.evaluate(to_utilsforecast(table), metrics, level=levels).groupby("metric").exlstm.mean()
    coverage_80 = evaluation.evaluate(to_utilsforecast(table), [losses.coverage], level=[80])
    deciles = [level for level in np.arange(1, 10) / 10 if level != 0.5]
    y, point = (table[name].to_numpy().reshape(-1, HORIZON) for name in ("y", "q0.5"))
    quantiles = table[[f"q{level:g}" for level in deciles]].to_numpy().reshape(-1, HORIZON, len(deciles))
    assert theirs["mae"] == pytest.approx(mae(y, point), rel=1e-5)
    assert 200 * theirs["smape"] == pytest.approx(smape(y, point), rel=1e-5)
    assert 2 * theirs["mqloss"] == pytest.approx(crps(y, quantiles, deciles), rel=1e-5)
    inside = coverage(y, quantiles[..., 0], quantiles[..., -1])
    assert coverage_80.iloc[:, -1].mean() == pytest.approx(inside, abs=1e-9)
    assert 0 < inside <= 1


def test_its_scaled_error_agrees_with_ours(model, demand):
    """With one window, where both scale by all that lies before it."""
    evaluation, losses = pytest.importorskip("utilsforecast.evaluation"), pytest.importorskip("utilsforecast.losses")
    table = model.cross_validation(demand, HORIZON, fit=False)
    train = demand.groupby("unique_id").head(21 * 48 - HORIZON)

    mean_scaled = partial(losses.mase, seasonality=SEASON)
    theirs = evaluation.evaluate(to_utilsforecast(table), [mean_scaled], train_df=train).exlstm.mean()
    data = read_series(demand)
    scales = mase_scales(data, evaluation_windows(data, 1, HORIZON, 1, HORIZON), SEASON)
    y, point = (table[name].to_numpy().reshape(-1, HORIZON) for name in ("y", "q0.5"))
    assert theirs == pytest.approx(mase(y, point, scales), rel=1e-5)
