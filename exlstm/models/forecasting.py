"""How a forecaster is trained, and how its forecasts become tables."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn

from exlstm.data.series import Batch, Frequency, SeriesSet, evaluation_windows, forecast_windows, read_series
from exlstm.data.series.frequency import time_grid
from exlstm.models.forecast_network import LEVELS, Forecast, ForecastNetwork
from exlstm.models.mixing import MixedWindows
from exlstm.models.series_kind import describe, fit_scaling
from exlstm.train import TrainConfig, derive_seed
from exlstm.train import train as run_training

if TYPE_CHECKING:
    from exlstm.models.forecaster import Forecaster

Source = str | Path | pd.DataFrame | SeriesSet

RECIPE = TrainConfig(steps=300, lr=1e-3, weight_decay=0.1, ema=0.99, final_lr=0.05, eval_every=50)
"""How a forecaster is trained unless told otherwise."""
BATCH = 64
"""Windows in a training batch."""
VALIDATION = 0.1
"""The share of the series' ends, at most, that training leaves out to choose the best weights by."""
WINDOWS_AT_ONCE = 256


def read(
    source: Source,
    *,
    frequency: Frequency | None = None,
    future: Sequence[str] = (),
    past: Sequence[str] = (),
    static: Sequence[str] = (),
) -> SeriesSet:
    """`read_series`, for what may have been read already."""
    if not isinstance(source, SeriesSet):
        return read_series(source, frequency=frequency, future=future, past=past, static=static)
    if frequency is not None or future or past or static:
        raise ValueError("frequency, future, past and static are for a table or a file; a SeriesSet has its own")
    return source


def fit(
    forecaster: "Forecaster",
    data: SeriesSet,
    h: int,
    *,
    train: TrainConfig,
    out: Path | None,
    resume: bool,
    resume_hint: str,
    console: Console | bool,
) -> None:
    """See `Forecaster.fit`."""
    require_at_least_one(h=h)
    held_out = _validation_windows(data, h) * h
    kind = describe(data.without_last(held_out), h, patch=forecaster.config.patch, context=forecaster.config.context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(train.seed, "network"))
        network = ForecastNetwork(forecaster.config, kind)
    fit_scaling(network, data.without_last(held_out))
    forecaster.config = replace(forecaster.config, series=kind)
    forecaster.network = network.to(forecaster.device)

    windows = MixedWindows(
        data.without_last(held_out),
        kind,
        BATCH,
        derive_seed(train.seed, "windows"),
        mixing=forecaster.config.mixing,
    )
    validation = None
    if held_out:
        validation = evaluation_windows(data, kind.history, h, held_out // h, h, cycles=kind.cycles)
    forecaster.trained_on = data
    forecaster.result = run_training(
        forecaster,
        pinball_loss,
        windows,
        train,
        validate=None if validation is None else _validate_on(validation),
        out=out,
        resume=resume,
        resume_hint=resume_hint,
        identity={"model": asdict(forecaster.config), "data": _digest(data)},
        console=console if isinstance(console, Console) else None,
        quiet=console is False,
    )


def pinball_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
    """Mean over observed targets and levels of twice the pinball loss, in units of each window's residuals.

    The median's share is the absolute error; over all levels it approaches the CRPS.
    """
    batch = batch.to(next(model.parameters()).device)
    forecast: Forecast = model(batch)
    return _pinball(forecast, batch), {}


def _pinball(forecast: Forecast, batch: Batch) -> Tensor:
    target, observed = batch.y[:, -batch.horizon :], batch.mask[:, -batch.horizon :]
    levels = forecast.quantiles.new_tensor(LEVELS)
    error = (target[:, None, :, None] - forecast.quantiles) / forecast.scale[:, None, None, None]
    pinball = 2 * torch.maximum(levels * error, (levels - 1) * error).mean((1, 3))  # each member by itself
    return pinball.masked_fill(~observed, 0.0).sum() / observed.sum().clamp(min=1)


def _validate_on(windows: Batch) -> Callable[[nn.Module], dict[str, float]]:
    def validate(model: nn.Module) -> dict[str, float]:
        return {"loss": float(_pinball(_forecast(model, windows), windows))}

    return validate


def _validation_windows(data: SeriesSet, h: int) -> int:
    """As many windows as fit into the share `VALIDATION` of the longest series; perhaps none."""
    return int(VALIDATION * data.longest) // h


def _digest(data: SeriesSet) -> str:
    """What tells data with other values apart."""
    found = hashlib.sha256()
    for series in data:
        found.update(str(series.unique_id).encode())
        for values in (series.y, series.future, series.past):
            found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def predict(forecaster: "Forecaster", source: Source | None, h: int | None, quantiles: Sequence[float]) -> pd.DataFrame:
    """See `Forecaster.predict`."""
    kind = forecaster.series
    h = kind.horizon if h is None else h
    require_at_least_one(h=h)
    require_levels(quantiles)
    data = _read_again(forecaster, source)
    batch = forecast_windows(data, kind.history, h, cycles=kind.cycles)
    return table_of(forecaster, data, batch, quantiles)


def cross_validation(
    forecaster: "Forecaster",
    source: Source,
    h: int | None,
    n_windows: int,
    step_size: int | None,
    *,
    quantiles: Sequence[float],
    train_first: bool,
    fit_options: Mapping[str, Any],
) -> pd.DataFrame:
    """See `Forecaster.cross_validation`."""
    if h is None:
        h = forecaster.series.horizon
    step_size = h if step_size is None else step_size
    require_at_least_one(h=h, n_windows=n_windows, step_size=step_size)
    require_levels(quantiles)
    if train_first:
        reading = {name: value for name, value in fit_options.items() if name in _READING}
        training = {name: value for name, value in fit_options.items() if name not in _READING}
        data = read(source, **reading)
        forecaster.fit(data.without_last((n_windows - 1) * step_size + h), h, **training)
    elif fit_options:
        raise ValueError(f"{', '.join(fit_options)} would be used by training only, but fit is False")
    data = _read_again(forecaster, data if train_first else source)
    kind = forecaster.series
    batch = evaluation_windows(data, kind.history, h, n_windows, step_size, cycles=kind.cycles)
    return table_of(forecaster, data, batch, quantiles, targets=True)


_READING = ("frequency", "future", "past", "static")


def require_at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"expected {name} of at least 1, received {number}")


def require_levels(quantiles: Sequence[float]) -> None:
    if not quantiles:
        raise ValueError("expected at least one quantile, received none")
    for level in quantiles:
        if not LEVELS[0] <= level <= LEVELS[-1]:
            raise ValueError(
                f"expected quantiles between {LEVELS[0]} and {LEVELS[-1]}, received {level}; the model is trained "
                "for these and does not guess the tails"
            )


def _read_again(forecaster: "Forecaster", source: Source | None) -> SeriesSet:
    """Series to forecast, of the kind that the forecaster was fitted to."""
    kind = forecaster.series
    if source is None:
        if forecaster.trained_on is None:
            raise ValueError("a loaded forecaster holds no series; give those to forecast as df")
        return forecaster.trained_on
    names = kind.columns
    if isinstance(source, SeriesSet):
        data = source
        for name in ("future", "past", "static"):
            if (found := getattr(data.columns, name)) != (expected := getattr(names, name)):
                raise ValueError(f"expected series with {name} columns {expected}, as in training, received {found}")
        if data.frequency != kind.frequency:
            raise ValueError(
                f"expected series of frequency {kind.frequency!r}, as in training, received {data.frequency!r}"
            )
    else:
        data = read_series(
            source,
            frequency=kind.frequency,
            id_column=names.id,
            time_column=names.time,
            target=names.target,
            future=names.future,
            past=names.past,
            static=names.static,
        )
    return data.with_categories(dict(kind.categories))


def _forecast(model: nn.Module, windows: Batch) -> Forecast:
    """The forecast of any number of windows, the mean of all members, on the CPU."""
    device = next(model.parameters()).device
    pieces = [
        model(Batch(*(tensor[start : start + WINDOWS_AT_ONCE] for tensor in windows)).to(device))
        for start in range(0, len(windows.y), WINDOWS_AT_ONCE)
    ]
    quantiles, scale = (torch.cat(parts).cpu() for parts in zip(*pieces, strict=True))
    return Forecast(quantiles.mean(1, keepdim=True), scale)


def table_of(
    model: nn.Module, data: SeriesSet, batch: Batch, quantiles: Sequence[float], *, targets: bool = False
) -> pd.DataFrame:
    """The forecasts of windows by a model that gives a `Forecast`, as rows; with `targets` also their cutoffs and
    true values."""
    known = batch.mask[:, : batch.context].any(1)
    if not known.all():
        place = int((~known).int().argmax())
        raise ValueError(
            f"series {data[int(batch.series[place])].unique_id!r} has no observed value among the last "
            f"{batch.context} before step {int(batch.origin[place])}, which a forecast depends on; leave it out"
        )
    model.eval()
    with torch.no_grad():
        found = _interpolate(_forecast(model, batch).quantiles[:, 0].numpy(), quantiles)
    names, h, windows = data.columns, batch.horizon, []
    for number, origin in zip(batch.series.tolist(), batch.origin.tolist(), strict=True):
        series = data[number]
        times = time_grid(series.ds[origin - 1 : origin], h + 1, series.frequency)
        window = pd.DataFrame({names.id: [series.unique_id] * h, names.time: times[1:]})
        if targets:
            window["cutoff"] = times[:1].repeat(h)
            window[names.target] = series.y[origin : origin + h]
        windows.append(window)
    table = pd.concat(windows, ignore_index=True)
    values = found.reshape(-1, len(quantiles))
    return table.assign(**{f"q{level:g}": values[:, place] for place, level in enumerate(quantiles)})


def _interpolate(found: npt.NDArray[np.float32], quantiles: Sequence[float]) -> npt.NDArray[np.float32]:
    """Quantiles `[N, h, 9]` at `LEVELS` to those asked for, linear in between."""
    place = np.interp(quantiles, LEVELS, np.arange(len(LEVELS)))
    place = np.where(np.isclose(place, place.round()), place.round(), place)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, len(LEVELS) - 1)
    share = (place - below).astype(np.float32)
    return found[..., below] * (1 - share) + found[..., above] * share
