"""The network of the forecaster: from windows of series to quantiles of what follows."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.data.series import Batch, Columns, Frequency
from exlstm.data.series.seasonality import HARMONICS
from exlstm.layers.block import Style
from exlstm.models.backbone import Backbone
from exlstm.models.relations import Relations, history_length, relate

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The quantiles that a forecaster is trained to give."""
LARGEST_INPUT = 30.0
"""Residuals and offsets of several times this size enter the network as this size."""


@dataclass(frozen=True)
class SeriesKind:
    """What `fit` found the series to be: the shapes a network for them has, and how to read more of them."""

    horizon: int
    patch: int
    """Steps a patch joins."""
    context: int
    """Steps before the origin that are read patch by patch; a multiple of `patch`."""
    lags: tuple[int, ...]
    """Seasons, and 1 for the last value; the first is the one whose naive forecast is best."""
    frequency: Frequency
    cycles: tuple[str, ...]
    """Calendar cycles whose phase is an input."""
    columns: Columns
    categories: tuple[tuple[str, tuple[str, ...]], ...]
    """The known values of each static column of text."""

    @property
    def history(self) -> int:
        """Steps before the origin that a forecast depends on."""
        return history_length(self.context, self.lags)

    @property
    def other_lags(self) -> int:
        """Offsets and carried residuals of a step (see `Relations`)."""
        return sum(1 if lag == 1 else 2 for lag in self.lags[1:])

    @property
    def numeric_statics(self) -> int:
        return len(self.columns.static) - len(self.categories)


@dataclass(frozen=True)
class ForecasterConfig:
    """What a forecaster is made of; `series` is set by `fit`."""

    pattern: str = "ms"
    """The blocks, see `parse_pattern`."""
    width: int = 64
    heads: int = 4
    style: Style = "large"
    dropout: float = 0.1
    patch: int | None = None
    """Steps a patch joins; None: half the shortest season, from 4 to 48."""
    context: int | None = None
    """Least number of steps read patch by patch; None: the shortest season, at least 32."""
    members: int = 4
    """Networks trained side by side from different beginnings; their mean is the forecast."""
    mixing: float = 1.5
    """How far training windows are varied by the differences of others, see `MixedWindows`; 0: not at all."""
    series: SeriesKind | None = None

    def __post_init__(self) -> None:
        for name in ("patch", "context", "members"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1, received {value}")
        if not self.mixing >= 0:
            raise ValueError(f"expected mixing of at least 0, received {self.mixing}")


class Forecast(NamedTuple):
    """Quantiles of B windows of h steps in units of the series, and the size of each window's residuals."""

    quantiles: Tensor
    """`[B, members, h, 9]`, not decreasing along the last axis; the mean over members is the forecast."""
    scale: Tensor
    """`[B]`"""


class ForecastNetwork(nn.Module):
    """From a batch of windows to their quantiles."""

    def __init__(self, config: ForecasterConfig, series: SeriesKind) -> None:
        super().__init__()
        self.series = series
        columns = series.columns
        a_step = 2 + series.other_lags + 3 * len(columns.future) + 2 * len(columns.past)
        inputs = series.patch * a_step + calendar_width(series)
        self.describe_series = SeriesEmbedding(series, config.width)
        self.future_scaling = Standardise(len(columns.future))
        self.past_scaling = Standardise(len(columns.past))
        self.members = nn.ModuleList(Member(config, series, inputs) for _ in range(config.members))

    def forward(self, batch: Batch) -> Forecast:
        relations = relate(batch.y, batch.mask, batch.horizon, self.series.context, self.series.lags)
        patches, present = self.patches(batch, relations)
        about = self.describe_series(batch.static, batch.static_codes)[:, None]
        quantiles = [member(patches, about, present, relations, batch.horizon) for member in self.members]
        return Forecast(torch.stack(quantiles, 1), relations.scale)

    def patches(self, batch: Batch, relations: Relations) -> tuple[Tensor, Tensor]:
        """Inputs `[B, N, inputs]` of the patches of context and horizon, and which of them `[B, N]` are in the series.

        Steps after the horizon that fill up the last patch are unknown in every respect.
        """
        context, size = self.series.context, self.series.patch
        window = slice(batch.y.shape[1] - batch.horizon - context, None)
        past, past_mask = (F.pad(x, (0, 0, 0, batch.horizon)) for x in (batch.past, batch.past_mask))
        a_step = torch.cat(
            [
                _bounded(relations.residual)[..., None],
                relations.observed[..., None].float(),
                _bounded(relations.offsets),
                _bounded(relations.carried),
                self.known_ahead(batch, relations),
                self.past_scaling(past[:, window], past_mask[:, window]),
            ],
            -1,
        )
        fill = -batch.horizon % size
        steps = F.pad(a_step, (0, 0, 0, fill)).unflatten(1, (-1, size)).flatten(2)
        calendar = batch.calendar[:, window][:, ::size]
        present = F.pad(batch.inside[:, window], (0, fill)).unflatten(1, (-1, size)).any(-1)
        return torch.cat([steps, calendar], -1), present

    def known_ahead(self, batch: Batch, relations: Relations) -> Tensor:
        """The future columns at each step, whether they are known, and how they differ from where the base is from.

        The differences are in units in which a residual that follows them is the same multiple of them in
        every window.
        """
        columns = self.future_scaling(batch.future, batch.future_mask)
        values, known = columns.chunk(2, -1)
        there = relations.base_place[..., None].expand(-1, -1, values.shape[-1])
        window = slice(-there.shape[1], None)
        both = known[:, window] * known.gather(1, there)
        change = both * (values[:, window] - values.gather(1, there))
        return torch.cat([columns[:, window], _bounded(relations.spread[:, None, None] * change)], -1)


class Member(nn.Module):
    """From the patches of windows to their quantiles `[B, h, 9]`, by one extended LSTM."""

    def __init__(self, config: ForecasterConfig, series: SeriesKind, inputs: int) -> None:
        super().__init__()
        width, others = config.width, series.other_lags
        self.patch = series.patch
        self.embed = ResidualMLP(inputs, width, 2 * width)
        self.backbone = Backbone(config.pattern, width, config.heads, style=config.style, dropout=config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.moves = nn.Linear(width, series.patch * others) if others else None
        self.head = nn.Linear(width, series.patch * len(LEVELS))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with the base and the quantiles of a normal distribution around it."""
        if self.moves is not None:
            nn.init.zeros_(self.moves.weight)
            nn.init.zeros_(self.moves.bias)
        nn.init.normal_(self.head.weight, std=0.01)
        if self.head.bias.is_meta:  # which has no numbers
            return
        with torch.no_grad():
            self.head.bias.copy_(0.5 * torch.special.ndtri(torch.tensor(LEVELS)).repeat(self.patch))

    def forward(self, patches: Tensor, about: Tensor, present: Tensor, relations: Relations, horizon: int) -> Tensor:
        x, _ = self.backbone(self.embed(patches) + about, mask=present, return_state=False)
        return self.read_out(self.dropout(x[:, -math.ceil(horizon / self.patch) :]), relations, horizon)

    def read_out(self, x: Tensor, relations: Relations, horizon: int) -> Tensor:
        """Quantiles from the patches `x` [B, N, width] after the origin."""
        future = slice(relations.base.shape[1] - horizon, None)
        quantiles = self._by_step(self.head(x), horizon)
        if self.moves is not None:
            lagged = torch.cat([relations.offsets, relations.carried], -1)[:, future]
            moves = torch.tanh(self._by_step(self.moves(x), horizon))
            quantiles = quantiles + (moves * lagged).sum(-1, keepdim=True)
        quantiles = relations.base[:, future, None] + relations.scale[:, None, None] * quantiles
        return quantiles.sort(-1).values

    def _by_step(self, x: Tensor, horizon: int) -> Tensor:
        """[B, N, patch * K] to [B, horizon, K]."""
        return x.unflatten(-1, (self.patch, -1)).flatten(1, 2)[:, :horizon]


class ResidualMLP(nn.Module):
    """A linear map plus a small network of `hidden` channels: [..., inputs] to [..., outputs]."""

    def __init__(self, inputs: int, outputs: int, hidden: int, activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.network = nn.Sequential(nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.network(x)


class SeriesEmbedding(nn.Module):
    """What the static columns say about a series: [B, S], [B, S'] to [B, width]."""

    def __init__(self, series: SeriesKind, width: int) -> None:
        super().__init__()
        self.scaling = Standardise(series.numeric_statics)
        self.numbers = nn.Linear(2 * series.numeric_statics, width, bias=False) if series.numeric_statics else None
        self.categories = nn.ModuleList(nn.Embedding(1 + len(known), width) for _, known in series.categories)
        self.width = width
        for weight in self.categories.parameters():
            nn.init.normal_(weight, std=0.02)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        x = numbers.new_zeros(numbers.shape[0], self.width)
        if self.numbers is not None:
            x = x + self.numbers(self.scaling(numbers, torch.ones_like(numbers, dtype=torch.bool)))
        for place, embedding in enumerate(self.categories):
            x = x + embedding(codes[:, place])
        return x


class Standardise(nn.Module):
    """Columns in units of their spread, 0 where unknown, and whether they are known: [..., K] to [..., 2 K]."""

    centre: Tensor
    scale: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(columns))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([_bounded(((x - self.centre) / self.scale).masked_fill(~mask, 0.0)), mask.float()], -1)


def _bounded(x: Tensor) -> Tensor:
    return LARGEST_INPUT * torch.tanh(x / LARGEST_INPUT)


def calendar_width(series: SeriesKind) -> int:
    """Columns of the calendar features of these cycles."""
    return 0 if isinstance(series.frequency, int) else sum(2 * HARMONICS[cycle] for cycle in series.cycles)
