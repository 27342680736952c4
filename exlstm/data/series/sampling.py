"""Which windows to cut: random ones to train on, rolling ones to evaluate, the last ones to forecast."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from exlstm.data.series.series import SeriesSet, require_length
from exlstm.data.series.windows import Batch, Windows


class WindowSampler:
    """Random windows to train on: called with a step, it gives a `Batch`, the same for a seed and step.

    Every window has all its targets inside the series, at least one of them observed, and at least
    `min_context` observed values before them; it may reach back before the start of the series.
    `draw="windows"` gives all windows the same chance, `draw="series"` all series. `cycles` are those of
    `calendar_features`. Series shorter than `min_context + horizon` give no window (`require_length` names
    them).

    Raises ValueError for arguments out of range and where no series gives a window.
    """

    def __init__(
        self,
        series_set: SeriesSet,
        context: int,
        horizon: int,
        batch: int,
        seed: int = 0,
        *,
        draw: Literal["windows", "series"] = "windows",
        min_context: int = 1,
        cycles: Sequence[str] | None = None,
    ) -> None:
        if draw not in ("windows", "series"):
            raise ValueError(f"expected draw='windows' or 'series', received {draw!r}")
        windows = Windows(series_set, context, horizon, cycles)
        if batch < 1 or seed < 0 or not 1 <= min_context <= context:
            raise ValueError(
                "expected batch >= 1, seed >= 0 and min_context from 1 to the context, "
                f"received batch={batch}, seed={seed}, min_context={min_context}"
            )
        require_length(series_set, min_context + horizon, "training")
        self._windows, self._batch, self._seed, self._draw = windows, batch, seed, draw
        self._series, self._origins = windows.training_origins(min_context)
        if not len(self._origins):
            raise ValueError(
                f"training needs {min_context} observed values before a horizon of {horizon} steps and one "
                "in it, which no series has; give more data, or ask for a shorter horizon"
            )
        self._starts = np.flatnonzero(np.diff(self._series, prepend=-1))
        self._counts = np.diff(self._starts, append=len(self._series))

    def __len__(self) -> int:
        """The number of different windows."""
        return len(self._origins)

    def __call__(self, step: int) -> Batch:
        """The batch of a training step (a whole number from 0)."""
        random = np.random.default_rng((self._seed, step))
        if self._draw == "windows":
            chosen = random.integers(len(self), size=self._batch)
        else:
            which = random.integers(len(self._starts), size=self._batch)
            chosen = self._starts[which] + random.integers(self._counts[which])
        return self._windows.gather(self._series[chosen], self._origins[chosen])


def evaluation_windows(
    series_set: SeriesSet,
    context: int,
    horizon: int,
    n_windows: int,
    step_size: int,
    *,
    cycles: Sequence[str] | None = None,
) -> Batch:
    """Windows whose origins roll, `step_size` apart, up to the one whose targets end with the series.

    They come series by series, each in order of time. A series too short for all `n_windows` gives those that
    have at least one step of context. Raises ValueError for arguments out of range and where no series gives
    a window.
    """
    if n_windows < 1 or step_size < 1:
        raise ValueError(f"expected n_windows and step_size of at least 1, received {n_windows} and {step_size}")
    windows = Windows(series_set, context, horizon, cycles)
    require_length(series_set, horizon + 1, "evaluation")
    before_last = np.arange(n_windows - 1, -1, -1) * step_size
    origins = (windows.lengths - horizon)[:, None] - before_last
    series, place = np.nonzero(origins >= 1)
    return windows.gather(series, origins[series, place])


def forecast_windows(
    series_set: SeriesSet, context: int, horizon: int, *, cycles: Sequence[str] | None = None
) -> Batch:
    """One window a series, its origin right after the last step, so that no target is known.

    Raises ValueError for a series whose future columns do not reach `horizon` steps past its end.
    """
    for series in series_set:
        if series_set.columns.future and series.known < horizon:
            raise ValueError(
                f"the future columns of series {series.unique_id!r} are known for {series.known} of the "
                f"{horizon} steps to forecast; add rows with them and an empty {series_set.columns.target!r}"
            )
    windows = Windows(series_set, context, horizon, cycles)
    return windows.gather(np.arange(len(series_set)), windows.lengths.copy())
