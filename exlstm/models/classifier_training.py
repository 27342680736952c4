"""How a classifier of texts is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from exlstm.data.text import LabelledBatch, LengthSampler, TokenTexts, batches_by_length
from exlstm.models.classifier import Classifier
from exlstm.train import TrainConfig, TrainResult, derive_seed
from exlstm.train import train as run_training

RECIPE = TrainConfig(steps=600, lr=3e-3, weight_decay=0.05, warmup=0.1, final_lr=0.05, eval_every=50, ema=0.99)
"""How a classifier is trained unless told otherwise; weights are averaged, for few texts are soon known by heart."""
SMOOTHING = 0.1
"""Of the training labels (arXiv 1512.00567)."""
SCORED_AT_ONCE = 64


def fit(
    model: Classifier,
    texts: TokenTexts,
    validation: TokenTexts,
    *,
    batch: int,
    balanced: bool = False,
    train: TrainConfig = RECIPE,
    out: Path | None = None,
    resume: bool = False,
    resume_hint: str = "call fit again with resume=True",
    console: Console | bool = True,
) -> TrainResult:
    """Solve the linear part of `model`, then train its networks on batches of `batch` texts of like lengths, in place.

    The best weights are those of the validation with the lowest loss, at the share of the networks that suits it best;
    without validation texts the last, and half. The texts must have the bags that the model reads. `balanced` weighs
    texts so that every class counts as much as the others.

    Raises:
        ValueError: what `exlstm.train.train` raises.
    """
    weights = class_weights(texts.labels, len(model.config.labels)) if balanced else None
    if model.linear is not None:
        assert texts.bags is not None
        model.linear.solve(texts.bags, texts.labels, weights)
    return run_training(
        model,
        training_loss(weights),
        LengthSampler(texts, batch=batch, seed=derive_seed(train.seed, "texts")),
        train,
        validate=_validate_on(validation) if len(validation) else None,
        out=out,
        resume=resume,
        resume_hint=resume_hint,
        identity={"model": asdict(model.config), "texts": len(texts), "batch": batch, "balanced": balanced},
        console=console if isinstance(console, Console) else None,
        quiet=console is False,
    )


def class_weights(labels: Sequence[int], classes: int) -> Tensor:
    """A weight for each class that is there [classes], with which all count alike and the mean over texts is 1."""
    counts = torch.bincount(torch.tensor([*labels]), minlength=classes).float()
    return torch.where(counts > 0, counts.sum() / (counts.clamp(min=1) * (counts > 0).sum()), 0)


def training_loss(
    weights: Tensor | None = None,
) -> Callable[[nn.Module, LabelledBatch], tuple[Tensor, Mapping[str, float]]]:
    """The mean of the cross-entropies of the networks, in nats, with smoothed labels and weights of the classes."""

    def loss(model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, Mapping[str, float]]:
        batch = _moved(model, batch)
        logits = model(batch.tokens, _mask(batch), bags=batch.bags, apart=True)  # [B, members, classes]
        if batch.bags is not None:
            logits = logits[:, :-1]  # the linear part is not trained
        each = cross_entropy(
            logits.flatten(0, 1).float(),
            batch.labels.repeat_interleave(logits.shape[1]),
            weight=None if weights is None else weights.to(logits.device),
            label_smoothing=SMOOTHING,
            reduction="sum",
        )
        return each / len(batch.labels) / logits.shape[1], {}

    return loss


@torch.no_grad()
def opinions(model: Classifier, texts: TokenTexts) -> Tensor:
    """The logits of each member for each text, the linear part's last, float32 [texts, members, classes]."""
    training = model.training
    model.eval()
    found: dict[int, Tensor] = {}
    for numbers in batches_by_length(texts, SCORED_AT_ONCE):
        batch = _moved(model, texts.batch(numbers))
        logits = model(batch.tokens, _mask(batch), bags=batch.bags, apart=True)
        found |= zip(numbers, logits.float().cpu(), strict=True)
    model.train(training)
    return torch.stack([found[n] for n in range(len(texts))])


def _moved(model: nn.Module, batch: LabelledBatch) -> LabelledBatch:
    return batch.to(next(model.parameters()).device)


def _mask(batch: LabelledBatch) -> Tensor | None:
    # Rows that are all of one length need no mask, and without it less is to be done.
    return None if bool(batch.mask.all()) else batch.mask


def _validate_on(texts: TokenTexts) -> Callable[[nn.Module], dict[str, float]]:
    labels = torch.tensor(texts.labels)

    def validate(model: nn.Module) -> dict[str, float]:
        classifier = cast(Classifier, model)
        logits = opinions(classifier, texts)
        loss = classifier.settle(logits, labels)  # the share is kept with the weights that it is for
        right = (classifier.combine(logits).argmax(-1) == labels).float().mean()
        return {"loss": loss, "accuracy": float(right), "share": float(classifier.share)}

    return validate
