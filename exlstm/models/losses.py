"""The loss of models over a vocabulary, without the logits of all tokens at once."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 256  # whose logits exist at once; with 6,000 tokens they stay in the cache
IGNORED = -100


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignored: int = IGNORED, smoothing: float = 0.0
) -> Tensor:
    """The mean cross-entropy of logits `x @ weight.T`, in nats, without ever holding all of them.

    The same as torch's `cross_entropy` of these logits, but a piece of rows at a time: logits of B x T x V numbers, and
    their gradient, are often the largest tensors of a training. Gradients are computed along with the loss.

    Args:
        x: float [..., D].
        weight: float [V, D].
        targets: int64 [...]; rows whose target is `ignored` do not count.
        smoothing: of the targets (arXiv 1512.00567): this share goes evenly to all V.

    Returns:
        a scalar, float32 or the inputs' dtype if that is wider; NaN if no row counts.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x, weight = (t.to(torch.get_autocast_dtype(kind)) for t in (x, weight))
    x, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(x, weight, targets, ignored, smoothing)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, ignored: int, smoothing: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        wanted = any(ctx.needs_input_grad[:2])
        dx, dweight = (torch.empty_like(x), torch.zeros_like(weight, dtype=wide)) if wanted else (None, None)
        count = (targets != ignored).sum()
        total = x.new_zeros((), dtype=wide)
        for begin in range(0, len(x), ROWS):
            rows, target = x[begin : begin + ROWS], targets[begin : begin + ROWS]
            there, at = target != ignored, target.masked_fill(target == ignored, 0)[:, None]
            logits = (rows @ weight.T).to(wide)
            most = logits.amax(1, keepdim=True)
            hit, mean = logits.gather(1, at)[:, 0], logits.mean(1)
            exps = logits.sub_(most).exp_()
            sums = exps.sum(1)
            losses = sums.log() + most[:, 0] - (1 - smoothing) * hit - smoothing * mean
            total += losses.masked_fill(~there, 0).sum()
            if dx is None or dweight is None:
                continue
            share = there.to(wide) / count  # of the mean
            gradient = exps.mul_((share / sums)[:, None]).sub_(smoothing / len(weight) * share[:, None])
            gradient.scatter_add_(1, at, (smoothing - 1) * share[:, None])
            gradient = gradient.to(rows.dtype)
            dx[begin : begin + ROWS] = gradient @ weight
            dweight += gradient.T @ rows
        if dx is not None and dweight is not None:
            ctx.save_for_backward(dx, dweight)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight = ctx.saved_tensors
        return (gradient * dx).to(dx.dtype), gradient * dweight, None, None, None
