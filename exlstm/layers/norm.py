"""Normalisation. All compute in at least float32; the weight is what multiplies (1 at first), a bias what is added."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Norm(nn.Module):
    """A weight [width] and, if asked for, a bias [width]."""

    def __init__(self, width: int, *, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RMSNorm(_Norm):
    """x / rms(x) * weight (+ bias) over the last axis (arXiv 1910.07467): [..., width] to the same, dtype kept."""

    def __init__(self, width: int, *, eps: float = 1e-6, bias: bool = False) -> None:
        super().__init__(width, eps=eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(_exact(x), self.weight.shape, _exact(self.weight, x), self.eps)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class LayerNorm(_Norm):
    """(x - mean(x)) / std(x) * weight (+ bias) over the last axis: [..., width] to [..., width], dtype kept."""

    def __init__(self, width: int, *, eps: float = 1e-5, bias: bool = False) -> None:
        super().__init__(width, eps=eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else _exact(self.bias, x)
        return F.layer_norm(_exact(x), self.weight.shape, _exact(self.weight, x), bias, self.eps).to(x.dtype)


class MultiHeadNorm(_Norm):
    """Layer norm of every head by itself: [B, T, H, D] to [B, T, H * D], dtype kept; weight and bias [H * D]."""

    def __init__(self, width: int, *, eps: float = 1e-5, bias: bool = False) -> None:
        super().__init__(width, eps=eps, bias=bias)

    def forward(self, h: Tensor) -> Tensor:
        y = F.layer_norm(_exact(h), h.shape[-1:], None, None, self.eps).flatten(-2) * self.weight
        return (y if self.bias is None else y + self.bias).to(h.dtype)


def _exact(x: Tensor, like: Tensor | None = None) -> Tensor:
    """`x` in float32, or in float64 if `like` (`x` itself if None) is float64."""
    return x.to(torch.promote_types((x if like is None else like).dtype, torch.float32))
