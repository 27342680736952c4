"""Norm, skip and output gate as tensor operations, which serve the backend "torch" as well."""

import torch
from torch import Tensor
from torch.nn import functional as F

from exlstm.ops.gated_norm import OutputGate


def gated_norm(
    h: Tensor,
    weight: Tensor,
    gate: Tensor,
    *,
    skip: tuple[Tensor, Tensor] | None,
    activation: OutputGate,
    eps: float,
) -> Tensor:
    """`exlstm.ops.gated_norm`."""
    exact = torch.promote_types(h.dtype, torch.float32)
    y = F.layer_norm(h.to(exact), h.shape[-1:], None, None, eps).flatten(-2) * weight
    if skip is not None:
        y = y + skip[0] * skip[1]
    activate = F.silu if activation == "silu" else torch.sigmoid
    return (y * activate(gate.to(exact))).to(h.dtype)
