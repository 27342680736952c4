"""Everything a training run is made of, to a checkpoint and back, so that it resumes to the bit."""

import math
import platform
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exlstm.train.average import WeightAverage
from exlstm.train.carry import Carry
from exlstm.train.checkpoint import (
    CheckpointError,
    checkpoint_paths,
    delete_after,
    delete_leftovers,
    keep_last,
    latest_checkpoint,
    save_checkpoint,
)
from exlstm.train.config import TrainConfig
from exlstm.train.files import differences

Weights = dict[str, Tensor]

# Settings that a resumed run may change: how long it lasts and what it keeps.
_MAY_CHANGE = ("steps", "minutes", "save_every", "keep")


@dataclass
class Window:
    """Sums of the metrics seen since the last line of the log."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The mean of each metric over the steps that gave it."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Window":
        """The inverse of `plain(asdict(window))`, where sums that are not finite became None."""
        sums = {name: math.nan if total is None else total for name, total in saved["sums"].items()}
        return cls(sums, dict(saved["counts"]))


@dataclass
class LoopState:
    """What the loop carries from one step to the next, tensors aside."""

    step: int = 0
    seconds: float = 0.0
    finished: Literal["steps", "minutes", "patience"] | None = None
    best_step: int | None = None
    best: dict[str, float | None] = field(default_factory=dict)
    stale: int = 0  # validations since the best one
    bad_steps: int = 0  # in a row, up to now
    skipped: int = 0  # bad steps altogether
    window: Window = field(default_factory=Window)

    def count_step(self, healthy: bool) -> None:
        """A step is done; a bad one, whose loss or gradient was not finite, changed no weight."""
        self.step += 1
        self.bad_steps = 0 if healthy else self.bad_steps + 1
        self.skipped += not healthy

    def record_validation(self, metrics: Mapping[str, float | None]) -> bool:
        """Whether this validation is the best so far; one whose loss is not finite never is."""
        loss, best = metrics["loss"], self.best.get("loss")
        improved = loss is not None and (best is None or loss < best)
        if improved:
            self.best_step, self.best = self.step, dict(metrics)
        self.stale = 0 if improved else self.stale + 1
        return improved

    def finish_by_budget(self, config: TrainConfig) -> None:
        """Decide anew, under a budget that was changed, whether it is used up."""
        if self.finished == "patience":
            return
        self.finished = None
        if config.steps is not None and self.step >= config.steps:
            self.finished = "steps"
        elif config.minutes is not None and self.seconds >= 60 * config.minutes:
            self.finished = "minutes"


class Saver:
    """Writes the run's checkpoints into `directory` (None: nowhere) and restores the run from them.

    `identity` is whatever else must be the same on resume: what the model and the data are.
    """

    def __init__(
        self,
        directory: Path | None,
        model: nn.Module,
        optimizer: Optimizer,
        average: WeightAverage | None,
        carry: Carry | None,
        config: TrainConfig,
        identity: Mapping[str, Any],
    ) -> None:
        self.directory = directory
        self._model = model
        self._optimizer = optimizer
        self._average = average
        self._carry = carry
        self._config = config
        self._identity = identity

    def require_empty(self) -> None:
        """Raises ValueError when another run's checkpoints are in the way."""
        if self.directory is not None and checkpoint_paths(self.directory):
            raise ValueError(f"{self.directory} holds another run's checkpoints: resume it or choose another folder")

    def save(self, state: LoopState, best: Weights | None) -> Path | None:
        """Write the checkpoint of this step and delete those too old; None when there is nowhere to write."""
        if self.directory is None:
            return None
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": self._model.state_dict(),
            "optimizer": optimizer_tensors(self._model, self._optimizer),
        }
        if self._average is not None:
            tensors["average"] = self._average.weights
        if self._carry is not None:
            tensors["carry"] = self._carry.tensors()
        if best is not None:
            tensors["best"] = best
        content = {
            "config": asdict(self._config),
            "identity": self._identity,
            "environment": _environment(),
            "loop": asdict(state),
            "average_updates": self._average.updates if self._average is not None else 0,
        }
        path = save_checkpoint(self.directory, state.step, tensors, content)
        keep_last(self.directory, self._config.keep)
        return path

    def restore(self) -> tuple[LoopState, Weights | None]:
        """Bring model, optimiser, average and carry to the newest good checkpoint; a fresh state when there is none.

        Raises ValueError listing what differs when it was made with other settings or another identity.
        """
        if self.directory is None:
            raise ValueError("expected the folder of the run to resume, got out=None")
        delete_leftovers(self.directory)
        checkpoint = latest_checkpoint(self.directory)
        if checkpoint is None:
            return LoopState(), None
        saved, tensors = checkpoint.state, checkpoint.tensors
        try:
            self._require_same(checkpoint.path, saved)
            loop = saved["loop"]
            state = LoopState(**{**loop, "window": Window.from_json(loop["window"])})
            if any(saved["config"][name] != getattr(self._config, name) for name in ("steps", "minutes")):
                state.finish_by_budget(self._config)
            self._model.load_state_dict(tensors["model"])
            load_optimizer_tensors(self._model, self._optimizer, tensors["optimizer"])
            if self._average is not None:
                self._average.load(tensors["average"], saved["average_updates"])
            if self._carry is not None:
                self._carry.load(tensors["carry"])
        except (RuntimeError, KeyError, TypeError) as error:
            raise CheckpointError(f"checkpoint {checkpoint.path} does not fit this run: {error}") from error
        delete_after(self.directory, state.step)
        device = next(self._model.parameters()).device
        best = {name: tensor.to(device, copy=True) for name, tensor in tensors.get("best", {}).items()}
        return state, best or None

    def _require_same(self, path: Path, saved: Mapping[str, Any]) -> None:
        def fixed(config: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in config.items() if name not in _MAY_CHANGE}

        changed = differences(fixed(saved["config"]), fixed(asdict(self._config)))
        changed += differences(saved["identity"], self._identity)
        if changed:
            raise ValueError(f"cannot resume from {path} with other settings ({'; '.join(changed)}); start a new run")
        environment = differences(saved["environment"], _environment())
        if environment:
            warnings.warn(
                f"resuming in another environment ({'; '.join(environment)}): the last bits may differ from "
                "those of a run that was never interrupted",
                stacklevel=2,
            )


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> Weights:
    """The optimiser's state as flat tensors named `parameter/slot`."""
    return {
        f"{name}/{slot}": tensor
        for name, parameter in model.named_parameters()
        for slot, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: Weights) -> None:
    """The inverse of `optimizer_tensors`. Raises KeyError for a parameter the model has not."""
    parameters = dict(model.named_parameters())
    ordered = (parameter for group in optimizer.param_groups for parameter in group["params"])
    position = {parameter: index for index, parameter in enumerate(ordered)}
    state: dict[int, Weights] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition("/")
        state.setdefault(position[parameters[name]], {})[slot] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _environment() -> dict[str, Any]:
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
