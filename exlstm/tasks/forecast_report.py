"""The report of a forecasting run: what it says and shows, from its evaluation."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from exlstm.data.series import SeriesSet
from exlstm.models import parse_pattern
from exlstm.tasks.figures import Picture, loss_curve
from exlstm.tasks.forecast_data import name_of
from exlstm.tasks.forecast_evaluation import Evaluation
from exlstm.tasks.forecast_pictures import calibration, error_by_step, fan, timeline
from exlstm.tasks.options import as_flags
from exlstm.tasks.report import Number, Report, Section, Table
from exlstm.tasks.report_facts import configuration, flat, footer, plural
from exlstm.tasks.runs import Run

if TYPE_CHECKING:
    from exlstm.models.forecaster import Forecaster

METRICS = ("MASE", "MAE", "sMAPE", "CRPS", "coverage80")
_LABELS = {
    "seasonal_naive": "seasonal naive",
    "ridge": "ridge",
    "coverage80": "in 80% interval",
}
_NOUNS = {"seasonal_naive": " forecast", "ridge": " regression"}
_MOST_SERIES = 3


def format_score(metric: str, value: float | None) -> str:
    """A score as people read it; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    match metric:
        case "coverage80":
            return f"{value:.1%}"
        case "sMAPE":
            return f"{value:.2f}%"
        case "MASE":
            return f"{value:.3f}"
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def score_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """The model's and the baselines' scores as rows of text; `scores` is as in `scores.json`."""
    everyone = {"model": scores["model"], **scores["baselines"]}
    return [
        [_LABELS.get(name, name), *(format_score(metric, values[metric]) for metric in METRICS)]
        for name, values in everyone.items()
    ]


def score_columns() -> list[str]:
    """The header of `score_rows`."""
    return ["", *(_LABELS.get(metric, metric) for metric in METRICS)]


def headline(evaluation: Evaluation) -> str:
    """The result in two sentences."""
    metric = "MASE" if np.isfinite(evaluation.scores["MASE"]) else "MAE"
    ours = evaluation.scores[metric]
    comparisons = [
        f"{_compare(ours, scores[metric])} the {_LABELS[name]}{_NOUNS.get(name, '')}"
        for name, scores in evaluation.baselines.items()
        if scores[metric] > 0
    ]
    beside = f", {' and '.join(comparisons)}" if comparisons else ""
    held = format_score("coverage80", evaluation.scores["coverage80"])
    return (
        f"{metric} {format_score(metric, ours)} on {plural(evaluation.windows, 'window')} of "
        f"{plural(evaluation.horizon, 'step')} that the model had not seen{beside}. "
        f"The 80% interval held {held} of the values."
    )


def size_of(forecaster: "Forecaster") -> str:
    """What the model is, in a few words."""
    weights = sum(parameter.numel() for parameter in forecaster.parameters())
    return f"{parse_pattern(forecaster.config.pattern)}, {weights:,} weights"


def make_report(
    evaluation: Evaluation,
    data: SeriesSet,
    *,
    run: Run,
    model: str,
    scores: Mapping[str, Any],
    history: Sequence[dict[str, Any]],
    command: Sequence[str],
) -> Report:
    """The report on a run that was evaluated on the end of `data`.

    `model` says how big it is, `history` is `metrics.jsonl`, and `command` trains such a model anew.
    """
    ours = evaluation.scores
    source = run.options["data"]
    return Report(
        kicker="exlstm train forecast",
        title=f"Forecasts of {name_of(Path(source) if source else None)}",
        headline=headline(evaluation),
        numbers=[
            Number(format_score("MASE", ours["MASE"]), "MASE", _beside(evaluation, "MASE")),
            Number(format_score("MAE", ours["MAE"]), "MAE", _beside(evaluation, "MAE")),
            Number(format_score("CRPS", ours["CRPS"]), "CRPS", _beside(evaluation, "CRPS")),
            Number(format_score("coverage80", ours["coverage80"]), "in the 80% interval", "80% would be perfect"),
        ],
        sections=[
            Section("Scores", table=_score_table(evaluation, scores), notes=evaluation.notes),
            Section("Forecasts against the truth", pictures=_forecast_pictures(evaluation, data)),
            Section("Where the error lies", pictures=_error_pictures(evaluation, history)),
            Section("Data", notes=[as_flags(note) for note in data.notes], facts=_data_facts(scores["data"])),
            Section("Configuration", facts={"model": model, **configuration(run)}, command=shlex.join(command)),
        ],
        footer=footer(run, scores),
    )


def _data_facts(about: Mapping[str, Any]) -> dict[str, str]:
    horizon, windows = about["horizon"], about["windows"]
    held_out = f"{plural(windows, 'window')} of {plural(horizon, 'step')}"
    rest = {name: about[name] for name in ("source", "series", "steps", "frequency", "first", "last", "season")}
    return {**flat(rest), "held out": held_out}


def _compare(ours: float, theirs: float) -> str:
    if ours > 2 * theirs:
        return f"{ours / theirs:.1f} times that of"
    percent = round(100 * (ours / theirs - 1))
    return "level with" if percent == 0 else f"{abs(percent)}% {'below' if percent < 0 else 'above'}"


def _beside(evaluation: Evaluation, metric: str) -> str:
    return f"seasonal naive {format_score(metric, evaluation.baselines['seasonal_naive'][metric])}"


def _score_table(evaluation: Evaluation, scores: Mapping[str, Any]) -> Table:
    everyone = [scores["model"], *scores["baselines"].values()]
    strong = set()
    for column, metric in enumerate(METRICS, start=1):
        distance = [abs(one[metric] - 0.8) if metric == "coverage80" else one[metric] for one in everyone]
        if any(value is not None and np.isfinite(value) for value in distance):
            strong.add((int(np.nanargmin(np.array(distance, dtype=float))), column))
    return Table(
        score_columns(),
        score_rows(scores),
        frozenset(strong),
        "Lower is better; the share of values in the 80% interval should be 80%. MASE is the error in units "
        f"of what repeating the last season ({plural(evaluation.season, 'step')}) misses on earlier data. "
        "CRPS is the error of the whole distribution, in the unit of the data, as MAE is. The best of each "
        "column is stressed.",
    )


def _forecast_pictures(evaluation: Evaluation, data: SeriesSet) -> list[Picture]:
    ids = list(dict.fromkeys(evaluation.table["unique_id"]))
    timelines = []
    for unique_id in ids[:_MOST_SERIES] if len(ids) <= _MOST_SERIES else []:
        rows = evaluation.table[evaluation.table["unique_id"] == unique_id]
        count = plural(rows["cutoff"].nunique(), "held-out window")
        timelines.append(timeline(_local(rows), f"Series {unique_id}: all {count} in a row."))
    return [
        *timelines,
        *(_fan(evaluation, data, number, rank) for number, rank in chosen_windows(evaluation)),
    ]


def chosen_windows(evaluation: Evaluation) -> list[tuple[int, str]]:
    """Windows to show with what each is: the best, median and worst, and the median one of further series."""
    errors = evaluation.window_errors()
    order = [int(number) for number in np.argsort(errors) if np.isfinite(errors[number])]
    ranks = (
        {0: "Best", len(order) // 2: "Median", len(order) - 1: "Worst"}
        if len(order) > 2
        else dict.fromkeys(range(len(order)), "")
    )
    chosen = [(order[place], rank) for place, rank in ranks.items()]
    series = evaluation.table["unique_id"].to_numpy()[:: evaluation.horizon]
    others = [unique_id for unique_id in dict.fromkeys(series) if unique_id not in {series[n] for n, _ in chosen}]
    for unique_id in others[:_MOST_SERIES]:
        own = [number for number in order if series[number] == unique_id]
        if own:
            chosen.append((own[len(own) // 2], f"Median of series {unique_id}"))
    return chosen


def _fan(evaluation: Evaluation, data: SeriesSet, number: int, rank: str) -> Picture:
    window = evaluation.window(number)
    unique_id, error = window["unique_id"].iloc[0], evaluation.window_errors()[number]
    series = next(one for one in data if one.unique_id == unique_id)
    origin = int(series.ds.get_indexer(pd.Index(window["ds"].iloc[:1]))[0])
    first = max(0, origin - evaluation.horizon)
    before = pd.DataFrame({"ds": series.ds[first:origin], "y": series.y[first:origin]})
    unit = "MASE" if np.isfinite(evaluation.scales[number]) else "MAE"
    what = f"{rank} window" if rank in ("Best", "Median", "Worst") else rank or "Window"
    where = f" of series {unique_id}" if len(data) > 1 and not rank.endswith(str(unique_id)) else ""
    return fan(
        _local(window),
        _local(before),
        f"{what}{where}: {_format_time(window['ds'].iloc[0])} onwards. {unit} {format_score(unit, error)}.",
    )


def _error_pictures(evaluation: Evaluation, history: Sequence[dict[str, Any]]) -> list[Picture]:
    errors = {_LABELS.get(name, name): values for name, values in evaluation.errors_by_step().items()}
    return [
        error_by_step(
            errors,
            "error (MASE)" if np.isfinite(evaluation.scales).all() else "error",
            "Mean error at each step ahead, over all windows.",
        ),
        calibration(
            evaluation.table,
            "How many values lay below each quantile and inside each interval. On the dotted line, the model "
            "keeps what it promises.",
        ),
        loss_curve(history),
    ]


def _local(table: pd.DataFrame) -> pd.DataFrame:
    """Times as a clock on the wall shows them, which is how they are drawn."""
    if isinstance(table["ds"].dtype, pd.DatetimeTZDtype):
        return table.assign(ds=table["ds"].dt.tz_localize(None))
    return table


def _format_time(time: Any) -> str:
    if not isinstance(time, pd.Timestamp):
        return f"step {time}"
    return f"{time:%a %d %b %Y}" if time == time.normalize() else f"{time:%a %d %b %Y, %H:%M}"
