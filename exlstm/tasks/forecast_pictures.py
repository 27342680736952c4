"""Pictures of forecasts: fans against the truth, the error by horizon, calibration.

They are drawn from the table of an evaluation: `unique_id, ds, cutoff, y`, the columns `q0.1 ... q0.9` of the
model, and one column for each baseline.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from exlstm.tasks.figures import INK, MODEL, MUTED, SECOND, THIRD, Picture, axes, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BANDS = ((0.1, 0.9), (0.2, 0.8), (0.3, 0.7), (0.4, 0.6))
_BASELINE_STYLES = ((SECOND, "--"), (THIRD, "-."), (MUTED, ":"))


def levels_of(table: pd.DataFrame) -> list[float]:
    """The quantile levels that the table has columns for, ascending."""
    return sorted(float(name[1:]) for name in table.columns if name[:1] == "q" and name[1:].replace(".", "").isdigit())


def fan(window: pd.DataFrame, before: pd.DataFrame, caption: str) -> Picture:
    """One window: the quantiles as nested bands, their median, the truth, and the values before (`ds, y`)."""
    with axes() as drawn:
        drawn.plot(before["ds"], before["y"], color=MUTED, linewidth=1)
        truth = pd.concat([before.tail(1), window[["ds", "y"]]])
        _draw_bands(drawn, window)
        drawn.plot(window["ds"], window["q0.5"], color=MODEL, label="forecast")
        drawn.plot(truth["ds"], truth["y"], color=INK, linewidth=1.3, label="truth")
        drawn.axvline(
            before["ds"].iloc[-1] if len(before) else window["ds"].iloc[0],
            color=MUTED,
            linewidth=0.8,
            linestyle=":",
        )
        _format_times(drawn, window["ds"])
        drawn.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, handlelength=1.4)
        return picture(drawn, caption, description=f"Line chart of a forecast against the truth. {caption}")


def timeline(windows: pd.DataFrame, caption: str) -> Picture:
    """All windows of one series in a row, on a wide figure."""
    with axes(wide=True) as drawn:
        for number, (_, window) in enumerate(windows.groupby("cutoff")):
            _draw_bands(drawn, window, _BANDS[:1], label=number == 0)
            drawn.plot(window["ds"], window["q0.5"], color=MODEL, label="forecast" if number == 0 else None)
        truth = windows.drop_duplicates("ds").sort_values("ds")
        drawn.plot(truth["ds"], truth["y"], color=INK, linewidth=1, label="truth")
        _format_times(drawn, windows["ds"], ticks=9)
        drawn.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
        return picture(
            drawn, caption, description=f"Line chart of all forecasts against the truth. {caption}", wide=True
        )


def error_by_step(errors: Mapping[str, npt.NDArray[np.floating]], unit: str, caption: str) -> Picture:
    """Mean error at each step of the horizon; the first entry is the model, the others are baselines."""
    from matplotlib.ticker import MaxNLocator

    with axes() as drawn:
        for (name, values), (colour, style) in zip(errors.items(), ((MODEL, "-"), *_BASELINE_STYLES), strict=False):
            steps = np.arange(1, len(values) + 1)
            drawn.plot(steps, values, style + ("o" if len(values) == 1 else ""), color=colour, label=name)
        drawn.set_xlabel("steps ahead")
        drawn.set_ylabel(unit)
        drawn.set_ylim(bottom=0)
        drawn.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawn.legend()
        means = ", ".join(f"{name} {np.nanmean(values):.3g}" for name, values in errors.items())
        return picture(drawn, caption, description=f"Line chart of the error at each step ahead; means: {means}.")


def calibration(table: pd.DataFrame, caption: str) -> Picture:
    """How often the truth lay below each quantile and inside each central interval, and should have."""
    from matplotlib.ticker import MultipleLocator

    observed, levels = table[table["y"].notna()], levels_of(table)
    below = [float((observed["y"] <= observed[f"q{level:g}"]).mean()) for level in levels]
    intervals = coverage(table)
    with axes() as drawn:
        drawn.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="as promised")
        drawn.plot(levels, below, "o-", color=MODEL, markersize=4, label="below the quantile")
        drawn.plot(
            list(intervals),
            list(intervals.values()),
            "s--",
            color=SECOND,
            markersize=4.5,
            label="inside the interval",
        )
        drawn.set_xlabel("promised share")
        drawn.set_ylabel("share of the values")
        drawn.set_xlim(0, 1)
        drawn.set_ylim(0, 1)
        for axis in (drawn.xaxis, drawn.yaxis):
            axis.set_major_locator(MultipleLocator(0.2))
            axis.set_major_formatter(lambda share, _: f"{share:.0%}")
        drawn.legend(loc="upper left")
        shares = ", ".join(f"{held:.0%} in the {promised:.0%} interval" for promised, held in intervals.items())
        return picture(drawn, caption, description=f"Chart of promised against found shares of the values: {shares}.")


def coverage(table: pd.DataFrame) -> dict[float, float]:
    """Share of the observed values inside each central interval, by the share that the interval promises."""
    observed, levels = table[table["y"].notna()], levels_of(table)
    pairs = [(low, round(1 - low, 6)) for low in levels if low < 0.5 and round(1 - low, 6) in levels]
    inside = {
        round(high - low, 6): float(observed["y"].between(observed[f"q{low:g}"], observed[f"q{high:g}"]).mean())
        for low, high in pairs
    }
    return dict(sorted(inside.items()))


def _draw_bands(
    drawn: "Axes", window: pd.DataFrame, bands: Sequence[tuple[float, float]] = _BANDS, *, label: bool = True
) -> None:
    for number, (low, high) in enumerate(bands):
        drawn.fill_between(
            window["ds"],
            window[f"q{low:g}"],
            window[f"q{high:g}"],
            color=MODEL,
            alpha=0.2,
            linewidth=0,
            label=f"{high - low:.0%} interval" if number == 0 and label else None,
        )


def _format_times(drawn: "Axes", times: pd.Series, ticks: int = 5) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if pd.api.types.is_datetime64_any_dtype(times):
        locator = AutoDateLocator(minticks=2, maxticks=ticks)  # with 3, none fits from 48 to 72 hours
        drawn.xaxis.set_major_locator(locator)
        drawn.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    drawn.margins(x=0.01)
