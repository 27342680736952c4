"""Missing values, short series, exogenous and static columns, and clear errors."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from exlstm.data.series import read_series
from exlstm.models.forecaster import Forecaster
from tests.models.forecaster_cases import DAY, QUICK, fitted, hourly, quantile_values, small

LONGER = replace(QUICK, steps=200, lr=5e-3, ema=0.95)


@pytest.fixture(scope="module")
def frame():
    return hourly(names=("a",))


@pytest.fixture(scope="module")
def model(frame):
    return fitted(frame)


def with_holidays(days: int, extra: int = 0) -> pd.DataFrame:
    """A series that is 60 higher on random days, which a column tells ahead."""
    frame = hourly(days + extra, noise=0.02)
    holiday = np.repeat(np.random.default_rng(3).random(days + extra) < 0.5, DAY)
    y = (frame.y + 60.0 * holiday).where(np.arange(len(frame)) < days * DAY)
    return frame.assign(y=y, holiday=holiday.astype(float))


def test_a_missing_value_differs_from_any_value_that_may_stand_there(frame, model):
    missing = frame.assign(y=frame.y.where(frame.index != len(frame) - 5))
    dropped = frame.drop(index=len(frame) - 5)
    filled = quantile_values(model.predict(frame, 12))
    unknown = quantile_values(model.predict(missing, 12))
    assert np.isfinite(unknown).all()
    assert not np.allclose(unknown, filled, rtol=1e-4)
    np.testing.assert_array_equal(quantile_values(model.predict(dropped, 12)), unknown)


def test_training_takes_series_full_of_gaps(frame):
    gaps = np.random.default_rng(5).random(len(frame)) < 0.4
    model = fitted(frame.assign(y=frame.y.mask(gaps)))
    assert np.isfinite([row["loss"] for row in model.result.history if "loss" in row]).all()
    assert np.isfinite(quantile_values(model.predict(h=30))).all()


def test_padding_before_the_start_of_a_series_is_harmless(model, frame):
    """The same few steps, alone and behind a stretch of missing ones."""
    short = frame.tail(20)
    behind = frame.assign(y=frame.y.where(frame.index >= len(frame) - 20))
    first = frame[frame.index == len(frame) - 21].assign(y=np.nan)
    padded = quantile_values(model.predict(short, 12))
    assert np.isfinite(padded).all()
    np.testing.assert_allclose(quantile_values(model.predict(pd.concat([first, short]), 12)), padded, rtol=1e-4)
    assert np.isfinite(quantile_values(model.predict(behind, 12))).all()


def test_short_and_long_series_train_together():
    frame = hourly(names=("long", "short"))
    frame = frame[(frame.unique_id == "long") | (frame.ds >= frame.ds.max() - pd.Timedelta(hours=20))]
    table = fitted(frame).predict()
    assert set(table.unique_id) == {"long", "short"}
    assert np.isfinite(quantile_values(table)).all()


@pytest.mark.parametrize("kind", ["constant", "zero", "spiked", "huge", "tiny"])
def test_odd_series_train_and_are_forecast_within_reason(frame, kind):
    y = {
        "constant": np.full(len(frame), 5.0),
        "zero": np.zeros(len(frame)),
        "spiked": np.where(np.arange(len(frame)) == len(frame) - 20, 1e9, frame.y),
        "huge": frame.y * 1e20,
        "tiny": frame.y * 1e-20,
    }[kind]
    model = fitted(frame.assign(y=y))
    forecast = quantile_values(model.predict())
    assert np.isfinite(forecast).all()
    typical = max(np.median(np.abs(y)), 1e-30)
    assert np.abs(np.median(forecast)) <= 3 * typical or kind == "zero"


def test_what_is_known_ahead_is_used():
    """With the column the jumps are foreseen; without it no forecast can know them."""
    data = with_holidays(60)
    errors = {}
    for future in ((), ("holiday",)):
        table = small(width=48, members=1).cross_validation(data, DAY, 6, train=LONGER, future=future, console=False)
        errors[future] = np.abs(table.y - table["q0.5"]).mean()
    assert errors[("holiday",)] < 0.6 * errors[()]


def test_forecasts_change_with_the_future_columns():
    data = with_holidays(20, extra=1)
    model = fitted(data, h=DAY, future="holiday")
    usual = quantile_values(model.predict(data, DAY))
    other = data.assign(holiday=data.holiday.where(data.y.notna(), 1 - data.holiday))
    assert not np.allclose(quantile_values(model.predict(other, DAY)), usual, rtol=1e-5)


def test_past_columns_count_up_to_the_origin(frame):
    random = np.random.default_rng(1)
    data = frame.assign(wind=random.standard_normal(len(frame)))
    model = fitted(data, past=("wind",))
    usual = quantile_values(model.predict(data, 12))
    windy = data.assign(wind=data.wind.where(data.index < len(data) - 3, 9.0))
    assert not np.allclose(quantile_values(model.predict(windy, 12)), usual, rtol=1e-5)
    # One row after the last observation, past column missing: the origin and so the forecast stay.
    assert "wind" not in model.predict(data, 12)


def test_static_columns_tell_series_apart():
    """Two kinds of series with equal pasts: what they are is all there is to tell their futures apart."""
    frame = hourly(names=("a",))
    data = pd.concat(
        [
            frame.assign(unique_id=name, region=region, size=size)
            for name, region, size in [("a", "n", 1), ("b", "s", 2)]
        ]
    )
    model = fitted(data, static=("region", "size"))
    table = model.predict()
    a, b = (quantile_values(table[table.unique_id == name]) for name in "ab")
    assert not np.allclose(a, b, rtol=1e-6)
    unseen = model.predict(data.assign(region="elsewhere"), 12)
    assert np.isfinite(quantile_values(unseen)).all()


def test_integer_times_without_seasons_work():
    y = np.random.default_rng(2).standard_normal(150).cumsum()
    table = fitted(pd.DataFrame({"ds": np.arange(150), "y": y}), h=7).predict()
    assert table.ds.tolist() == list(range(150, 157))
    assert np.isfinite(quantile_values(table)).all()


def test_an_untrained_forecaster_says_what_to_do(frame):
    with pytest.raises(ValueError, match="not trained yet; call fit"):
        small().predict(frame, 12)


@pytest.mark.parametrize("h", [0, -1])
def test_horizons_below_one_are_refused(frame, model, h):
    for call in (
        lambda: small().fit(frame, h, console=False),
        lambda: model.predict(frame, h),
        lambda: model.cross_validation(frame, h, fit=False),
    ):
        with pytest.raises(ValueError, match="expected h of at least 1, received"):
            call()


def test_a_series_shorter_than_the_horizon_is_refused(frame):
    with pytest.raises(ValueError, match="training needs a series of at least 51 steps, but the longest has 40"):
        small().fit(frame.head(40), 50, console=False)


def test_columns_that_are_not_there_are_named(frame, model):
    with pytest.raises(ValueError, match="no column 'price'"):
        small().fit(frame, 12, future=("price",), console=False)
    with pytest.raises(ValueError, match="no column 'y'"):
        model.predict(frame.rename(columns={"y": "value"}).assign(more=1.0), 12)


def test_future_rows_that_are_missing_are_missed():
    data = with_holidays(20, extra=1)
    model = fitted(data, h=DAY, future="holiday")
    with pytest.raises(ValueError, match="are known for 24 of the 30 steps to forecast"):
        model.predict(data, 30)


def test_series_sets_of_another_kind_are_refused(frame, model):
    with pytest.raises(ValueError, match="expected series of frequency 'h', as in training, received 'D'"):
        model.predict(read_series(frame.assign(ds=pd.date_range("2020-01-01", periods=len(frame)))), 12)
    with pytest.raises(ValueError, match="expected series with past columns"):
        model.predict(read_series(frame.assign(x=1.0), past="x"), 12)
    with pytest.raises(ValueError, match="a SeriesSet has its own"):
        small().fit(read_series(frame), 12, frequency="h", console=False)


@pytest.mark.parametrize("level", [0.05, 0.95, float("nan")])
def test_quantiles_outside_the_trained_ones_are_refused(frame, model, level):
    with pytest.raises(ValueError, match=r"expected quantiles between 0\.1 and 0\.9"):
        model.predict(frame, 12, [0.5, level])


def test_a_series_unobserved_before_its_origin_is_refused(frame, model):
    gap = frame.assign(y=frame.y.where(frame.index < 10))
    gap.loc[len(gap) - 1, "y"] = np.nan
    with pytest.raises(ValueError, match="has no observed value among the last"):
        model.cross_validation(
            pd.concat([gap, frame.tail(1).assign(ds=frame.ds.max() + pd.Timedelta(hours=1))]), 1, fit=False
        )


def test_options_of_training_are_refused_where_there_is_none(frame, model):
    with pytest.raises(ValueError, match="train would be used by training only"):
        model.cross_validation(frame, 12, fit=False, train=QUICK)


@pytest.mark.parametrize("fields", [{"patch": 0}, {"context": 0}, {"mixing": -1.0}, {"mixing": float("nan")}])
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match="expected"):
        Forecaster(**fields)
