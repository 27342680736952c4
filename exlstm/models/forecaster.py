"""Forecaster: quantile forecasts of series by an extended LSTM over patches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from exlstm.data.series import Batch, Frequency, SeriesSet
from exlstm.models import forecasting
from exlstm.models.forecast_network import LEVELS, Forecast, ForecasterConfig, ForecastNetwork, SeriesKind
from exlstm.models.forecasting import Source
from exlstm.models.saving import Pretrained
from exlstm.train import TrainConfig

if TYPE_CHECKING:
    import pandas as pd

    from exlstm.train import TrainResult


class Forecaster(Pretrained):
    """Forecasts of any number of series, with a quantile for each of `LEVELS` at every step.

    A window becomes residuals against the value one season before (of the seasons and the last value, what
    forecasts best by itself), in units of their usual size. Patches of the residuals, of what other lags say
    instead, of calendar and exogenous columns pass through an extended LSTM; those after the origin carry the
    same without the residuals, so that any horizon can be asked for. Each of them gives quantiles around a
    base that is moved, step by step, towards what the other lags say.

    `Forecaster(config)` or `Forecaster(pattern="ms", width=64, ...)` with the fields of `ForecasterConfig`;
    the network is built by `fit`, to the shapes of the data.
    """

    config_class = ForecasterConfig
    model_type = "forecaster"
    config: ForecasterConfig

    def __init__(self, config: ForecasterConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = replace(config or ForecasterConfig(), **fields)
        self.network = None if self.config.series is None else ForecastNetwork(self.config, self.config.series)
        self.result: TrainResult | None = None
        self.trained_on: SeriesSet | None = None
        self.register_buffer("_device", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the forecaster computes; `.to(device)` moves it, before `fit` too."""
        return self.get_buffer("_device").device

    @property
    def series(self) -> SeriesKind:
        """What the series are that it was fitted to; ValueError if it was not."""
        if self.config.series is None:
            raise ValueError("this forecaster is not trained yet; call fit(df, h), or load one with from_pretrained")
        return self.config.series

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the horizon of windows with `series.history` steps of context (see `exlstm.data.series`)."""
        self.series  # noqa: B018 - raises before training
        assert self.network is not None
        return self.network(batch)

    def fit(
        self,
        df: Source,
        h: int,
        *,
        frequency: Frequency | None = None,
        future: Sequence[str] = (),
        past: Sequence[str] = (),
        static: Sequence[str] = (),
        train: TrainConfig | None = None,
        out: Path | None = None,
        resume: bool = False,
        resume_hint: str = "call fit again with resume=True",
        console: Console | bool = True,
    ) -> "Forecaster":
        """Build the network anew for these series and train it to forecast `h` steps ahead.

        Args:
            df: table, file or `SeriesSet`, as `read_series` takes them; the next four arguments are its, and
                must be left alone for a SeriesSet.
            h: steps to forecast; more or fewer may be asked for later.
            train: how to train; None is `exlstm.models.forecasting.RECIPE`.
            out: folder for checkpoints and metrics, see `exlstm.train.train`, as for `resume`, `resume_hint`.
            console: where to show progress; True: the standard output, False: nowhere.

        Returns:
            self, whose `result` tells how training went.

        Raises:
            ValueError: h is below 1, or the series cannot be read or are too short.
        """
        forecasting.fit(
            self,
            forecasting.read(df, frequency=frequency, future=future, past=past, static=static),
            h,
            train=train or forecasting.RECIPE,
            out=out,
            resume=resume,
            resume_hint=resume_hint,
            console=console,
        )
        return self

    def predict(
        self, df: Source | None = None, h: int | None = None, quantiles: Sequence[float] = LEVELS
    ) -> "pd.DataFrame":
        """Forecast what follows each series.

        Args:
            df: the series so far; None: those of `fit`. Where there are columns known ahead, `df` must go on
                for `h` steps with them and without values. None of the series need have been trained on.
            h: steps to forecast; None: as many as trained for.
            quantiles: between 0.1 and 0.9; those between two trained levels are interpolated linearly.

        Returns:
            a row for each series and step: `unique_id, ds, q0.1, ...`.

        Raises:
            ValueError: h or a quantile is out of range, columns are missing, future rows are missing, or a
                series has no observed value in the steps that a forecast depends on.
        """
        return forecasting.predict(self, df, h, quantiles)

    def cross_validation(
        self,
        df: Source,
        h: int | None = None,
        n_windows: int = 1,
        step_size: int | None = None,
        *,
        quantiles: Sequence[float] = LEVELS,
        fit: bool = True,
        **fit_options: Any,
    ) -> "pd.DataFrame":
        """Forecast the last `n_windows` windows of `h` steps of each series, each from what lies before it.

        Args:
            df: as for `fit`.
            step_size: steps from one origin to the next; None: h.
            fit: train first, once, on what lies before the first origin; False: take the model as it is.
            fit_options: further arguments of `fit`.

        Returns:
            a row for each series, window and step: `unique_id, ds, cutoff, y, q0.1, ...`, cutoff being the
            last time known.

        Raises:
            ValueError: as `fit` and `predict`.
        """
        return forecasting.cross_validation(
            self, df, h, n_windows, step_size, quantiles=quantiles, train_first=fit, fit_options=fit_options
        )
