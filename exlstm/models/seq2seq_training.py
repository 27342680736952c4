"""How a sequence-to-sequence model is trained."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor, nn

from exlstm.data.text import PAD, LengthSampler, PairBatch, TokenPairs, batches_by_length
from exlstm.models.seq2seq import Seq2Seq
from exlstm.train import TrainConfig, TrainResult, derive_seed
from exlstm.train import train as run_training

RECIPE = TrainConfig(steps=2000, lr=2e-3, weight_decay=0.05, warmup=0.1, final_lr=0.05, eval_every=250)
"""How a sequence-to-sequence model is trained unless told otherwise."""
SMOOTHING = 0.1
"""Of the training labels (arXiv 1512.00567)."""
SCORED_AT_ONCE = 64


def fit(
    model: Seq2Seq,
    pairs: TokenPairs,
    validation: TokenPairs,
    *,
    batch: int,
    train: TrainConfig = RECIPE,
    out: Path | None = None,
    resume: bool = False,
    resume_hint: str = "call fit again with resume=True",
    console: Console | bool = True,
) -> TrainResult:
    """Train `model` in place on batches of `batch` pairs of like lengths.

    The best weights are those of the validation with the lowest loss; without validation pairs the last.

    Raises:
        ValueError: what `exlstm.train.train` raises.
    """
    return run_training(
        model,
        smoothed_loss,
        LengthSampler(pairs, batch=batch, seed=derive_seed(train.seed, "pairs")),
        train,
        validate=_validate_on(validation) if len(validation) else None,
        out=out,
        resume=resume,
        resume_hint=resume_hint,
        identity={"model": asdict(model.config), "pairs": len(pairs), "batch": batch},
        console=console if isinstance(console, Console) else None,
        quiet=console is False,
    )


def smoothed_loss(model: nn.Module, batch: PairBatch) -> tuple[Tensor, Mapping[str, float]]:
    """Mean cross-entropy of the target's tokens, in nats, with smoothed labels."""
    return _loss(model, batch, SMOOTHING), {}


@torch.no_grad()
def mean_loss(model: Seq2Seq, pairs: TokenPairs) -> float:
    """Mean cross-entropy of all targets' tokens, in nats."""
    total, count = 0.0, 0
    for numbers in batches_by_length(pairs, SCORED_AT_ONCE):
        batch = pairs.batch(numbers)
        tokens = int((batch.labels != PAD).sum())
        total += float(_loss(model, batch, 0.0)) * tokens
        count += tokens
    return total / count


def _loss(model: nn.Module, batch: PairBatch, smoothing: float) -> Tensor:
    batch = batch.to(next(model.parameters()).device)
    # Rows that are all of one length need no masks, and without them less is to be done.
    source_mask, target_mask = (None if bool(m.all()) else m for m in (batch.source_mask, batch.target_mask))
    return model(
        batch.source, batch.target, source_mask, target_mask, labels=batch.labels, ignored=PAD, smoothing=smoothing
    )


def _validate_on(pairs: TokenPairs) -> Callable[[nn.Module], dict[str, float]]:
    def validate(model: nn.Module) -> dict[str, float]:
        return {"loss": mean_loss(cast(Seq2Seq, model), pairs)}

    return validate
