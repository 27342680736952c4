import re

import numpy as np
import pandas as pd
import pytest

from exlstm.data.series import SeriesSet, evaluation_windows, read_series
from exlstm.tasks.forecast_evaluation import QUANTILES, Evaluation, evaluate
from exlstm.tasks.forecast_pictures import calibration, coverage, levels_of
from exlstm.tasks.forecast_report import chosen_windows, format_score, headline
from exlstm.tasks.series_metrics import DECILES

HORIZON, WINDOWS = 7, 4


class Biased:
    """Forecasts the truth plus a known error that differs from window to window, with bands of a known width."""

    def __init__(self, width: float = 1.0) -> None:
        self.width = width

    def cross_validation(self, data: SeriesSet, h, n_windows, step_size, *, quantiles, fit) -> pd.DataFrame:
        assert not fit
        batch = evaluation_windows(data, 1, h, n_windows, step_size)
        tables = []
        for place, origin in zip(batch.series.tolist(), batch.origin.tolist(), strict=True):
            series = data[place]
            table = pd.DataFrame({"unique_id": series.unique_id, "ds": series.ds[origin : origin + h]})
            table["cutoff"], table["y"] = series.ds[origin - 1], series.y[origin : origin + h]
            truth = np.nan_to_num(table["y"].to_numpy())
            for level in quantiles:
                table[f"q{level:g}"] = truth + bias(place, origin) + self.width * (level - 0.5)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)


def bias(place: int, origin: int) -> float:
    return 0.25 * (1 + place) * (origin % 5)


@pytest.fixture(scope="module")
def data() -> SeriesSet:
    random = np.random.default_rng(20260102)
    times = pd.date_range("2024-01-01", periods=120, freq="D")
    tables = [
        pd.DataFrame({"unique_id": name, "ds": times, "y": 10 + random.normal(size=120)})
        for name in ("north", "south", "east", "west", "centre")
    ]
    frame = pd.concat(tables)
    frame.loc[frame.index[-3], "y"] = np.nan
    return read_series(frame)


@pytest.fixture(scope="module")
def evaluation(data) -> Evaluation:
    return evaluate(Biased(), data, HORIZON, WINDOWS)  # type: ignore[arg-type]


def test_errors_of_the_model_stay_with_their_windows(data, evaluation):
    batch = evaluation_windows(data, 1, HORIZON, WINDOWS, HORIZON)
    places = zip(batch.series.tolist(), batch.origin.tolist(), strict=True)
    expected = np.array([bias(place, origin) for place, origin in places])
    # The forecasts are float64 sums around float32 targets of about 10.
    np.testing.assert_allclose(evaluation.window_errors() * evaluation.scales, expected, atol=1e-6)
    steps = evaluation.errors_by_step()["model"]
    np.testing.assert_allclose(np.nanmean(steps), np.mean(expected / evaluation.scales), rtol=0.05)


def test_both_baselines_are_scored_and_kept_beside_the_forecasts(evaluation):
    assert list(evaluation.baselines) == ["seasonal_naive", "ridge"]
    for name, scores in evaluation.baselines.items():
        observed = evaluation.table.dropna(subset="y")
        assert scores["MAE"] == pytest.approx((observed["y"] - observed[name]).abs().mean())


def test_a_series_too_short_for_the_ridge_regression_goes_without_it():
    times = pd.date_range("2024-01-01", periods=15, freq="D")
    short = read_series(pd.DataFrame({"ds": times, "y": np.arange(15.0)}))
    evaluation = evaluate(Biased(), short, 7, 1)  # type: ignore[arg-type]
    assert list(evaluation.baselines) == ["seasonal_naive"]
    assert evaluation.notes[0].startswith("no ridge regression: ")


def test_coverage_counts_observed_values_inside_each_central_interval():
    table = pd.DataFrame({"y": [0.0, 1.0, 2.0, 3.0, np.nan]})
    for level in DECILES:
        table[f"q{level:g}"] = 6 * (level - 0.5)
    assert coverage(table) == {0.2: 0.25, 0.4: 0.5, 0.6: 0.5, 0.8: 0.75}
    assert levels_of(table) == list(DECILES)


def test_calibration_says_what_it_shows(evaluation):
    assert "in the 80% interval" in calibration(evaluation.table, "A caption.").svg


def test_best_median_and_worst_window_are_shown_and_one_of_further_series(evaluation):
    chosen = chosen_windows(evaluation)
    errors = evaluation.window_errors()
    by_rank = {rank: number for number, rank in chosen}
    assert errors[by_rank["Best"]] == errors.min()
    assert errors[by_rank["Worst"]] == errors.max()
    series = evaluation.table["unique_id"].to_numpy()[::HORIZON]
    assert {series[number] for number, _ in chosen} == set(series)
    assert len({number for number, _ in chosen}) == len(chosen)


@pytest.mark.parametrize("windows", [1, 2])
def test_few_windows_are_all_shown(data, windows):
    few = evaluate(Biased(), data, HORIZON, windows)  # type: ignore[arg-type]
    few = Evaluation(
        few.table[few.table["unique_id"] == "north"], few.scores, {}, few.scales[:windows], few.season, HORIZON, []
    )
    assert len(chosen_windows(few)) == windows


def test_headline_compares_with_the_baselines():
    scores = {"MASE": 0.5, "MAE": 1.0, "coverage80": 0.783}
    empty = pd.DataFrame()

    def says(naive: float) -> str:
        baselines = {"seasonal_naive": {"MASE": naive}, "ridge": {"MASE": 0.5}}
        return headline(Evaluation(empty, scores, baselines, np.ones(14), 48, 48, []))

    assert says(1.0) == (
        "MASE 0.500 on 14 windows of 48 steps that the model had not seen, 50% below the seasonal naive forecast "
        "and level with the ridge regression. The 80% interval held 78.3% of the values."
    )
    assert "25% above the seasonal naive" in says(0.4)
    assert "5.0 times that of the seasonal naive" in says(0.1)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("MASE", 0.55049, "0.550"),
        ("MAE", 318.14, "318.1"),
        ("MAE", 0.001234, "0.001234"),
        ("MAE", 123456.7, "123,457"),
        ("sMAPE", 1.0789, "1.08%"),
        ("coverage80", 0.8, "80.0%"),
        ("MASE", None, "–"),
        ("MASE", float("nan"), "–"),
    ],
)
def test_scores_are_written_as_people_read_them(metric, value, text):
    assert format_score(metric, value) == text


def test_every_picture_of_a_report_has_a_text_for_screen_readers(evaluation):
    svg = calibration(evaluation.table, "A caption.").svg
    assert re.search(r'role="img" aria-label="[^"]{20,}"', svg)


def test_quantile_columns_are_named_as_the_forecaster_names_them():
    assert QUANTILES[0] == "q0.1"
    assert QUANTILES[-1] == "q0.9"
