"""Convolution, projections and gates as tensor operations, which serve the backend "torch" as well."""

import torch
from torch import Tensor
from torch.nn import functional as F

from exlstm.ops.linear import blockwise, causal_conv
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
