"""Convolution, projections and gates as tensor operations, which serve the backend "torch" as well."""

import torch
from torch import Tensor
from torch.nn import functional as F

from exlstm.ops.qkv import QKVGates


def qkv_gates(
    x: Tensor,
    past: Tensor,
    conv: tuple[Tensor, Tensor],
    projections: tuple[Tensor, Tensor, Tensor],
    gates: tuple[Tensor, Tensor],
    *,
    reach: Tensor | None = None,
) -> QKVGates:
    """`exlstm.ops.qkv_gates`."""
    c = F.silu(causal_conv(x, past, *conv, reach=reach))
    q, k, v = (blockwise(y, weight) for y, weight in zip((c, c, x), projections, strict=True))
    weight, bias = gates
    return QKVGates(c, q, k, v, F.linear(torch.cat([q, k, v], -1), weight, bias))


def causal_conv(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor, *, reach: Tensor | None = None) -> Tensor:
    """y_t = bias + sum_j weight[:, j] x_{t - K + 1 + j}; arguments as in `exlstm.ops.qkv_gates`."""
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
    """Apply `weight` [N / P, P, P] to every block of P channels of `x` [..., N]."""
    return torch.einsum("...hi,hio->...ho", x.unflatten(-1, weight.shape[:2]), weight).flatten(-2)
