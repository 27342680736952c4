"""A forecaster behind GluonTS's interface; the tests of GluonTS's own classes and metrics need it installed."""

import warnings

import numpy as np
import pandas as pd
import pytest

from exlstm.data.samples import sample
from exlstm.interop import gluonts
from exlstm.interop.gluonts import Predictor
from exlstm.models.tirex import TirexForecaster
from exlstm.tasks.series_metrics import crps
from tests.models.forecaster_cases import fitted

HORIZON, LEVELS = 12, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@pytest.fixture(scope="module")
def demand():
    return sample("electricity").tail(14 * 48).reset_index(drop=True)


@pytest.fixture(scope="module")
def model(demand):
    return fitted(demand, HORIZON)


@pytest.fixture(scope="module")
def zero_shot():
    return TirexForecaster(width=16, blocks=1, heads=2, hidden=8, feed_forward=8, patch=4, context=64).eval()


@pytest.fixture
def without_gluonts(monkeypatch):
    monkeypatch.setattr(gluonts, "_forecast_class", lambda: gluonts.QuantileForecast)


def entry(frame, **more):
    return {"start": pd.Period(frame.ds.iloc[0], freq="30min"), "target": frame.y.to_numpy(), **more}


@pytest.mark.parametrize("kind", ["model", "zero_shot"])
def test_forecasts_are_those_of_predict_in_order(kind, demand, without_gluonts, request):
    model = request.getfixturevalue(kind)
    short = demand.tail(200)
    found = list(
        Predictor(model, HORIZON, batch_size=2).predict([entry(short, item_id="b"), entry(demand), entry(short)])
    )
    assert [forecast.item_id for forecast in found] == ["b", None, None]
    for forecast, frame in zip(found, (short, demand, short), strict=True):
        expected = model.predict(frame, HORIZON)
        got = np.stack([forecast.quantile(level) for level in LEVELS], 1)
        np.testing.assert_allclose(got, expected[[f"q{level:g}" for level in LEVELS]], rtol=1e-4)
        assert list(forecast.index.to_timestamp()) == list(expected.ds)
        assert forecast.prediction_length == HORIZON


def test_it_reads_no_more_of_a_dataset_than_it_needs(zero_shot, demand, without_gluonts):
    seen = []

    def endless():
        while True:
            seen.append(1)
            yield entry(demand)

    next(Predictor(zero_shot, HORIZON, batch_size=3).predict(endless(), num_samples=100))
    assert len(seen) == 3


def test_our_forecast_interpolates_quantiles(demand, zero_shot, without_gluonts):
    (found,) = Predictor(zero_shot, HORIZON, quantiles=(0.9, 0.1, 0.5)).predict([entry(demand)])
    np.testing.assert_allclose(found.quantile("0.3"), (found.quantile(0.1) + found.median) / 2)
    with pytest.raises(ValueError, match=r"expected a quantile between 0\.1 and 0\.9, received 0\.95"):
        found.quantile(0.95)


@pytest.mark.parametrize(
    ("frequency", "period"), [("MS", "M"), ("ME", "M"), ("W-SUN", "W-SUN"), ("QS-OCT", "Q"), ("D", "D")]
)
def test_times_of_the_calendar_meet_those_of_training(frequency, period, without_gluonts):
    """A forecast from periods is that from the time stamps of training."""
    times = pd.date_range("2001-01-01", periods=90, freq=frequency)
    frame = pd.DataFrame({"ds": times, "y": 10 + np.sin(np.arange(90.0)) + np.arange(90) / 30})
    model = fitted(frame, 3)
    given = {"start": pd.Period(times[0], freq=period), "target": frame.y.to_numpy()}
    (found,) = Predictor(model, 3).predict([given])
    np.testing.assert_allclose(found.median, model.predict(frame, 3)["q0.5"], rtol=1e-5)
    assert found.start_date == pd.Period(model.predict(frame, 3).ds.iloc[0], freq=period)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": "2020-01-01"}, "expected a pandas.Period as start of series 'x', received str"),
        (
            {"start": pd.Period("2020-01-01", freq="h")},
            "expected series of frequency '30min', as in training, received 'h'",
        ),
        ({"target": np.zeros((2, 5))}, r"received shape \(2, 5\)"),
        ({"target": []}, r"received shape \(0,\)"),
        ({"target": [1.0, np.inf]}, "expected finite values"),
        ({"target": [np.nan] * 9}, "has no observed value"),
    ],
)
def test_entries_of_another_kind_are_named(model, demand, change, message):
    with pytest.raises(ValueError, match=message):
        list(Predictor(model, HORIZON).predict([entry(demand, item_id="x") | change]))


def test_models_that_need_more_than_the_target_are_named(demand):
    model = fitted(demand.assign(holiday=0.0), HORIZON, future="holiday")
    with pytest.raises(ValueError, match="the target alone is read, but this model needs holiday too"):
        Predictor(model, HORIZON)
    with pytest.raises(ValueError, match="prediction_length and batch_size of at least 1"):
        Predictor(model, 0)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_gluonts_evaluates_it_and_its_quantile_loss_is_ours(model, demand):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("gluonts")
        from gluonts.dataset.split import split
        from gluonts.ev.metrics import MeanSumQuantileLoss
        from gluonts.model.evaluation import evaluate_model
        from gluonts.model.forecast import QuantileForecast
    data = [entry(demand, item_id="a"), entry(demand.tail(300), item_id="b")]
    _, template = split(data, offset=-3 * HORIZON)
    tests = template.generate_instances(prediction_length=HORIZON, windows=3)
    predictor = Predictor(model, HORIZON)
    forecasts = list(predictor.predict(tests.input))
    assert all(isinstance(forecast, QuantileForecast) for forecast in forecasts)
    found = evaluate_model(predictor, test_data=tests, metrics=[MeanSumQuantileLoss(list(LEVELS))], axis=None)
    y = np.stack([label["target"] for label in tests.label])
    quantiles = np.stack([forecast.forecast_array.T for forecast in forecasts])
    # Theirs is twice the pinball loss, summed over windows and steps.
    assert float(found.iloc[0, 0]) / y.size == pytest.approx(crps(y, quantiles, LEVELS), rel=1e-5)
