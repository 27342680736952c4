"""Linear maps with few weights: a causal convolution of every channel, and products of blocks of channels."""

import torch
from torch import Tensor


def causal_conv(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor, *, reach: Tensor | None = None) -> Tensor:
    """y_t = bias + sum_j weight[:, j] x_{t - K + 1 + j}, for x [B, T, N].

    Args:
        past: [B, K - 1, N], the inputs before the first; zeros stand for none.
        weight: [N, K], whose last column meets the current step.
        bias: [N].
        reach: int64 [B, T], how many of the inputs before a step it may see; None for all.
    """
    time, kernel = x.shape[1], weight.shape[1]
    inputs = torch.cat([past.to(x.dtype), x], 1)
    y = bias
    for j in range(kernel):
        tap = inputs[:, j : j + time]
        if reach is not None:
            tap = tap.masked_fill((reach < kernel - 1 - j)[..., None], 0)
        y = torch.addcmul(y, tap, weight[:, j])
    return y


def blockwise(x: Tensor, weight: Tensor) -> Tensor:
    """Apply `weight` [N / P, P (in), P (out)] to every block of P channels of `x` [..., N]."""
    return torch.einsum("...hi,hio->...ho", x.unflatten(-1, weight.shape[:2]), weight).flatten(-2)
