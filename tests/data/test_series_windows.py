import time
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch

from exlstm.data.samples import sample
from exlstm.data.series import (
    Batch,
    SeriesSet,
    WindowSampler,
    calendar_features,
    evaluation_windows,
    forecast_windows,
    future_index,
    read_series,
)

CONTEXT, HORIZON = 12, 4


def covariate_set() -> SeriesSet:
    """Series of 40, 9 and 25 hours, the last with gaps; holiday known 5 steps ahead, wind only so far."""
    random = np.random.default_rng(7)
    frames = []
    for unique_id, steps in (("a", 40), ("b", 9), ("c", 25)):
        frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=steps + 5, freq="h")})
        frame[["y", "holiday", "wind"]] = random.normal(size=(steps + 5, 3))
        frame.loc[steps:, ["y", "wind"]] = np.nan
        frames.append(frame.assign(unique_id=unique_id, region=unique_id.upper(), size=float(steps)))
    table = pd.concat(frames, ignore_index=True)
    table.loc[60:66, ["y"]] = np.nan
    table.loc[[3, 56], ["wind"]] = np.nan
    return read_series(table, future="holiday", past="wind", static=("region", "size"))


def assert_equal(one: Batch, other: Batch) -> None:
    for name, left, right in zip(Batch._fields, one, other, strict=True):
        assert torch.equal(left, right), name


def assert_is_what_the_series_hold(batch: Batch, series_set: SeriesSet) -> None:
    """Every number of the batch against the plainest lookup, step by step."""
    for row, (place, origin) in enumerate(zip(batch.series.tolist(), batch.origin.tolist(), strict=True)):
        series = series_set[place]
        index = series.ds.append(future_index(series, HORIZON))
        calendar = calendar_features(index, series.frequency)
        for column, step in enumerate(range(origin - CONTEXT, origin + HORIZON)):
            inside = step >= 0
            assert batch.inside[row, column] == inside
            y = series.y[step] if inside and step < len(series) else np.nan
            assert (batch.y[row, column], batch.mask[row, column]) == (np.nan_to_num(y), not np.isnan(y))
            holiday = series.future[step, 0] if inside else np.nan
            assert batch.future[row, column, 0] == np.nan_to_num(holiday)
            assert batch.future_mask[row, column, 0] == (not np.isnan(holiday))
            expected = calendar[step] if inside else np.zeros(calendar.shape[1])
            assert np.array_equal(batch.calendar[row, column], expected)
            if step < origin:
                wind = series.past[step, 0] if inside else np.nan
                assert batch.past[row, column, 0] == np.nan_to_num(wind)
                assert batch.past_mask[row, column, 0] == (not np.isnan(wind))
        assert batch.static[row].tolist() == [series.static["size"]]
        assert batch.static_codes[row].tolist() == [1 + "ABC".index(str(series.static["region"]))]


def test_a_batch_holds_what_the_series_hold_and_zeros_elsewhere() -> None:
    series_set = covariate_set()
    sampler = WindowSampler(series_set, CONTEXT, HORIZON, 32, draw="series")
    assert_is_what_the_series_hold(sampler(0), series_set)
    assert_is_what_the_series_hold(evaluation_windows(series_set, CONTEXT, HORIZON, 3, 5), series_set)
    assert_is_what_the_series_hold(forecast_windows(series_set, CONTEXT, HORIZON), series_set)


def test_shapes_and_types() -> None:
    batch = WindowSampler(covariate_set(), CONTEXT, HORIZON, 32)(0)
    both = CONTEXT + HORIZON
    shapes = {name: tuple(tensor.shape) for name, tensor in batch._asdict().items()}
    assert shapes == {
        "y": (32, both),
        "mask": (32, both),
        "inside": (32, both),
        "calendar": (32, both, 14),
        "future": (32, both, 1),
        "future_mask": (32, both, 1),
        "past": (32, CONTEXT, 1),
        "past_mask": (32, CONTEXT, 1),
        "static": (32, 1),
        "static_codes": (32, 1),
        "series": (32,),
        "origin": (32,),
    }
    assert {name for name, tensor in batch._asdict().items() if tensor.dtype == torch.float32} == {
        "y",
        "calendar",
        "future",
        "past",
        "static",
    }
    assert (batch.context, batch.horizon) == (CONTEXT, HORIZON)
    assert_equal(batch.to("cpu"), batch)


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    series_set = covariate_set()
    one, other = (WindowSampler(series_set, CONTEXT, HORIZON, 16, seed=5) for _ in range(2))
    one(0)  # a call before leaves no trace
    assert_equal(one(3), other(3))
    assert not torch.equal(one(3).y, one(4).y)
    assert not torch.equal(one(3).y, WindowSampler(series_set, CONTEXT, HORIZON, 16, seed=6)(3).y)


def training_pairs(series_set: SeriesSet, min_context: int) -> list[tuple[int, int]]:
    return [
        (place, origin)
        for place, series in enumerate(series_set)
        for origin in range(1, len(series) - HORIZON + 1)
        if (~np.isnan(series.y[max(origin - CONTEXT, 0) : origin])).sum() >= min_context
        and (~np.isnan(series.y[origin : origin + HORIZON])).any()
    ]


def test_every_training_window_is_drawn_and_no_other() -> None:
    series_set = covariate_set()
    sampler = WindowSampler(series_set, CONTEXT, HORIZON, 3000, min_context=3)
    batch = sampler(0)
    drawn = zip(batch.series.tolist(), batch.origin.tolist(), strict=True)
    expected = training_pairs(series_set, min_context=3)
    assert set(drawn) == set(expected)  # each is missed with probability exp(-3000 / 58) < 1e-22
    assert len(sampler) == len(expected)


@pytest.mark.parametrize("draw", ["windows", "series"])
def test_the_draw_is_uniform_over_windows_or_series(draw: Literal["windows", "series"]) -> None:
    series_set = covariate_set()
    batch = WindowSampler(series_set, CONTEXT, HORIZON, 6000, draw=draw)(0)
    windows = np.bincount([place for place, _ in training_pairs(series_set, min_context=1)])
    expected = windows / windows.sum() if draw == "windows" else np.full(3, 1 / 3)
    share = np.bincount(batch.series) / 6000
    assert np.abs(share - expected).max() < 5 * 0.5 / 6000**0.5  # 5 standard deviations at most


def test_nothing_after_the_origin_shows_but_the_targets_and_what_is_known_ahead() -> None:
    series_set, changed = covariate_set(), covariate_set()
    for series in changed:
        series.past[-HORIZON:] = 1e6
        series.y[-HORIZON:] = 1e6
    batch, other = (evaluation_windows(one, CONTEXT, HORIZON, 1, 1) for one in (series_set, changed))
    assert (other.y[:, CONTEXT:] == 1e6).all()
    targets = {"y": batch.y[:, CONTEXT:], "mask": batch.mask[:, CONTEXT:]}
    for name, tensor in targets.items():
        getattr(other, name)[:, CONTEXT:] = tensor
    assert_equal(other, batch)


def test_windows_reaching_before_the_start_show_nothing_of_the_series_before() -> None:
    batch = WindowSampler(covariate_set(), CONTEXT, HORIZON, 500, draw="series")(1)
    outside = ~batch.inside
    assert outside.any()
    for values in (batch.mask, batch.future_mask, batch.y, batch.calendar, batch.future):
        assert not values[outside].any()
    for values in (batch.past, batch.past_mask):
        assert not values[outside[:, :CONTEXT]].any()


def test_evaluation_rolls_to_the_end_of_every_series() -> None:
    batch = evaluation_windows(covariate_set(), CONTEXT, HORIZON, 3, 5)
    pairs = list(zip(batch.series.tolist(), batch.origin.tolist(), strict=True))
    assert pairs == [(0, 26), (0, 31), (0, 36), (1, 5), (2, 11), (2, 16), (2, 21)]


def test_the_main_job_evaluates_the_last_two_weeks() -> None:
    series_set = read_series(sample("electricity"))
    batch = evaluation_windows(series_set, 720, 48, 14, 48)
    assert torch.equal(batch.y[:, 720:].flatten(), torch.from_numpy(series_set[0].y[-672:]))
    assert batch.mask.all()


def test_forecasts_start_where_the_series_end() -> None:
    series_set = covariate_set()
    batch = forecast_windows(series_set, CONTEXT, HORIZON)
    assert batch.origin.tolist() == [40, 9, 25]
    assert not batch.mask[:, CONTEXT:].any()
    assert batch.future_mask[:, CONTEXT:].all()
    with pytest.raises(ValueError, match="'a' are known for 5 of the 6 steps to forecast"):
        forecast_windows(series_set, CONTEXT, 6)


def test_categories_of_another_set_give_their_codes_and_0_for_the_unknown() -> None:
    series_set = covariate_set().with_categories({"region": ("C", "A")})
    assert forecast_windows(series_set, CONTEXT, HORIZON).static_codes[:, 0].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 0}, "context and horizon of at least 1"),
        ({"horizon": 0}, "context and horizon of at least 1"),
        ({"batch": 0}, "batch >= 1"),
        ({"seed": -1}, "seed >= 0"),
        ({"min_context": 13}, "min_context from 1 to the context"),
        ({"draw": "rows"}, "draw='windows' or 'series'"),
        ({"horizon": 40}, "training needs a series of at least 41 steps, but the longest has 40"),
        ({"cycles": ("moon",)}, "expected cycles among"),
    ],
)
def test_wrong_arguments_of_the_sampler(arguments: dict[str, object], message: str) -> None:
    call = {"context": CONTEXT, "horizon": HORIZON, "batch": 8} | arguments
    with pytest.raises(ValueError, match=message):
        WindowSampler(covariate_set(), **call)  # type: ignore[arg-type]


def test_a_series_with_too_little_observed_gives_no_window() -> None:
    frame = pd.DataFrame({"ds": range(20), "y": [1.0, *[np.nan] * 18, 2.0]})
    with pytest.raises(ValueError, match="training needs 1 observed values before a horizon of 2 steps"):
        WindowSampler(read_series(frame), 4, 2, 1)
    assert len(WindowSampler(read_series(frame), 18, 2, 1)) == 1


def test_wrong_arguments_of_the_evaluation() -> None:
    with pytest.raises(ValueError, match="n_windows and step_size of at least 1"):
        evaluation_windows(covariate_set(), CONTEXT, HORIZON, 0, 1)
    with pytest.raises(ValueError, match="evaluation needs a series of at least 41 steps"):
        evaluation_windows(covariate_set(), CONTEXT, 40, 1, 1)


def test_gathering_a_batch_costs_milliseconds() -> None:
    sampler = WindowSampler(read_series(sample("electricity")), 672, 48, 64, cycles=("day", "week"))
    times = []
    for step in range(30):
        before = time.perf_counter()
        sampler(step)
        times.append(time.perf_counter() - before)
    assert min(times) < 0.01  # about 1 ms; the best of 30, on a machine that may be busy
