"""What was read from a stored source."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Attended(NamedTuple):
    """Attention of T steps to P of a source's S steps, by H heads; the weights of a head add up to 1, or are all 0."""

    weight: Tensor  # [B, H, T, P]
    place: Tensor | None = None  # int64 [B, H, T, P], which steps; None: all in order, P = S

    def over(self, steps: int) -> Tensor:
        """The weights of all `steps` of the source [B, H, T, S], 0 where not looked."""
        if self.place is None:
            return self.weight[..., :steps]
        weight = self.weight.new_zeros(*self.weight.shape[:3], steps)
        return weight.scatter_add(-1, self.place.clamp(max=steps - 1), self.weight)

    def of(self, x: Tensor) -> Tensor:
        """What `x` [B, S] has at the steps looked at, to go with the weights: [B, H, T, P] or [B, 1, 1, P]."""
        if self.place is None:
            # A source may be stored with absent steps behind it, which have no weight.
            return F.pad(x, (0, self.weight.shape[-1] - x.shape[1]))[:, None, None]
        rows = torch.arange(len(x), device=x.device)[:, None, None, None]
        return x[rows, self.place.clamp(max=x.shape[1] - 1)]


class Trace(NamedTuple):
    """What a read did: `nodes` and `levels` are those of a tree, and None where that was not asked for."""

    steps: Attended | None  # attention to the source's steps, or to those of the kept leaves; None if it is not read so
    nodes: tuple[Tensor, ...] | None = None  # from the leaves to the root: weights [B, H, T, N], 0 where not read
    levels: Tensor | None = None  # [B, H, T, levels of the tree] weights of the levels, 0 above a row's root
