"""TiRex's checkpoint computes, once converted, what its published forward says."""

import numpy as np
import pandas as pd
import pytest
import torch

from exlstm.data.samples import sample
from exlstm.data.series import read_series
from exlstm.interop import tirex
from exlstm.models.tirex import TirexConfig, TirexForecaster
from exlstm.tasks.forecast_evaluation import evaluate
from tests.interop.tirex_cases import LEVELS, PUBLISHED, SMALL, forward, random_weights, write

QUANTILES = [f"q{level:g}" for level in LEVELS]


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(5)
    return random_weights(SMALL)


@pytest.fixture(scope="module")
def path(tmp_path_factory, weights):
    return write(tmp_path_factory.mktemp("tirex") / "model.ckpt", state_dict=weights)


@pytest.fixture(scope="module")
def model(path):
    return tirex.load(path)


@pytest.fixture(scope="module")
def demand():
    """The last days of the electricity sample."""
    return sample("electricity").tail(400).reset_index(drop=True)


def with_gaps(length: int) -> np.ndarray:
    random = np.random.default_rng(length)
    y = 500 + 30 * random.standard_normal(length).cumsum()
    return np.where((random.random(length) < 0.2) & (np.arange(length) < length - 2), np.nan, y)


@pytest.mark.parametrize("length", [2, 3, 31, 32, 33, 100])
@pytest.mark.parametrize("h", [1, 4, 5, 13])
def test_it_computes_the_published_forward(weights, path, length, h):
    y, exact = with_gaps(length), tirex.load(path).double()
    expected = forward(weights, SMALL, y, h)
    # Sums of some hundred terms in float64, of forecasts of this size.
    bound = 1e-11 * np.abs(expected).max()
    np.testing.assert_allclose(exact.quantiles(torch.from_numpy(y)[None], h)[0].detach(), expected, atol=bound, rtol=0)


def test_float32_agrees_with_the_published_forward(weights, model):
    y = with_gaps(100)
    expected = forward(weights, SMALL, y, 13)
    found = model.quantiles(torch.from_numpy(y)[None], 13)[0].detach()
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std(), rtol=0)


def test_the_cap_of_the_forget_gates_is_felt(weights, path):
    """Else the comparison above would not tell a model without it."""
    exact, y = tirex.load(path).double(), torch.from_numpy(with_gaps(100))[None]
    capped = exact.quantiles(y, 13)
    for block in exact.backbone.blocks:
        block.mixer.forget_cap = None
    assert float((exact.quantiles(y, 13) - capped).detach().abs().max()) > 1e-8 * float(capped.detach().abs().max())


def test_swapped_gates_are_honoured(weights, path, tmp_path):
    swapped = {name: weights[name] for name in weights}
    for name in weights:
        if ".fgate." in name:
            other = name.replace(".fgate.", ".igate.")
            swapped[name], swapped[other] = weights[other], weights[name]
    y = torch.from_numpy(with_gaps(50))[None]
    other = tirex.load(write(tmp_path / "model.ckpt", state_dict=swapped)).quantiles(y, 4)
    expected = forward(swapped, SMALL, y[0].numpy(), 4)
    np.testing.assert_allclose(other[0].detach(), expected, atol=1e-4 * expected.std(), rtol=0)
    assert not torch.allclose(other, tirex.load(path).quantiles(y, 4), rtol=1e-3)


def test_rows_of_a_batch_do_not_see_each_other(model):
    y = torch.stack([torch.from_numpy(with_gaps(40)), torch.full((40,), torch.nan), torch.full((40,), 7.0)])
    together = model.quantiles(y, 9)
    for row in range(3):
        torch.testing.assert_close(together[row], model.quantiles(y[row : row + 1], 9)[0])
    assert bool(together.isfinite().all())


def test_forecasts_follow_a_change_of_units(weights, path):
    exact, y = tirex.load(path).double(), torch.from_numpy(with_gaps(40))[None]
    torch.testing.assert_close(exact.quantiles(1e3 * y - 7, 9), 1e3 * exact.quantiles(y, 9) - 7)


@pytest.mark.slow
def test_the_published_sizes_have_the_published_number_of_weights_and_compute_the_forward(tmp_path):
    weights = random_weights(PUBLISHED)
    model = tirex.load(write(tmp_path / "model.ckpt", PUBLISHED, state_dict=weights))
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_291_200
    y = with_gaps(1500)
    expected = forward(weights, PUBLISHED, y, 70)
    found = model.quantiles(torch.from_numpy(y)[None], 70)[0].detach()
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std(), rtol=0)


def test_the_published_config_has_the_published_number_of_weights():
    with torch.device("meta"):
        model = TirexForecaster(TirexConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_291_200


def test_predict_gives_a_row_for_each_series_and_step(weights, model, demand):
    both = pd.concat([demand, demand.tail(9).assign(unique_id="short")])
    table = model.predict(both, 10, (0.1, 0.5, 0.85))
    assert list(table) == ["unique_id", "ds", "q0.1", "q0.5", "q0.85"]
    assert table.unique_id.value_counts().to_dict() == {str(demand.unique_id[0]): 10, "short": 10}
    first = table[table.unique_id == demand.unique_id[0]]
    assert first.ds.iloc[0] == demand.ds.max() + pd.Timedelta("30min")
    expected = np.sort(forward(weights, SMALL, demand.y.to_numpy(), 10))
    bound = {"atol": 1e-4 * expected.std(), "rtol": 0}
    np.testing.assert_allclose(first[["q0.1", "q0.5"]], expected[:, [0, 4]], **bound)
    np.testing.assert_allclose(first["q0.85"], (expected[:, 7] + expected[:, 8]) / 2, **bound)


def test_cross_validation_forecasts_each_window_from_what_lies_before_it(model, demand):
    table = model.cross_validation(demand, 6, n_windows=3, step_size=4)
    assert list(table) == ["unique_id", "ds", "cutoff", "y", *QUANTILES]
    assert table.cutoff.nunique() == 3
    for cutoff, window in table.groupby("cutoff"):
        alone = model.predict(demand[demand.ds <= cutoff], 6)
        np.testing.assert_allclose(window[QUANTILES], alone[QUANTILES], rtol=1e-4)
        np.testing.assert_array_equal(window.y, demand.y[demand.ds.isin(window.ds)].astype(np.float32))


def test_it_is_evaluated_as_a_forecaster_is(model, demand):
    evaluation = evaluate(model, read_series(demand), 8, 3)
    assert evaluation.scores["MAE"] > 0
    assert set(evaluation.baselines) == {"seasonal_naive", "ridge"}


def test_a_converted_model_forecasts_the_same(model, path, demand, tmp_path, capsys):
    (path.parent / "LICENSE").write_text("terms")
    assert tirex.convert(path, tmp_path / "tirex") == tmp_path / "tirex"
    assert (tmp_path / "tirex" / "LICENSE").read_text() == "terms"
    with pytest.raises(ValueError, match="is there already"):
        tirex.convert(path, tmp_path / "tirex")
    again = TirexForecaster.from_pretrained(tmp_path / "tirex")
    pd.testing.assert_frame_equal(again.predict(demand, 10), model.predict(demand, 10))
    assert tirex.load(tmp_path / "tirex").config == again.config == model.config
    assert capsys.readouterr().err.count("licence of the weights: NXAI Community License") == 2


def test_a_folder_with_the_checkpoint_serves_too(path, model):
    again = tirex.load(path.parent)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, df: m.predict(df, 0), "expected h of at least 1"),
        (lambda m, df: m.predict(df, 3, (0.05,)), "quantiles between 0.1 and 0.9"),
        (lambda m, df: m.predict(df, 3, future=["price"]), "leave out future="),
        (lambda m, df: m.predict(read_series(df), 3, frequency="D"), "frequency are for a table"),
        (
            lambda m, df: m.predict(read_series(df.assign(load=1.0), past="load"), 3),
            "reads the target alone, but the series have load",
        ),
        (lambda m, df: m.cross_validation(df, 3, fit=True), "without training"),
        (
            lambda m, df: m.predict(
                pd.concat([df, df.tail(40).assign(y=np.nan).assign(ds=lambda f: f.ds + pd.Timedelta("20h"))]), 3
            ),
            "has no observed value among the last 32",
        ),
    ],
)
def test_wrong_arguments_are_named(model, demand, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, demand)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": 0}, "expected blocks of at least 1"),
        ({"context": 33, "patch": 32}, "whole patches of 32"),
        ({"context": 2**30, "patch": 32}, "1048576 at most"),
        ({"width": 30, "heads": 4}, "equal heads"),
    ],
)
def test_impossible_configs_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TirexConfig(**fields)
