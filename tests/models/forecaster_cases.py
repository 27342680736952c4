"""Series made for tests, and a forecaster that trains on them in a second."""

import numpy as np
import pandas as pd

from exlstm.models.forecaster import Forecaster
from exlstm.train import TrainConfig

QUICK = TrainConfig(steps=8, lr=2e-3, ema=0.9, eval_every=4)
DAY = 24


def hourly(days: int = 12, *, names: tuple[str, ...] = ("a",), seed: int = 7, noise: float = 0.3) -> pd.DataFrame:
    """Hourly series with a daily wave, of different levels and sizes."""
    random = np.random.default_rng(seed)
    steps = days * DAY
    time = np.arange(steps)
    frames = []
    for place, name in enumerate(names):
        wave = 10.0 ** (place + 1) * (3 + np.sin(2 * np.pi * time / DAY) + noise * random.standard_normal(steps))
        ds = pd.date_range("2024-01-01", periods=steps, freq="h")
        frames.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": wave}))
    return pd.concat(frames, ignore_index=True)


def small(**fields: object) -> Forecaster:
    """A forecaster with few weights."""
    return Forecaster(**{"pattern": "ms", "width": 16, "heads": 2, "members": 2, **fields})


def fitted(frame: pd.DataFrame, h: int = 12, train: TrainConfig = QUICK, **options: object) -> Forecaster:
    return small().fit(frame, h, train=train, console=False, **options)


def quantile_values(table: pd.DataFrame) -> np.ndarray:
    """[rows, quantiles]"""
    return table[[name for name in table if name.startswith("q0")]].to_numpy()
