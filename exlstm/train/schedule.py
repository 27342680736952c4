"""How far training is, and the learning rate that belongs there."""

import math
import statistics
import time
from collections import deque

from exlstm.train.config import TrainConfig


def learning_rate(progress: float, warmup: float, final: float) -> float:
    """Fraction of the peak learning rate at `progress` in [0, 1]: a linear rise from 0 over the first
    `warmup` of training, then half a cosine down to `final`."""
    if progress < warmup:
        return progress / warmup
    if progress >= 1:
        return final
    angle = math.pi * (progress - warmup) / (1 - warmup)
    return final + (1 - final) * (1 + math.cos(angle)) / 2


class Clock:
    """The wall time of a run, earlier sessions included, and how far the run is on its budget."""

    def __init__(self, config: TrainConfig, seconds: float = 0.0) -> None:
        self._steps = config.steps or math.inf
        self._seconds = math.inf if config.minutes is None else 60 * config.minutes
        self._start = time.monotonic() - seconds
        self._recent: deque[float] = deque(maxlen=16)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def progress_after(self, step: int) -> float:
        """Fraction of the budget, at most 1, that is used once step number `step` (from 1) is done.

        The larger of the fractions of steps and of time; the step about to run is taken to last as long
        as the median of the recent ones. So the step for which this is 1 is the last one, gets the final
        learning rate, and ends about when the time does.
        """
        expected_end = self.seconds + (statistics.median(self._recent) if self._recent else 0.0)
        return min(1.0, max(step / self._steps, expected_end / self._seconds))

    def record_step(self, seconds: float) -> None:
        """Tell how long a step took, validation and checkpoints aside."""
        self._recent.append(seconds)
