"""The loss of models over a vocabulary, without the logits of all tokens at once."""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.operator import differentiable_once

ROWS = 256  # whose logits exist at once; with 6,000 tokens they stay in the cache
IGNORED = -100


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignored: int = IGNORED,
    smoothing: float = 0.0,
    other: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The mean cross-entropy of logits `x @ weight.T`, in nats, without ever holding all of them.

    The same as torch's `cross_entropy` of these logits, but a piece of rows at a time: logits of B x T x V numbers, and
    their gradient, are often the largest tensors of a training. Gradients are computed along with the loss.

    Args:
        x: float [..., D].
        weight: float [V, D].
        targets: int64 [...]; rows whose target is `ignored` do not count.
        smoothing: of the targets (arXiv 1512.00567): this share goes evenly to all V.
        other: a second source of targets, with which the logits' share their probability: the log of the share that is
            left to the logits, and the log of the share of the other times the probability it gives to the target,
            both [...]. Smoothing then concerns the logits alone.

    Returns:
        a scalar, float32 or the inputs' dtype if that is wider; NaN if no row counts.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x, weight = (t.to(torch.get_autocast_dtype(kind)) for t in (x, weight))
    x, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    own, others = (None, None) if other is None else (part.reshape(-1) for part in other)
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(x, weight, own, others, targets, ignored, smoothing)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        own: Tensor | None,
        others: Tensor | None,
        targets: Tensor,
        ignored: int,
        smoothing: float,
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        wanted = any(ctx.needs_input_grad[:4])
        dx, dweight = (torch.empty_like(x), torch.zeros_like(weight, dtype=wide)) if wanted else (None, None)
        # How much of a target's probability is the logits', and how much the other's.
        mine, theirs = x.new_ones(len(x), dtype=wide), x.new_zeros(len(x), dtype=wide)
        count = (targets != ignored).sum()
        total = x.new_zeros((), dtype=wide)
        for begin in range(0, len(x), ROWS):
            piece = slice(begin, begin + ROWS)
            rows, target = x[piece], targets[piece]
            there, at = target != ignored, target.masked_fill(target == ignored, 0)[:, None]
            logits = (rows @ weight.T).to(wide)
            most = logits.amax(1, keepdim=True)
            hit, mean = logits.gather(1, at)[:, 0], logits.mean(1)
            exps = logits.sub_(most).exp_()
            sums = exps.sum(1)
            normaliser = sums.log() + most[:, 0]
            likelihood = hit - normaliser
            if own is not None and others is not None:
                alone = own[piece] + likelihood
                likelihood = torch.logaddexp(alone, others[piece])
                mine[piece] = (alone - likelihood).exp()
                theirs[piece] = (others[piece] - likelihood).exp()
            losses = smoothing * (normaliser - mean) - (1 - smoothing) * likelihood
            total += losses.masked_fill(~there, 0).sum()
            if dx is None or dweight is None:
                continue
            share = there.to(wide) / count  # of the mean
            hard = (1 - smoothing) * share * mine[piece]
            soft = smoothing * share
            gradient = exps.mul_(((hard + soft) / sums)[:, None]).sub_(soft[:, None] / len(weight))
            gradient.scatter_add_(1, at, -hard[:, None])
            gradient = gradient.to(rows.dtype)
            dx[piece] = gradient @ weight
            dweight += gradient.T @ rows
        if dx is not None and dweight is not None:
            share = (smoothing - 1) * (targets != ignored).to(wide) / count
            # x and weight, so that a second derivative is refused; not the loss, which loops divide in place.
            ctx.save_for_backward(dx, dweight, share * mine, share * theirs, x, weight)
        return total / count

    @staticmethod
    @differentiable_once("torch.nn.functional.cross_entropy of the logits has one")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, down, dothers, *_ = ctx.saved_tensors
        _, _, own, others, *_ = ctx.needs_input_grad
        return (
            (gradient * dx).to(dx.dtype),
            gradient * dweight,
            gradient * down if own else None,
            gradient * dothers if others else None,
            None,
            None,
            None,
        )
