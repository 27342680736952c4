"""Softmax attention to a whole source, in the place of a memory."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from exlstm.layers.init import small_init_, wang_init_
from exlstm.layers.linear import head_width
from exlstm.layers.reading import Attended, Trace
from exlstm.ops.checks import check_shape, check_steps


class KeysValues(NamedTuple):
    """A source as attention reads it."""

    k: Tensor  # [B, H, S, D]
    v: Tensor  # [B, H, S, D]
    mask: Tensor  # bool [B, S]


class AttentionWriter(nn.Module):
    """Keys and values of a source: `stored = writer(source, mask)`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        head_width(width, heads)
        self.heads = heads
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        small_init_(self.kv.weight, self.kv.in_features)

    def forward(self, source: Tensor, mask: Tensor | None = None) -> KeysValues:
        """Of `source` [B, S, width]; steps where `mask` [B, S] is False are absent, whatever stands there."""
        check_shape("source", source, (None, None, self.kv.in_features), "[B, S, width]")
        check_steps("mask", mask, *source.shape[:2])
        if mask is None:
            mask = torch.ones(source.shape[:2], dtype=torch.bool, device=source.device)
        source = source.masked_fill(~mask[..., None], 0)
        k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.kv(source).chunk(2, -1))
        return KeysValues(k, v, mask)


class AttentionReader(nn.Module):
    """Attention to a source: `y, trace = reader(stored, x)` with x, y [B, T, width].

    What a source without steps gives is 0.
    """

    def __init__(self, width: int, heads: int, *, depth: int = 1) -> None:
        super().__init__()
        head_width(width, heads)
        self.heads, self.depth = heads, depth
        self.query = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        small_init_(self.query.weight, self.query.in_features)
        wang_init_(self.out.weight, self.out.out_features, self.depth)

    def forward(self, stored: KeysValues, x: Tensor, *, trace: bool = False) -> tuple[Tensor, Trace]:
        """Read for every step of `x` [B, T, width]; `trace` is there for readers of trees, and changes nothing."""
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v, mask = stored
        scores = q @ k.to(q.dtype).transpose(-1, -2) * q.shape[-1] ** -0.5
        seen, some = mask[:, None, None], mask.any(-1)[:, None, None, None]
        # A row that sees nothing would be NaN: it sees all, and what it read is dropped.
        wide = torch.promote_types(scores.dtype, torch.float32)
        weight = scores.to(wide).masked_fill(~seen & some, -math.inf).softmax(-1).masked_fill(~some, 0)
        h = weight.to(v.dtype) @ v
        return self.out(h.transpose(1, 2).flatten(-2)), Trace(Attended(weight))
