"""Linear maps that act on every head by itself, and the sizes layers round to."""

import math

import torch
from torch import Tensor, nn

from exlstm.layers.init import small_init_
from exlstm.ops.linear import blockwise


class HeadwiseLinear(nn.Module):
    """Block-diagonal linear map: [..., width] to [..., width], in blocks of `block` channels; a bias on request."""

    def __init__(self, width: int, block: int, *, bias: bool = False) -> None:
        super().__init__()
        if block < 1 or width % block:
            raise ValueError(f"width must be a multiple of the block, got width {width} and block {block}")
        self.weight = nn.Parameter(torch.empty(width // block, block, block))  # [blocks, in, out]
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        small_init_(self.weight, self.weight.shape[1])
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = blockwise(x, self.weight)
        return y if self.bias is None else y + self.bias


def round_up(size: float, multiple: int) -> int:
    """The least multiple of `multiple` that is at least `size`."""
    return math.ceil(size / multiple) * multiple


def head_width(width: int, heads: int) -> int:
    """The width of one of `heads` heads that share `width`.

    Raises:
        ValueError: the heads cannot share it equally.
    """
    if heads < 1 or width < 1 or width % heads:
        raise ValueError(f"width must be a positive multiple of heads, got width {width}, heads {heads}")
    return width // heads
