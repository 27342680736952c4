"""`ForecastRegressor`: an extended LSTM as a scikit-learn regressor that continues histories."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from exlstm.data.series import Batch, scale_statistics
from exlstm.interop.sklearn.estimator import AT_ONCE, NetworkEstimator
from exlstm.interop.sklearn.sequences import FloatArray, centre_and_spread
from exlstm.interop.sklearn.windows import describe_windows, make_windows, some
from exlstm.models.forecast_network import LEVELS, ForecasterConfig
from exlstm.models.forecaster import Forecaster
from exlstm.models.forecasting import RECIPE, pinball_loss
from exlstm.models.mixing import mix
from exlstm.train import derive_seed

_HISTORIES = {"dtype": np.float64, "allow_nd": True, "ensure_all_finite": "allow-nan"}


class ForecastRegressor(RegressorMixin, NetworkEstimator):
    """What follows a history, as quantiles, by the network of `exlstm.Forecaster`, on the CPU.

    X is an array [n, T] of histories, or [n, T, features] whose first feature is the one to go on and whose others
    are known beside it; NaN marks what was not observed. y [n, h] (or [n] for one step) is what follows, in the units
    of the first feature. Every history is standardised by itself, so that a forecast moves with its level and size;
    and the season is looked for among the lags that a history passes through twice, so give it two or more.

    `numpy.lib.stride_tricks.sliding_window_view(series, T + h)` cuts a series into such rows, and
    `TimeSeriesSplit(gap=h)` splits them so that no target is trained on that is forecast.

    Half-hourly electricity demand (the sample that comes with exlstm), a day ahead from two weeks, on the last two
    weeks: mean absolute error 343 MW, the week before repeated 490 MW (docs/sklearn.md has the lines that give both).

    Args:
        pattern: the blocks (see `exlstm.models.parse_pattern`).
        width: of the network, a multiple of `heads`.
        heads: heads of every block.
        dropout: probability with which numbers inside the network are dropped in training.
        mixing: how far training rows are varied by the differences of others, so that a short series is not learnt by
            heart; 0: not at all, as for rows that are no windows of like series.
        max_iter: training steps.
        learning_rate: the highest; it rises to this and then falls.
        batch_size: histories in a training step.
        random_state: seed of all that is random, for the same result again; None: another at every fit.
        verbose: whether to show progress on the standard output.

    Attributes:
        n_features_in_: T, the steps of a history.
        model_: the `Forecaster`; `model_.series` tells the lags that were found.
        n_iter_: training steps done.
    """

    def __init__(
        self,
        pattern: str = "ms",
        *,
        width: int = 64,
        heads: int = 4,
        dropout: float = 0.1,
        mixing: float = 1.0,
        max_iter: int = 300,
        learning_rate: float = 2e-3,
        batch_size: int = 64,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.pattern = pattern
        self.width = width
        self.heads = heads
        self.dropout = dropout
        self.mixing = mixing
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train anew.

        Args:
            X: histories [n, T] or [n, T, features], see above.
            y: what follows them [n, h] or [n].

        Raises:
            ValueError, TypeError: X, y or parameters are not as above.
        """
        X, y = validate_data(self, X, y, reset=True, multi_output=True, y_numeric=True, **_HISTORIES)
        self._many = y.ndim == 2
        X, centre, spread = _standardised(X)
        y = (y.reshape(len(y), -1) - centre) / spread
        kind = describe_windows(X, y)
        config = ForecasterConfig(
            pattern=self.pattern,
            width=self.width,
            heads=self.heads,
            dropout=self.dropout,
            mixing=self.mixing,
            members=1,
            series=kind,
        )
        windows = make_windows(X, y, kind, torch.float32)
        return self._train(
            lambda: _build(config, windows),
            pinball_loss,
            lambda seed: _sampler(windows, self.batch_size, seed, config.mixing),
            RECIPE,
        )

    def predict(self, X: Any) -> FloatArray:
        """The median of what follows, [n, h], or [n] after a `fit` with such a y. Raises as `fit`."""
        return self._quantiles(X)[..., LEVELS.index(0.5)]

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = LEVELS) -> FloatArray:
        """Quantiles of what follows.

        Args:
            X: histories as in `fit`.
            quantiles: Q levels between 0.1 and 0.9; those between two tenths are interpolated linearly.

        Returns:
            [n, h, Q], or [n, Q] after a `fit` with y [n].

        Raises:
            ValueError: as `fit`, or a level is out of range.
        """
        levels = np.atleast_1d(np.asarray(quantiles, dtype=np.float64))
        if levels.ndim != 1 or not ((levels >= LEVELS[0]) & (levels <= LEVELS[-1])).all():
            raise ValueError(
                f"expected quantiles between {LEVELS[0]} and {LEVELS[-1]}, for which the network is trained, "
                f"received {quantiles}"
            )
        shares = [np.interp(levels, LEVELS, one) for one in np.eye(len(LEVELS))]
        return self._quantiles(X) @ np.stack(shares)

    @torch.no_grad()
    def _quantiles(self, X: Any) -> FloatArray:
        """The quantiles at `LEVELS`, [n, h, 9] or [n, 9]."""
        check_is_fitted(self)
        X, centre, spread = _standardised(validate_data(self, X, reset=False, **_HISTORIES))
        model, kind = self._exact(), self.model_.config.series
        if X.shape[2] != 1 + len(kind.columns.past):
            raise ValueError(
                f"X has {X.shape[2]} features in a step, but {type(self).__name__} is expecting "
                f"{1 + len(kind.columns.past)}, as in fit"
            )
        windows = make_windows(X, None, kind, torch.float64)
        parts = [model(some(windows, slice(n, n + AT_ONCE))).quantiles[:, 0] for n in range(0, len(X), AT_ONCE)]
        found = centre[..., None] + spread[..., None] * torch.cat(parts).numpy()
        return found if self._many else found[:, 0]


def _standardised(X: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Histories [n, T, features] whose first feature is in units of its own, and the centre and spread [n, 1] of it."""
    if not 2 <= X.ndim <= 3 or 0 in X.shape:
        raise ValueError(f"expected X of histories [n, T] or [n, T, features], received shape {X.shape}")
    X = X.reshape(*X.shape[:2], -1)
    history = X[:, :, 0]
    if (unknown := np.isnan(history).all(1)).any():
        raise ValueError(f"expected a value in every history, received only NaN in row {unknown.argmax()} of X")
    centre, spread = centre_and_spread(history, axis=1)
    return np.dstack([(history - centre) / spread, X[:, :, 1:]]), centre, spread


def _build(config: ForecasterConfig, windows: Batch) -> Forecaster:
    """A forecaster whose units of other features are what these spread over in the windows."""
    forecaster = Forecaster(config)
    assert forecaster.network is not None
    scaling = forecaster.network.past_scaling
    columns, known = (tensor.flatten(0, 1).T for tensor in (windows.past, windows.past_mask))
    if len(columns):
        scaling.centre, scaling.scale = scale_statistics(columns, known)
    return forecaster


def _sampler(windows: Batch, size: int, seed: int, mixing: float) -> Callable[[int], Batch]:
    """Training batches of random windows, each a function of the step, varied as in `exlstm.models.mixing`.

    There windows are mixed in phase, for the sake of their calendars; here there are none.
    """
    seed = derive_seed(seed, "windows")

    def batch(step: int) -> Batch:
        random = np.random.default_rng((seed, step))
        chosen, plus, minus = (
            some(windows, torch.from_numpy(random.integers(len(windows.y), size=size))) for _ in range(3)
        )
        amount = random.uniform(-mixing, mixing, size)
        return mix(chosen, plus, minus, torch.from_numpy(amount.astype(np.float32)))

    return batch
