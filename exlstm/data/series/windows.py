"""Windows of context and horizon, cut from all series of a set at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exlstm.data.series.frequency import BoolArray, IntArray, time_grid
from exlstm.data.series.seasonality import calendar_features
from exlstm.data.series.series import FloatArray, Series, SeriesSet


class Batch(NamedTuple):
    """B windows, each of C context steps up to an origin and h steps of horizon after it.

    Zeros stand wherever a mask is False: missing values, steps before the start of a series, targets not yet
    known. The context is padded on the left. Nothing after the origin is in here but the targets and what is
    known ahead.
    """

    y: Tensor
    """`[B, C + h]` float32: the context, then the targets."""
    mask: Tensor
    """`[B, C + h]` bool: where `y` was observed."""
    inside: Tensor
    """`[B, C + h]` bool: False before the start of the series; so it tells padding from gaps."""
    calendar: Tensor
    """`[B, C + h, K]` float32: see `calendar_features`."""
    future: Tensor
    """`[B, C + h, F]` float32: columns known ahead, as they were read."""
    future_mask: Tensor
    """`[B, C + h, F]` bool."""
    past: Tensor
    """`[B, C, P]` float32: columns known up to now, as they were read."""
    past_mask: Tensor
    """`[B, C, P]` bool."""
    static: Tensor
    """`[B, S]` float32: the numeric static columns, as they were read."""
    static_codes: Tensor
    """`[B, S']` int64: the categories of the others, from 1; 0 for one not in `SeriesSet.categories`."""
    series: Tensor
    """`[B]` int64: which series of the set."""
    origin: Tensor
    """`[B]` int64: the step of the first target in that series."""

    @property
    def context(self) -> int:
        """C."""
        return self.past.shape[1]

    @property
    def horizon(self) -> int:
        """h."""
        return self.y.shape[1] - self.context

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Windows:
    """All series laid end to end, each with `horizon` steps after its last, so that a window is one slice.

    A window that reaches back before the start of its series covers the end of the one before; that part is
    masked. Raises ValueError for a context or horizon below 1.
    """

    def __init__(self, series_set: SeriesSet, context: int, horizon: int, cycles: Sequence[str] | None = None) -> None:
        if context < 1 or horizon < 1:
            raise ValueError(f"expected context and horizon of at least 1, received {context} and {horizon}")
        self.context, self.horizon = context, horizon
        self.lengths = np.array([len(series) for series in series_set], dtype=np.int64)
        ends = context + np.cumsum(self.lengths + horizon)
        self.offsets = ends - (self.lengths + horizon)
        self._y = self._lay([series.y[:, None] for series in series_set])
        self._future = self._lay([series.future for series in series_set])
        self._past = self._lay([series.past for series in series_set])
        self._calendar = self._lay([_calendar(series, horizon, cycles) for series in series_set])
        self._static, self._static_codes = _static(series_set)

    def gather(self, series: IntArray, origin: IntArray) -> Batch:
        """The windows of `series [B]` (numbers in the set) with their first targets at steps `origin [B]`."""
        which, origins = torch.from_numpy(series), torch.from_numpy(origin)
        starts = torch.from_numpy(self.offsets[series] + origin - self.context)
        inside = origins[:, None] + torch.arange(-self.context, self.horizon) >= 0
        outside = ~inside[..., None]
        y, mask = _observed(self._slices(self._y, starts), outside)
        future, future_mask = _observed(self._slices(self._future, starts), outside)
        calendar = self._slices(self._calendar, starts)
        calendar[~inside] = 0.0
        past = self._slices(self._past, starts)[:, : self.context].contiguous()
        past, past_mask = _observed(past, outside[:, : self.context])
        return Batch(
            y=y[..., 0],
            mask=mask[..., 0],
            inside=inside,
            calendar=calendar,
            future=future,
            future_mask=future_mask,
            past=past,
            past_mask=past_mask,
            static=self._static[which],
            static_codes=self._static_codes[which],
            series=which,
            origin=origins,
        )

    def training_origins(self, min_context: int) -> tuple[IntArray, IntArray]:
        """Every window to train on, as `(series, origin)`, in order of series and time.

        All its targets are before the end of the series; at least `min_context` values of its context and one
        of its targets were observed.
        """
        observed = ~torch.isnan(self._y[:, 0]).numpy()
        found = [
            _origins(observed[offset : offset + length], self.context, self.horizon, min_context)
            for offset, length in zip(self.offsets, self.lengths, strict=True)
        ]
        series = np.repeat(np.arange(len(found)), [len(origins) for origins in found])
        return series, np.concatenate(found)

    def _lay(self, pieces: list[FloatArray]) -> Tensor:
        """The pieces `[T, K]` end to end, each cut or continued by NaN to the room of its series."""
        room = self.lengths + self.horizon
        laid = torch.full((self.context + int(room.sum()), pieces[0].shape[1]), torch.nan)
        for piece, offset, steps in zip(pieces, self.offsets, room, strict=True):
            kept = torch.from_numpy(piece[:steps])
            laid[offset : offset + len(kept)] = kept
        return laid

    def _slices(self, laid: Tensor, starts: Tensor) -> Tensor:
        """`[B, C + h, K]`. The rows of an overlapping view are contiguous: whole windows are copied."""
        steps, columns = self.context + self.horizon, laid.shape[1]
        view = laid.as_strided((len(laid) - steps + 1, steps * columns), (columns, 1))
        return view.index_select(0, starts).view(len(starts), steps, columns)


def _calendar(series: Series, horizon: int, cycles: Sequence[str] | None) -> FloatArray:
    index = time_grid(series.ds[:1], len(series) + horizon, series.frequency)
    return calendar_features(index, series.frequency, cycles)


def _static(series_set: SeriesSet) -> tuple[Tensor, Tensor]:
    names, categories = series_set.columns.static, series_set.categories
    code = {name: {value: n for n, value in enumerate(known, start=1)} for name, known in categories.items()}
    numeric = [[float(series.static[name]) for name in names if name not in code] for series in series_set]
    coded = [[code[name].get(str(series.static[name]), 0) for name in names if name in code] for series in series_set]
    return torch.tensor(numeric, dtype=torch.float32), torch.tensor(coded, dtype=torch.int64)


def _observed(values: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """`values` with 0 where they are missing or outside, in place, and where they are not."""
    missing = torch.isnan(values).logical_or_(outside)
    return values.masked_fill_(missing, 0.0), ~missing


def _origins(observed: BoolArray, context: int, horizon: int, min_context: int) -> IntArray:
    seen = np.concatenate([[0], np.cumsum(observed)])
    origins = np.arange(1, len(observed) - horizon + 1)
    in_context = seen[origins] - seen[np.maximum(origins - context, 0)]
    in_targets = seen[origins + horizon] - seen[origins]
    return origins[(in_context >= min_context) & (in_targets >= 1)]
