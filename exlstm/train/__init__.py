"""Training: the loop, its optimiser and schedule, checkpoints, metrics. It knows no model and no data format.

Names are imported when first used, so that a command line can offer `TrainConfig` without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from exlstm.train.config import TrainConfig

if TYPE_CHECKING:
    from exlstm.train.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
    from exlstm.train.loop import DivergedError, TrainResult, train
    from exlstm.train.memory import peak_memory
    from exlstm.train.metrics import read_metrics
    from exlstm.train.optim import decay_groups, make_optimizer
    from exlstm.train.schedule import learning_rate
    from exlstm.train.seeds import derive_seed, seed_everything

__all__ = [
    "CheckpointError",
    "DivergedError",
    "TrainConfig",
    "TrainResult",
    "decay_groups",
    "derive_seed",
    "latest_checkpoint",
    "learning_rate",
    "load_checkpoint",
    "make_optimizer",
    "peak_memory",
    "read_metrics",
    "save_checkpoint",
    "seed_everything",
    "train",
]

_HOME = {
    "checkpoint": ("CheckpointError", "latest_checkpoint", "load_checkpoint", "save_checkpoint"),
    "loop": ("DivergedError", "TrainResult", "train"),
    "memory": ("peak_memory",),
    "metrics": ("read_metrics",),
    "optim": ("decay_groups", "make_optimizer"),
    "schedule": ("learning_rate",),
    "seeds": ("derive_seed", "seed_everything"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
