"""How a language model is trained."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

from exlstm.data.text import Streams, Tokens, Windows, pieces
from exlstm.models.language import LanguageModel
from exlstm.models.language_loss import CarriedLoss, token_loss
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
    carry: bool = False,
    train: TrainConfig = RECIPE,
    out: Path | None = None,
    resume: bool = False,
    resume_hint: str = "call fit again with resume=True",
    console: Console | bool = True,
) -> TrainResult:
    """Train `model` in place on windows of `time` tokens, `batch` of them a step.

    The best weights are those of the validation with the lowest loss; without validation tokens the last.

    Args:
        carry: the windows of a step follow those of the step before, and begin with the memory these left (truncated
            backpropagation through time); otherwise windows come from anywhere and begin with an empty memory.
            Hierarchical memories that are not empty at first go the slower way of the backend "torch".

    Raises:
        ValueError: there is less text than one window, with `carry` than one step takes, or what
            `exlstm.train.train` raises.
    """
    seed = derive_seed(train.seed, "windows")
    carried = CarriedLoss(model, train.accumulate) if carry else None
    batches = (
        Streams(tokens, batch=batch, time=time, seed=seed, accumulate=train.accumulate)
        if carry
        else Windows(tokens, batch=batch, time=time, seed=seed)
    )
    return run_training(
        model,
        carried or token_loss,
        batches,
        train,
        carry=carried,
        validate=_validate_on(validation) if len(validation) > ROWS else None,
        out=out,
        resume=resume,
        resume_hint=resume_hint,
        identity={
            "model": asdict(model.config),
            "data": tokens.about.digest,
            "batch": batch,
            "length": time,
            "carry": carry,
        },
        console=console if isinstance(console, Console) else None,
        quiet=console is False,
    )


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
