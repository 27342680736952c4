"""What the forecaster promises to those who use it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from exlstm.data.series import evaluation_windows, read_series
from exlstm.models.forecaster import Forecaster
from tests.models.forecaster_cases import DAY, QUICK, fitted, hourly, quantile_values, small


@pytest.fixture(scope="module")
def frame():
    return hourly(names=("a", "b"))


@pytest.fixture(scope="module")
def model(frame):
    return fitted(frame)


@pytest.mark.parametrize("h", [1, 12, 13, 100])
def test_any_horizon_can_be_asked_for(model, frame, h):
    table = model.predict(frame, h)
    assert list(table) == ["unique_id", "ds", *(f"q0.{n}" for n in range(1, 10))]
    for name, rows in table.groupby("unique_id"):
        end = frame.ds[frame.unique_id == name].max()
        assert rows.ds.tolist() == pd.date_range(end, periods=h + 1, freq="h")[1:].tolist()
    assert np.isfinite(quantile_values(table)).all()


def test_quantiles_never_cross(model, frame):
    assert (np.diff(quantile_values(model.predict(frame, 60)), axis=1) >= 0).all()


def test_quantiles_between_trained_ones_are_interpolated(model, frame):
    table = model.predict(frame, 5, [0.1, 0.15, 0.2])
    middle = (table["q0.1"] + table["q0.2"]) / 2
    np.testing.assert_allclose(table["q0.15"], middle, rtol=1e-5)


def test_each_of_many_series_is_forecast_as_if_alone(model, frame):
    together = model.predict(frame, 12)
    for name in ("a", "b"):
        alone = model.predict(frame[frame.unique_id == name], 12)
        rows = quantile_values(together[together.unique_id == name])
        np.testing.assert_allclose(quantile_values(alone), rows, rtol=1e-4)


def test_units_do_not_matter(model, frame):
    """Forecasts follow a change of scale and level, as all that enters the network is relative."""
    usual = quantile_values(model.predict(frame, 12))
    moved = quantile_values(model.predict(frame.assign(y=2.0 * frame.y + 500.0), 12))
    np.testing.assert_allclose(moved, 2.0 * usual + 500.0, rtol=1e-4)


def test_series_it_was_not_trained_on_can_be_forecast(model):
    table = model.predict(hourly(names=("new",), seed=8), 12)
    assert set(table.unique_id) == {"new"}
    assert np.isfinite(quantile_values(table)).all()


def test_without_a_table_the_series_of_fit_are_forecast(model, frame):
    pd.testing.assert_frame_equal(model.predict(), model.predict(frame, 12))


def test_a_loaded_forecaster_gives_equal_forecasts(model, frame, tmp_path):
    model.save_pretrained(tmp_path)
    pd.testing.assert_frame_equal(Forecaster.from_pretrained(tmp_path).predict(frame, 30), model.predict(frame, 30))


def test_the_same_seed_gives_the_same_forecasts_and_another_seed_others(model, frame):
    torch.manual_seed(99)  # a seed of the caller's changes nothing
    pd.testing.assert_frame_equal(fitted(frame).predict(), model.predict())
    other = fitted(frame, train=replace(QUICK, seed=1)).predict()
    assert not np.allclose(quantile_values(other), quantile_values(model.predict()), rtol=1e-4)


def test_training_learns_what_a_seasonal_naive_forecast_cannot_know():
    """Noise around a fixed daily wave: the mean of days has less error than yesterday's noise repeated."""
    frame = hourly(40, noise=0.3)
    table = small().cross_validation(frame, DAY, 5, train=replace(QUICK, steps=150), console=False)
    naive = frame.set_index("ds").y.reindex(table.ds - pd.Timedelta(days=7)).to_numpy()
    error, naive_error = (np.abs(table.y - forecast).mean() for forecast in (table["q0.5"], naive))
    # Independent noise: naive errors have sqrt(2) times the deviation of the best possible ones.
    assert error < 0.85 * naive_error


def test_cross_validation_gives_each_window_its_cutoff_and_truth(model, frame):
    table = model.cross_validation(frame, 12, 3, 24, fit=False)
    y = frame.set_index(["unique_id", "ds"]).y
    for (name, cutoff), rows in table.groupby(["unique_id", "cutoff"]):
        assert rows.ds.tolist() == pd.date_range(cutoff, periods=13, freq="h")[1:].tolist()
        np.testing.assert_allclose(rows.y, y.loc[[(name, ds) for ds in rows.ds]], rtol=1e-6)
    ends = frame.ds.max() - pd.to_timedelta([60, 36, 12], unit="h")
    assert sorted(set(table.cutoff)) == sorted(ends)


@pytest.mark.parametrize("fit", [False, True])
def test_cross_validation_never_sees_what_comes_after_the_cutoff(model, frame, fit):
    """Other values after the first cutoff: its forecasts, trained or not, are the same to the bit."""
    options = {"fit": True, "train": QUICK, "console": False} if fit else {"fit": False}
    first = frame.ds.max() - pd.Timedelta(hours=36)
    changed = frame.assign(y=frame.y.where(frame.ds <= first, -3.0 * frame.y + 1e4))
    tables = []
    for data in (frame, changed):
        forecaster = small() if fit else model
        table = forecaster.cross_validation(data, 12, 3, **options)
        tables.append(table[table.cutoff == first].drop(columns="y"))
    assert len(tables[0]) == 24
    pd.testing.assert_frame_equal(*tables)


def test_a_later_window_sees_what_came_before_its_own_cutoff(model, frame):
    first = frame.ds.max() - pd.Timedelta(hours=36)
    changed = frame.assign(y=frame.y.where(frame.ds != first + pd.Timedelta(hours=12), 1e4))
    usual, other = (model.cross_validation(data, 12, 3, fit=False) for data in (frame, changed))
    later = usual.cutoff > first
    assert not np.allclose(quantile_values(usual[later]), quantile_values(other[later]), rtol=1e-3)


def test_an_interrupted_fit_resumes_to_the_same_forecasts(frame, tmp_path):
    half, whole = replace(QUICK, steps=8, save_every=4), replace(QUICK, steps=8, save_every=4)
    straight = fitted(frame, train=whole).predict()
    fitted(frame, train=half, out=tmp_path)
    for newest in sorted((tmp_path / "checkpoints").iterdir())[-1:]:
        for file in newest.iterdir():
            file.unlink()
        newest.rmdir()
    resumed = fitted(frame, train=whole, out=tmp_path, resume=True).predict()
    pd.testing.assert_frame_equal(resumed, straight)


def test_a_series_set_serves_as_well_as_a_table(model, frame):
    pd.testing.assert_frame_equal(model.predict(read_series(frame), 12), model.predict(frame, 12))


def test_the_forecast_is_the_mean_of_the_members(frame):
    model = fitted(frame)
    windows = evaluation_windows(read_series(frame), model.series.history, 12, 2, 12, cycles=model.series.cycles)
    with torch.no_grad():
        quantiles = model.eval()(windows).quantiles
    assert quantiles.shape == (4, 2, 12, 9)
    assert not torch.allclose(quantiles[:, 0], quantiles[:, 1])
    table = model.cross_validation(frame, 12, 2, fit=False)
    np.testing.assert_allclose(quantile_values(table).reshape(4, 12, 9), quantiles.mean(1).numpy(), rtol=1e-6)
