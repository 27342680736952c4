"""How a language model is trained."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from exlstm.data.text import TokenBatch, Tokens, Windows, pieces
from exlstm.models.language import LanguageModel
from exlstm.train import TrainConfig, TrainResult, derive_seed
from exlstm.train import train as run_training

RECIPE = TrainConfig(steps=500, lr=2e-3, weight_decay=0.1, warmup=0.05, final_lr=0.1, eval_every=100)
"""How a language model is trained unless told otherwise."""
ROWS, PIECE = 16, 512
"""Streams into which text to score is cut, and tokens of each that are read at once."""
MOST_VALIDATED = 200_000
"""Tokens of the validation part that are scored while training."""


def fit(
    model: LanguageModel,
    tokens: Tokens,
    validation: Tokens,
    *,
    batch: int,
    time: int,
    train: TrainConfig = RECIPE,
    out: Path | None = None,
    resume: bool = False,
    resume_hint: str = "call fit again with resume=True",
    console: Console | bool = True,
) -> TrainResult:
    """Train `model` in place on windows of `time` tokens, `batch` of them a step.

    The best weights are those of the validation with the lowest loss; without validation tokens the last.

    Raises:
        ValueError: there is less text than one window, or what `exlstm.train.train` raises.
    """
    windows = Windows(tokens, batch=batch, time=time, seed=derive_seed(train.seed, "windows"))
    return run_training(
        model,
        token_loss,
        windows,
        train,
        validate=_validate_on(validation) if len(validation) > ROWS else None,
        out=out,
        resume=resume,
        resume_hint=resume_hint,
        identity={"model": asdict(model.config), "data": tokens.about.digest, "batch": batch, "length": time},
        console=console if isinstance(console, Console) else None,
        quiet=console is False,
    )


def token_loss(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Mapping[str, float]]:
    """Mean cross-entropy of the next token, in nats."""
    device = next(model.parameters()).device
    tokens, targets, reset = (x.to(device) for x in batch)
    logits, _ = model(tokens, reset=reset if bool(reset[:, 1:].any()) else None)
    return cross_entropy(logits.flatten(0, 1).float(), targets.flatten()), {}


@torch.no_grad()
def total_loss(model: LanguageModel, tokens: Tokens, *, most: int | None = None) -> tuple[float, int]:
    """The sum of the cross-entropy of the tokens in nats, and how many; of the first `most` or a few more.

    The text is read from beginning to end with the state carried, in `ROWS` streams.
    """
    device = next(model.parameters()).device
    total, count, state = 0.0, 0, None
    for batch in pieces(tokens, rows=min(ROWS, len(tokens) - 1), time=PIECE):
        x, targets, reset = (part.to(device) for part in batch)
        logits, state = model(x, state, reset=reset if bool(reset.any()) else None)
        total += float(cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum"))
        count += targets.numel()
        if most is not None and count >= most:
            break
    return total, count


def _validate_on(tokens: Tokens) -> Callable[[nn.Module], dict[str, float]]:
    def validate(model: nn.Module) -> dict[str, float]:
        total, count = total_loss(cast(LanguageModel, model), tokens, most=MOST_VALIDATED)
        return {"loss": total / count}

    return validate
