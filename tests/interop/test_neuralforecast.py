"""ExLSTM within neuralforecast, on real series; run where that is installed (it takes a while to import)."""

import warnings

import numpy as np
import pandas as pd
import pytest

from exlstm.data.samples import sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of Lightning, Ray and others
]
HORIZON = 12
TRAINER = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def neuralforecast():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("neuralforecast")


@pytest.fixture(scope="module")
def demand():
    """Two series with a column known ahead (the hour), one known up to now and one that is static."""
    frame = sample("electricity").tail(12 * 48).reset_index(drop=True)
    both = pd.concat([frame, frame.assign(unique_id="half", y=frame.y / 2)], ignore_index=True)
    return both.assign(hour=both.ds.dt.hour / 24, before=both.y.shift(48).bfill())


def model(**fields):
    from exlstm.interop.neuralforecast import ExLSTM

    options = {"max_steps": 3, "width": 16, "heads": 2, "patch": 8, **TRAINER}
    return ExLSTM(h=HORIZON, input_size=100, **options | fields)


def test_it_fits_predicts_and_is_loaded_again(neuralforecast, demand, tmp_path):
    nf = neuralforecast.NeuralForecast(models=[model()], freq="30min")
    nf.fit(demand[["unique_id", "ds", "y"]])
    forecast = nf.predict()
    assert len(forecast) == 2 * HORIZON
    assert np.isfinite(forecast["ExLSTM"]).all()
    nf.save(str(tmp_path / "nf"), overwrite=True)
    again = neuralforecast.NeuralForecast.load(str(tmp_path / "nf")).predict(demand[["unique_id", "ds", "y"]])
    np.testing.assert_allclose(again["ExLSTM"], forecast["ExLSTM"], rtol=1e-5)


def test_it_gives_intervals_that_utilsforecast_evaluates(neuralforecast, demand):
    from neuralforecast.losses.pytorch import MQLoss
    from utilsforecast.evaluation import evaluate
    from utilsforecast.losses import mae, mqloss

    nf = neuralforecast.NeuralForecast(models=[model(loss=MQLoss(level=[80]), alias="ours")], freq="30min")
    table = nf.cross_validation(demand[["unique_id", "ds", "y"]], n_windows=2, step_size=HORIZON)
    assert {"ours-median", "ours-lo-80", "ours-hi-80"} <= set(table)
    renamed = table.rename(columns={"ours-median": "ours"})
    scores = evaluate(renamed, [mae, mqloss], level=[80], models=["ours"])
    assert np.isfinite(scores["ours"]).all()


def test_exogenous_columns_are_read(neuralforecast, demand):
    import torch

    lists = {"futr_exog_list": ["hour"], "hist_exog_list": ["before"], "stat_exog_list": ["size"]}
    static = pd.DataFrame({"unique_id": demand.unique_id.unique(), "size": [1.0, 0.5]})
    nf = neuralforecast.NeuralForecast(models=[model(**lists)], freq="30min")
    nf.fit(demand, static_df=static)
    ahead = nf.make_future_dataframe()
    futr = ahead.assign(hour=ahead.ds.dt.hour / 24)
    before = nf.predict(futr_df=futr, static_df=static)["ExLSTM"]
    changed = nf.predict(futr_df=futr.assign(hour=0.0), static_df=static)["ExLSTM"]
    assert not np.allclose(before, changed)
    batch = {
        "insample_y": torch.randn(3, 100, 1),
        "insample_mask": torch.ones(3, 100, 1),
        "futr_exog": torch.randn(3, 112, 1),
        "hist_exog": torch.randn(3, 100, 1),
        "stat_exog": torch.randn(3, 1),
    }
    ours = nf.models[0].eval()
    expected = ours(batch)
    assert expected.shape == (3, HORIZON, 1)
    for name in batch:
        other = batch | {name: batch[name] * (0.0 if name == "insample_mask" else 2.0)}
        assert not torch.allclose(ours(other), expected), name


def test_it_learns_a_daily_wave(neuralforecast):
    times = pd.date_range("2024-01-01", periods=30 * 24, freq="h")
    wave = 100 + 10 * np.sin(2 * np.pi * np.arange(len(times)) / 24)
    frame = pd.DataFrame({"unique_id": "a", "ds": times, "y": wave})
    nf = neuralforecast.NeuralForecast(models=[model(max_steps=150, learning_rate=5e-3, dropout=0.0)], freq="h")
    nf.fit(frame.head(28 * 24))
    error = (nf.predict()["ExLSTM"].to_numpy() - wave[28 * 24 : 28 * 24 + HORIZON]).__abs__().mean()
    assert error < 2.0  # the wave's own mean size is 6.4


def test_wrong_arguments_are_named(neuralforecast):
    with pytest.raises(ValueError, match="expected patch of at least 1"):
        model(patch=0)
    with pytest.raises(ValueError, match="leave out cat_exog_list="):
        model(cat_exog_list=["kind"])
