"""TiRex: forecasts of series that it was never trained on, by sLSTM blocks over patches (arXiv 2505.23719)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.data.series import Batch, SeriesSet, evaluation_windows, forecast_windows, read_series
from exlstm.layers.block import BlockOptions
from exlstm.models import forecasting
from exlstm.models.backbone import Backbone
from exlstm.models.forecast_network import LEVELS, Forecast, ResidualMLP
from exlstm.models.forecasting import Source
from exlstm.models.saving import Pretrained

if TYPE_CHECKING:
    import pandas as pd

SMALLEST_SCALE = 1e-5
"""A window of one value alone is measured in units of its size plus this."""
_LONGEST = 2**20


@dataclass(frozen=True)
class TirexConfig:
    """What a TiRex is made of; the defaults are those of the published one, with 35,291,200 weights."""

    width: int = 512
    blocks: int = 12
    heads: int = 4
    hidden: int = 2048
    """Channels within the networks into and out of the blocks."""
    feed_forward: int = 1408
    """Channels of the feed-forward parts of the blocks."""
    patch: int = 32
    """Steps a patch joins."""
    context: int = 2048
    """Steps before the origin that are read, in whole patches; those a series lacks count as missing."""
    licence: str = ""
    """What is known of the licence of the weights."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "licence" and getattr(self, field.name) < 1:
                raise ValueError(f"expected {field.name} of at least 1, received {getattr(self, field.name)}")
        if self.context % self.patch or self.context > _LONGEST:
            raise ValueError(
                f"expected a context of whole patches of {self.patch} steps, {_LONGEST} at most, "
                f"received {self.context}"
            )
        if self.width % self.heads:
            raise ValueError(f"expected a width of equal heads, received width {self.width} and {self.heads} heads")


class TirexForecaster(Pretrained):
    """Quantile forecasts without training, from weights trained on many series before; see `exlstm.interop.tirex`.

    A window of `context` steps is brought to mean 0 and deviation 1 and cut into patches, each of which enters with
    what of it was observed. sLSTM blocks pass over them and, for every further patch to forecast, over one that is
    missing altogether. The last outputs give the quantiles of the patches that follow.

    `TirexForecaster(config)` or `TirexForecaster(width=512, ...)` with the fields of `TirexConfig`.
    """

    config_class = TirexConfig
    model_type = "tirex"
    config: TirexConfig

    def __init__(self, config: TirexConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = c = replace(config or TirexConfig(), **fields)
        options = BlockOptions(hidden=c.feed_forward, slstm_eps=1e-5, forget_cap=15.0)
        self.embed = ResidualMLP(2 * c.patch, c.width, c.hidden, nn.ReLU)
        self.backbone = Backbone("s" * c.blocks, c.width, c.heads, style="large", options=options)
        self.head = ResidualMLP(c.width, len(LEVELS) * c.patch, c.hidden, nn.ReLU)

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the horizon of windows (see `exlstm.data.series`) from their values alone; quantiles are sorted."""
        y = batch.y.masked_fill(~batch.mask, torch.nan)[:, : batch.context]
        quantiles, scale = self._quantiles(y, batch.horizon)
        return Forecast(quantiles.sort(-1).values[:, None], scale)

    def quantiles(self, y: Tensor, h: int) -> Tensor:
        """The quantiles at `LEVELS` of the `h` steps after series, as the network gives them.

        Args:
            y: float [B, T] with any T, NaN where nothing was observed; the last `context` steps are read.
            h: steps, at least 1.

        Returns:
            float32 (float64 from weights in float64) [B, h, 9]; they may cross where the network is unsure.
        """
        forecasting.require_at_least_one(h=h)
        return self._quantiles(y, h)[0]

    def _quantiles(self, y: Tensor, h: int) -> tuple[Tensor, Tensor]:
        c, weight = self.config, self.embed.linear.weight
        y = F.pad(y[:, -c.context :].double(), (max(c.context - y.shape[1], 0), 0), value=torch.nan)
        centre, scale = centre_and_scale(y)
        ahead = -(-h // c.patch)
        steps = F.pad((y - centre) / scale, (0, (ahead - 1) * c.patch), value=torch.nan).unflatten(1, (-1, c.patch))
        patches = torch.cat([steps.nan_to_num(0.0), (~steps.isnan()).double()], -1)
        x, _ = self.backbone(self.embed(patches.to(weight.dtype)), return_state=False)
        found = self.head(x[:, -ahead:]).unflatten(-1, (len(LEVELS), c.patch))
        found = found.transpose(2, 3).flatten(1, 2)[:, :h].double()
        kept = torch.promote_types(weight.dtype, torch.float32)
        return (centre[..., None] + scale[..., None] * found).to(kept), scale[:, 0].to(kept)

    def predict(self, df: Source, h: int, quantiles: Sequence[float] = LEVELS, **reading: Any) -> "pd.DataFrame":
        """Forecast what follows each series.

        Args:
            df: table, file or `SeriesSet`: the series so far.
            h: steps to forecast.
            quantiles: between 0.1 and 0.9; those between two levels are interpolated linearly.
            reading: `frequency`, `id_column`, `time_column`, `target` of `read_series`, for a table or a file.

        Returns:
            a row for each series and step: `unique_id, ds, q0.1, ...`.

        Raises:
            ValueError: h or a quantile is out of range, the series cannot be read, there are columns beside
                the target, or a series has no observed value in its last `context` steps.
        """
        forecasting.require_at_least_one(h=h)
        forecasting.require_levels(quantiles)
        data = _read(df, reading)
        return forecasting.table_of(self, data, forecast_windows(data, self.config.context, h, cycles=()), quantiles)

    def cross_validation(
        self,
        df: Source,
        h: int,
        n_windows: int = 1,
        step_size: int | None = None,
        *,
        quantiles: Sequence[float] = LEVELS,
        fit: bool = False,
        **reading: Any,
    ) -> "pd.DataFrame":
        """Forecast the last `n_windows` windows of `h` steps of each series, each from what lies before it.

        Args:
            step_size: steps from one origin to the next; None: h.
            fit: must be False, as there is no training; `Forecaster` has the same argument.
            reading: as for `predict`.

        Returns:
            a row for each series, window and step: `unique_id, ds, cutoff, y, q0.1, ...`, cutoff being the
            last time known.

        Raises:
            ValueError: as `predict`.
        """
        if fit:
            raise ValueError("a TirexForecaster forecasts without training; leave fit=False, or train a Forecaster")
        step_size = h if step_size is None else step_size
        forecasting.require_at_least_one(h=h, n_windows=n_windows, step_size=step_size)
        forecasting.require_levels(quantiles)
        data = _read(df, reading)
        batch = evaluation_windows(data, self.config.context, h, n_windows, step_size, cycles=())
        return forecasting.table_of(self, data, batch, quantiles, targets=True)


def centre_and_scale(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [B, 1] of the observed values of `y` [B, T]; 0 and 1 where there are none."""
    centre = y.nanmean(1, keepdim=True).nan_to_num(0.0)
    scale = (y - centre).square().nanmean(1, keepdim=True).sqrt().nan_to_num(1.0)
    return centre, torch.where(scale == 0, centre.abs() + SMALLEST_SCALE, scale)


def _read(source: Source, reading: dict[str, Any]) -> SeriesSet:
    """Series of a target alone."""
    for name in ("future", "past", "static"):
        if reading.get(name):
            raise ValueError(f"a TirexForecaster reads the target alone; leave out {name}=")
    if not isinstance(source, SeriesSet):
        return read_series(source, **reading)
    if reading:
        raise ValueError(f"{', '.join(reading)} are for a table or a file; a SeriesSet has its own")
    columns = source.columns
    if more := (*columns.future, *columns.past, *columns.static):
        raise ValueError(
            f"a TirexForecaster reads the target alone, but the series have {', '.join(more)}; read them without "
            "future=, past= and static="
        )
    return source
