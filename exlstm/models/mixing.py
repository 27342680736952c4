"""Training windows, varied by the differences between other windows of the same series."""

import numpy as np
import torch
from torch import Tensor

from exlstm.data.series import Batch, SeriesSet, require_length
from exlstm.data.series.windows import Windows
from exlstm.models.forecast_network import SeriesKind


class MixedWindows:
    """Random windows `w + a (w' - w'')`, with a from -mixing to mixing: called with a step, gives a `Batch`.

    w' and w'' begin whole multiples of the first lag away from w in the same series, so that all three are in
    the same phase of the season. What one window does differently from another is thereby added to a third,
    which tells the network that forecasts should follow residuals of any size and shape in proportion, and
    keeps it from learning a short series by heart. Exogenous numbers are mixed alike; the calendar is w's.
    (Linear combinations of series as in TSMixup, arXiv 2403.07815, but of differences, and in phase.)

    Windows reach back before the start of a series where it is too short to do without.
    """

    def __init__(self, data: SeriesSet, kind: SeriesKind, batch: int, seed: int, *, mixing: float) -> None:
        require_length(data, kind.horizon + 1, "training")
        self._windows = Windows(data, kind.history, kind.horizon, kind.cycles)
        self._batch, self._seed, self._mixing, self._lag = batch, seed, mixing, kind.lags[0]
        self._last = self._windows.lengths - kind.horizon
        self._first = np.minimum(kind.context + kind.lags[0], (self._last + 1) // 2).clip(min=1)
        series, origins = self._windows.training_origins(1)
        grown = origins >= self._first[series]
        self._series, self._origins = series[grown], origins[grown]
        if not len(self._origins):
            raise ValueError(
                f"no series has observed values both before and within some horizon of {kind.horizon} steps; "
                "give more data, or ask for a shorter horizon"
            )

    def __len__(self) -> int:
        """The number of different windows to begin from."""
        return len(self._origins)

    def __call__(self, step: int) -> Batch:
        """The batch of a training step; the same for a seed and step."""
        random = np.random.default_rng((self._seed, step))
        chosen = random.integers(len(self), size=self._batch)
        series, origins = self._series[chosen], self._origins[chosen]
        batch = self._windows.gather(series, origins)
        if not self._mixing:
            return batch
        plus, minus = (
            self._windows.gather(series, self._in_phase(series, origins, random.random(self._batch))) for _ in range(2)
        )
        amount = random.uniform(-self._mixing, self._mixing, self._batch)
        return mix(batch, plus, minus, torch.from_numpy(amount.astype(np.float32)))

    def _in_phase(self, series: np.ndarray, origins: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """For each origin one of the same phase, drawn by a number in [0, 1) each."""
        earliest = self._first[series] + (origins - self._first[series]) % self._lag
        choices = (self._last[series] - earliest) // self._lag + 1
        return earliest + (uniform * choices).astype(np.int64) * self._lag


def mix(batch: Batch, plus: Batch, minus: Batch, amount: Tensor) -> Batch:
    """The batch with `amount [B]` times the difference of two others, where all three were observed."""

    def mixed(name: str) -> tuple[Tensor, Tensor]:
        mask_name = "mask" if name == "y" else f"{name}_mask"
        mask = getattr(batch, mask_name) & getattr(plus, mask_name) & getattr(minus, mask_name)
        values = getattr(batch, name)
        share = amount.view(-1, *[1] * (values.ndim - 1))
        return (values + share * (getattr(plus, name) - getattr(minus, name))).masked_fill(~mask, 0.0), mask

    (y, mask), (future, future_mask), (past, past_mask) = mixed("y"), mixed("future"), mixed("past")
    return batch._replace(y=y, mask=mask, future=future, future_mask=future_mask, past=past, past_mask=past_mask)
