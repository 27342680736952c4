"""What a training run is asked to do."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """How to train. One step is one update of the weights, made of `accumulate` micro batches.

    Raises ValueError when a value is outside its range or when the run would never end.
    """

    steps: int | None = 1000
    """Steps to train for; None: as many as `minutes` allow."""
    minutes: float | None = None
    """Wall time to train for; whichever of `steps` and `minutes` comes first ends training."""
    seed: int = 0
    """Seed of what is random inside the model while training, such as dropout."""
    lr: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: float = 1e-8
    """AdamW's denominator offset."""
    weight_decay: float = 0.1
    """Decoupled weight decay, applied to matrices only."""
    warmup: float = 0.05
    """Fraction of training during which the learning rate rises linearly to `lr`."""
    final_lr: float = 0.1
    """Learning rate of the last step, as a fraction of `lr`; a cosine leads there."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0: no clipping."""
    accumulate: int = 1
    """Micro batches per step; gradients are averaged over them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the forward pass under autocast; weights and optimiser stay float32."""
    compile: bool = False
    """Run the model through torch.compile."""
    eval_every: int = 100
    """Steps between validations; the last step is always validated."""
    patience: int | None = None
    """Validations in a row without a better loss after which training stops; None: never."""
    save_every: int = 500
    """Steps between checkpoints; one is always saved at the end."""
    keep: int = 2
    """Checkpoints kept; older ones are deleted."""
    log_every: int = 10
    """Steps averaged into one line of the metrics."""
    ema: float = 0.0
    """Decay per step of a moving average of the weights, which is then validated and kept; 0: off."""
    max_bad_steps: int = 10
    """Steps in a row with a loss or gradient that is not finite after which training gives up."""

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("training would never end: expected steps or minutes, got neither")
        _require("minutes", self.minutes, self.minutes is None or 0 < self.minutes < math.inf, "above 0")
        optional_counts = {"steps": self.steps, "patience": self.patience}
        counts = {
            name: getattr(self, name)
            for name in ("accumulate", "eval_every", "save_every", "keep", "log_every", "max_bad_steps")
        }
        for name, value in {**optional_counts, **counts}.items():
            _require(name, value, value is None or value >= 1, "at least 1")
        for name in ("lr", "eps"):
            _require(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "above 0")
        for name in ("weight_decay", "clip", "seed"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("warmup", "final_lr"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "between 0 and 1")
        _require("betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        _require("ema", self.ema, 0 <= self.ema < 1, "in [0, 1)")
        _require("precision", self.precision, self.precision in ("float32", "bfloat16"), "'float32' or 'bfloat16'")


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"expected {name} to be {expected}, got {value!r}")
