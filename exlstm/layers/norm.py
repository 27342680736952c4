"""Normalisation. All compute in at least float32; the weight is what multiplies (1 at first); no bias."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (arXiv 1910.07467): [..., width] to [..., width], dtype kept."""

    def __init__(self, width: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(_exact(x), self.weight.shape, _exact(self.weight, x), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight over the last axis: [..., width] to [..., width], dtype kept."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(_exact(x), self.weight.shape, _exact(self.weight, x), None, self.eps).to(x.dtype)


class MultiHeadNorm(nn.Module):
    """Layer norm of every head by itself: [B, T, H, D] to [B, T, H * D], dtype kept; weight [H * D]."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, h: Tensor) -> Tensor:
        normed = F.layer_norm(_exact(h), h.shape[-1:], None, None, self.eps).flatten(-2)
        return (normed * self.weight).to(h.dtype)


def _exact(x: Tensor, like: Tensor | None = None) -> Tensor:
    """`x` in float32, or in float64 if `like` (`x` itself if None) is float64."""
    return x.to(torch.promote_types((x if like is None else like).dtype, torch.float32))
