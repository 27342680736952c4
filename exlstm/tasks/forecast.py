"""The forecast task: train on series, score on their held-out end, forecast what comes next."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from exlstm.console import notes
from exlstm.tasks.options import (
    RUN_DATA,
    EvaluateOptions,
    ModelOptions,
    PredictOptions,
    TrainOptions,
    as_flags,
    restore,
)
from exlstm.tasks.runs import Run
from exlstm.tasks.session import INTERRUPTED, begin, require_finished, resume_command, training

if TYPE_CHECKING:
    from exlstm.data.series import SeriesSet
    from exlstm.models.forecaster import Forecaster
    from exlstm.tasks.forecast_data import Split

TASK = "forecast"


@dataclass(frozen=True)
class Train(TrainOptions):
    """Train a forecaster on your series, and score it on their held-out end.

    FILE is a CSV or Parquet table with a row for each time: a time, a value, and where there are several
    series, the id of the series. Without --data it is a sample, the electricity demand of England and Wales.
    """

    steps: int | None = 300
    """Training steps; none: as many as --minutes allow."""
    model: ModelOptions = field(default_factory=lambda: ModelOptions(pattern="ms", width=64))
    horizon: Annotated[int | None, arg(metavar="H", help_behavior_hint="(default: one season)")] = None
    """Steps to forecast."""
    test_windows: Annotated[int | None, arg(help_behavior_hint="(default: as fit in the last sixth)")] = None
    """Windows of H steps held out at the end of each series, to score the model on."""
    frequency: Annotated[str | None, arg(metavar="F", help_behavior_hint="(default: found in the data)")] = None
    """Time from row to row, as pandas writes it: 30min, h, D, W-MON, MS."""
    id_column: Annotated[str, arg(metavar="NAME")] = "unique_id"
    """Column that tells which series a row belongs to; it may be missing."""
    time_column: Annotated[str, arg(metavar="NAME")] = "ds"
    """Column of the times."""
    target: Annotated[str, arg(metavar="NAME")] = "y"
    """Column of the values to forecast."""
    future: Annotated[tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="(default: none)")] = ()
    """Columns known ahead of time, such as holidays."""
    past: Annotated[tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="(default: none)")] = ()
    """Columns known up to now, such as a temperature."""
    static: Annotated[tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="(default: none)")] = ()
    """Columns with one value a series, such as a region."""


@dataclass(frozen=True)
class Evaluate(EvaluateOptions):
    """Score a run's model again on the held-out end of its data, and write its report anew."""


@dataclass(frozen=True)
class Predict(PredictOptions):
    """Forecast what comes after the end of the series, with the model of a run."""

    input: Annotated[Positional[Path | None], arg(metavar="[FILE]", help_behavior_hint=RUN_DATA)] = None
    """Series to forecast, with the columns of the run's data."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: print CSV)")] = None
    """File for the forecasts, .csv or .parquet."""
    horizon: Annotated[int | None, arg(metavar="H", help_behavior_hint="(default: the run's)")] = None
    """Steps to forecast."""


def train(options: Train, prog: str) -> int:
    """Train in a run folder, evaluate and report; the exit code."""
    from exlstm.models.forecasting import RECIPE
    from exlstm.tasks import forecast_data, forecast_report
    from exlstm.tasks.device import pick_device

    device = pick_device(options.device)
    data = forecast_data.read(options, options.data)
    split = forecast_data.choose_split(data, options.horizon, options.test_windows)
    file = options.data.absolute() if options.data else None
    options = replace(options, data=file, horizon=split.horizon, test_windows=split.windows)
    recipe = replace(RECIPE, steps=options.steps, minutes=options.minutes, seed=options.seed)
    forecaster = _make(options.model).to(device)

    with begin(TASK, options, {"data_digest": forecast_data.digest(options.data)}) as run:
        _introduce(run, data, split, forecast_data.name_of(file))
        with training(run, options, prog):
            forecaster.fit(
                data.without_last(split.steps),
                split.horizon,
                train=recipe,
                out=run.path,
                resume=options.resume,
                resume_hint=resume_command(run, prog),
                console=notes(),
            )
            assert forecaster.result is not None
            if forecaster.result.interrupted:
                return INTERRUPTED
            forecaster.save_pretrained(run.model)
            notes().print(f"trained: {forecast_report.size_of(forecaster)}; evaluating")
            cost = {"seconds": forecaster.result.seconds, "peak_bytes": forecaster.result.peak_bytes}
            _evaluate(run, data, split, forecaster, cost, prog)
    return 0


def evaluate(options: Evaluate, prog: str) -> int:
    """Score the model of a run again; the exit code."""
    from exlstm.tasks import forecast_data

    run = Run.open(options.run)
    trained = restore(Train, run.options)
    forecaster = _load(run, options.device, prog)
    data = forecast_data.read(trained, trained.data)
    if forecast_data.digest(trained.data) != run.options["data_digest"]:
        notes().print(f"note: {trained.data} is not what it was when the model was trained")
    split = forecast_data.choose_split(data, trained.horizon, trained.test_windows)
    scores = run.read_scores()
    cost = {name: scores[name] for name in ("seconds", "peak_bytes")}
    _evaluate(run, data, split, forecaster, cost, prog)
    return 0


def predict(options: Predict, prog: str) -> int:
    """Give the forecasts of a run's model for what follows the run's data, or a file; the exit code."""
    from exlstm.tasks import forecast_data

    run = Run.open(options.run)
    trained = restore(Train, run.options)
    file = options.input or trained.data
    if options.out is not None:
        forecast_data.require_table_name(options.out, file)
    if options.horizon is not None and options.horizon < 1:
        raise ValueError(f"expected --horizon to be at least 1, got {options.horizon}")
    forecaster = _load(run, options.device, prog)
    data = forecast_data.read(trained, file)
    forecast_data.give(forecaster.predict(data, options.horizon or trained.horizon), data, options.out)
    return 0


def _make(model: ModelOptions) -> "Forecaster":
    """An untrained forecaster. Raises ValueError for a pattern or a width that cannot be built."""
    import torch

    from exlstm.models import Backbone
    from exlstm.models.arch import pattern_of
    from exlstm.models.forecaster import Forecaster

    forecaster = Forecaster(pattern=model.pattern, width=model.width)
    config = forecaster.config
    if config.width < 1:
        raise ValueError(f"expected --model.width to be at least 1, got {config.width}")
    with torch.device("meta"):  # `fit` builds the network only after there is a folder for the run
        Backbone(config.pattern, config.width, config.heads, style=config.style)
    return Forecaster(
        config, pattern=pattern_of(model.arch, config.pattern, config.width, config.heads, style=config.style)
    )


def _load(run: Run, device: str, prog: str) -> "Forecaster":
    from exlstm.models.forecaster import Forecaster
    from exlstm.tasks.device import pick_device

    require_finished(run, prog)
    return Forecaster.from_pretrained(run.model, device=pick_device(device))


def _introduce(run: Run, data: "SeriesSet", split: "Split", name: str) -> None:
    """Say in a few lines what is about to happen."""
    say = notes().print
    say(f"{name}: {len(data):,} series, {sum(map(len, data)):,} steps, frequency {data.frequency}")
    for note in data.notes:
        say(f"note: {as_flags(note)}")
    say(f"horizon: {split.horizon}; held out for the test: the last {split.windows} x {split.horizon} steps")
    say(f"run folder: {run.path}")


def _evaluate(
    run: Run, data: "SeriesSet", split: "Split", forecaster: "Forecaster", cost: Mapping[str, Any], prog: str
) -> None:
    """Score the model, keep forecasts and scores, and conclude."""
    from exlstm.tasks import forecast_data, forecast_report
    from exlstm.tasks.conclusion import conclude
    from exlstm.tasks.forecast_evaluation import evaluate as score_windows

    options = restore(Train, run.options)
    evaluation = score_windows(forecaster, data, split.horizon, split.windows)
    forecast_data.write_table(evaluation.with_names_of(data), run.path / "forecasts.csv")
    run.write_scores(
        model=evaluation.scores,
        baselines=evaluation.baselines,
        data=forecast_data.summary(data, options.data, split),
        **cost,
    )
    for note in evaluation.notes:
        notes().print(f"note: {note}")
    conclude(
        run,
        options,
        prog,
        columns=forecast_report.score_columns(),
        rows=forecast_report.score_rows,
        report=partial(forecast_report.make_report, evaluation, data, model=forecast_report.size_of(forecaster)),
    )
