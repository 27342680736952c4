"""Forecasts by a model that needs no training on the series, without a run: `exlstm predict MODEL FILE`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from exlstm.console import notes
from exlstm.tasks.options import PredictOptions, as_flags


@dataclass(frozen=True)
class Predict(PredictOptions):
    """Forecast what comes after the end of series, with a model that was not trained on them.

    FILE is a CSV or Parquet table with a row for each time: a time, a value, and where there are several series, the id
    of the series.
    """

    run: Annotated[Positional[Path], arg(metavar="MODEL")]
    """The folder of the model, as `exlstm convert` made it."""
    input: Annotated[Positional[Path | None], arg(metavar="FILE", help_behavior_hint="(required)")] = None
    """Series to forecast."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: print CSV)")] = None
    """File for the forecasts, .csv or .parquet."""
    horizon: Annotated[int | None, arg(metavar="H", help_behavior_hint="(default: one season)")] = None
    """Steps to forecast."""
    frequency: Annotated[str | None, arg(metavar="F", help_behavior_hint="(default: found in the data)")] = None
    """Time from row to row, as pandas writes it: 30min, h, D, W-MON, MS."""
    id_column: Annotated[str, arg(metavar="NAME")] = "unique_id"
    """Column that tells which series a row belongs to; it may be missing."""
    time_column: Annotated[str, arg(metavar="NAME")] = "ds"
    """Column of the times."""
    target: Annotated[str, arg(metavar="NAME")] = "y"
    """Column of the values to forecast."""


def predict(options: Predict, prog: str) -> int:
    """Give the model's forecasts for what follows the series of a file; the exit code."""
    from exlstm.data.series import read_series
    from exlstm.interop.tirex import say_licence
    from exlstm.models.tirex import TirexForecaster
    from exlstm.tasks import forecast_data
    from exlstm.tasks.device import pick_device

    if options.input is None:
        raise ValueError(f"expected the series to forecast: {prog} predict {options.run} FILE")
    if options.out is not None:
        forecast_data.require_table_name(options.out, options.input)
    if options.horizon is not None and options.horizon < 1:
        raise ValueError(f"expected --horizon to be at least 1, got {options.horizon}")
    model = TirexForecaster.from_pretrained(options.run, device=pick_device(options.device))
    say_licence(model)
    data = read_series(
        options.input,
        frequency=forecast_data.parse_frequency(options.frequency),
        id_column=options.id_column,
        time_column=options.time_column,
        target=options.target,
    )
    for note in data.notes:
        notes().print(f"note: {as_flags(note)}")
    forecast_data.give(model.predict(data, options.horizon or forecast_data.usual_horizon(data)), data, options.out)
    return 0
