"""The training loop: one function in plain PyTorch, to be read from top to bottom."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from exlstm.train.average import WeightAverage
from exlstm.train.carry import Carry
from exlstm.train.config import TrainConfig
from exlstm.train.files import plain
from exlstm.train.memory import peak_memory
from exlstm.train.metrics import MetricsLog
from exlstm.train.optim import make_optimizer
from exlstm.train.progress import Display
from exlstm.train.schedule import Clock, learning_rate
from exlstm.train.seeds import derive_seed, seed_device
from exlstm.train.signals import StopSignals
from exlstm.train.state import LoopState, Saver, Weights, Window

Batch = TypeVar("Batch")
Metrics = Mapping[str, Any]
LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, Metrics]]


class DivergedError(RuntimeError):
    """The loss or its gradient was not finite for too many steps in a row."""


@dataclass(frozen=True)
class TrainResult:
    """What came of a training run; the model itself is left with its best weights."""

    steps: int
    """Steps done, earlier sessions and skipped steps included."""
    stopped_by: str
    """"steps", "minutes", "patience" or "interrupt"."""
    best_step: int | None
    """Step of the best validation; None without one."""
    best: dict[str, float | None]
    """Metrics of the best validation; empty without one."""
    history: list[dict[str, Any]]
    """The records of metrics.jsonl."""
    seconds: float
    """Wall time of training, earlier sessions included."""
    skipped: int
    """Steps left out because their loss or gradient was not finite."""
    peak_bytes: int
    """Most memory held: by the GPU's tensors if the model is on one, else by this process."""

    @property
    def interrupted(self) -> bool:
        return self.stopped_by == "interrupt"


def train(
    model: nn.Module,
    loss_fn: LossFunction[Batch],
    batches: Callable[[int], Batch],
    config: TrainConfig,
    *,
    validate: Callable[[nn.Module], Metrics] | None = None,
    carry: Carry | None = None,
    out: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    resume_hint: str = "call train again with resume=True",
    tensorboard: bool = True,
    console: Console | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train `model` in place and leave it in evaluation mode with its best weights.

    The best weights are those of the validation with the lowest loss; without `validate` the last ones. With
    `config.ema` the averaged weights are validated and kept instead of the raw ones.

    Args:
        loss_fn: gives the mean loss of a batch, a scalar tensor, and further numbers to log. It also moves
            the batch to the model's device.
        batches: gives micro batch `n = step * accumulate + j` (step from 0, j < accumulate). It must be a
            pure function of n, so that a resumed run sees what an uninterrupted one does. The gradient is
            that of the mean of the micro batches' losses.
        validate: gives metrics of the model, of which "loss" decides what is best. It runs without gradients
            and in evaluation mode.
        carry: what `loss_fn` keeps from step to step, to be saved in checkpoints and brought back by `resume`.
        out: folder for `metrics.jsonl`, `tensorboard/` and `checkpoints/`; None: nothing is written.
        resume: continue from the newest good checkpoint in `out`, bit for bit like a run that was never
            interrupted (same thread count); from the start when there is none. Only `steps`, `minutes`,
            `save_every` and `keep` may differ from the interrupted run's config; a new length refits the
            learning rate's schedule from here on.
        identity: what else must be equal on resume, such as the model's config and the data's digest.
        resume_hint: how to resume, told to a person who interrupts training.

    The first SIGINT or SIGTERM finishes the step, saves a checkpoint and returns with `interrupted` set; a
    second SIGINT raises KeyboardInterrupt at once. A step whose loss or gradient is not finite changes no
    weight and is logged as "skipped".

    Raises ValueError for unusable arguments and for a checkpoint that does not belong to this run,
    DivergedError after `config.max_bad_steps` skipped steps in a row, and OSError when a file cannot be
    written.
    """
    optimizer = make_optimizer(model, config)
    average = WeightAverage(model, config.ema) if config.ema else None
    saver = Saver(out / "checkpoints" if out else None, model, optimizer, average, carry, config, identity or {})
    state, best_weights = LoopState(), None
    if resume:
        state, best_weights = saver.restore()
    else:
        saver.require_empty()

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = parameters[0].device
    forward = cast(nn.Module, torch.compile(model)) if config.compile else model
    clock = Clock(config, state.seconds)
    done = clock.progress_after(state.step)
    display = Display(config.steps, step=state.step, progress=done, console=console, quiet=quiet)
    log = MetricsLog(out, resume_step=state.step, tensorboard=tensorboard)
    stop = StopSignals("" if quiet else "Stopping after this step; press Ctrl-C again to quit at once.")
    interrupted = False

    with display, log, stop:
        if resume:
            display.note(_greeting(state))
        while state.finished is None and not interrupted:
            begin = time.monotonic()
            progress = clock.progress_after(state.step + 1)
            lr = config.lr * learning_rate(progress, config.warmup, config.final_lr)
            for group in optimizer.param_groups:
                group["lr"] = lr

            model.train()
            seed_device(device, derive_seed(config.seed, state.step))
            first = state.step * config.accumulate
            micro_batches = map(batches, range(first, first + config.accumulate))
            values = _accumulate(loss_fn, forward, micro_batches, config)
            norm = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf).item()
            healthy = math.isfinite(values["loss"]) and math.isfinite(norm)
            if healthy:
                optimizer.step()
                if average is not None:
                    average.update()
                state.window.add({**values, "grad_norm": norm})
            optimizer.zero_grad()
            if carry is not None:
                carry.settle(healthy)
            state.count_step(healthy)
            clock.record_step(time.monotonic() - begin)
            display.update(state.step, progress, values["loss"] if healthy else None)

            if not healthy:
                bad = {"loss": values["loss"], "grad_norm": norm, "first_batch": first}
                log.write("skipped", state.step, bad)
                if state.bad_steps >= config.max_bad_steps:
                    raise DivergedError(
                        f"the loss or its gradient was not finite in {state.bad_steps} steps in a row, up to "
                        f"step {state.step}: {bad}; lower lr, now {config.lr:g}, or check the data"
                    )
            if progress >= 1:
                state.finished = "steps" if state.step == config.steps else "minutes"
            if state.window.sums and (state.finished or state.step % config.log_every == 0):
                log.write("train", state.step, {**state.window.means(), "lr": lr, "seconds": clock.seconds})
                state.window = Window()

            if validate is not None and (state.finished or state.step % config.eval_every == 0):
                with average.applied() if average is not None else nullcontext():
                    metrics = _validate(validate, model, config)
                    if state.record_validation(metrics):
                        best_weights = _copy_weights(model)
                log.write("validation", state.step, metrics)
                display.validated(metrics["loss"], state.best.get("loss"))
                if config.patience is not None and state.stale >= config.patience and not state.finished:
                    state.finished = "patience"

            interrupted = stop.requested
            state.seconds = clock.seconds
            if state.finished or interrupted or state.step % config.save_every == 0:
                log.sync()
                saved = saver.save(state, best_weights)
                if interrupted:
                    display.note(_farewell(state.step, saved, resume_hint))

    if best_weights is None and average is not None:
        with average.applied():
            best_weights = _copy_weights(model)
    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.eval()
    return TrainResult(
        steps=state.step,
        stopped_by="interrupt" if interrupted else str(state.finished),
        best_step=state.best_step,
        best=state.best,
        history=log.history,
        seconds=state.seconds,
        skipped=state.skipped,
        peak_bytes=peak_memory(device),
    )


def _accumulate(
    loss_fn: LossFunction[Batch], model: nn.Module, batches: Iterable[Batch], config: TrainConfig
) -> dict[str, float]:
    """Accumulate the gradient of the micro batches' mean loss; return the means of loss and metrics."""
    window = Window()
    for batch in batches:
        with _autocast(model, config):
            loss, metrics = loss_fn(model, batch)
        if loss.ndim or not loss.requires_grad:
            raise ValueError(
                "expected loss_fn to return a scalar loss that depends on the model's parameters, got "
                f"shape {tuple(loss.shape)} with requires_grad={loss.requires_grad}"
            )
        (loss / config.accumulate).backward()
        window.add({name: torch.as_tensor(value).item() for name, value in {**metrics, "loss": loss}.items()})
    return window.means()


def _validate(validate: Callable[[nn.Module], Metrics], model: nn.Module, config: TrainConfig) -> dict[str, Any]:
    model.eval()
    with torch.no_grad(), _autocast(model, config):
        metrics = plain(validate(model))
    if "loss" not in metrics:
        raise ValueError(f"expected validate to return a dict with 'loss', got the keys {sorted(metrics)}")
    return metrics


def _autocast(model: nn.Module, config: TrainConfig) -> torch.autocast:
    device = next(model.parameters()).device
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def _copy_weights(model: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _greeting(state: LoopState) -> str:
    if state.finished:
        return f"nothing left to train: the run ended after step {state.step} ({state.finished})"
    return f"resuming after step {state.step}" if state.step else "no checkpoint yet: starting from the beginning"


def _farewell(step: int, saved: Path | None, resume_hint: str) -> str:
    if saved is None:
        return f"interrupted after step {step}; nothing is saved, since no folder was given"
    return f"interrupted after step {step}; saved in {saved}; to resume: {resume_hint}"
