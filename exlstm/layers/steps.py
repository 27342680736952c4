"""Masked steps and document boundaries, for layers that look a fixed number of steps back."""

import torch
from torch import Tensor


class Lookback:
    """Lines up the steps of a batch so that each finds the `reach` steps before it right in front of it.

    Masked steps move behind all others, so that what follows a gap stands next to what precedes it. A layer
    concatenates its state, the `reach` entries before the first step, with its `align`ed inputs, computes,
    `spread`s the result back over time, and keeps the `tail` as its next state.

    Args:
        reach: how many earlier steps a step sees.
        time: length T of the sequences.
        mask: bool [B, T] or None; False steps count as absent.
        reset: bool [B, T] or None; a True step, masked or not, begins a new document.

    Attributes:
        document: number of each entry's document [B, reach + T], 0 in the state; None if there is but one.
    """

    def __init__(self, reach: int, time: int, *, mask: Tensor | None, reset: Tensor | None) -> None:
        self.reach, self.time, self.mask = reach, time, mask
        self._order = None if mask is None else (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        self.document = self._ended = None
        if reset is not None:
            number = self.align(reset.cumsum(1))
            self.document = torch.cat([number.new_zeros(len(number), reach), number], 1)
            self._ended = self._last(self.document) != reset.sum(1, keepdim=True)

    def align(self, x: Tensor) -> Tensor:
        """Move the masked steps of `x` [B, T, ...] behind all others."""
        return x if self._order is None else _take(x, self._order)

    @property
    def visible(self) -> Tensor | None:
        """How many of the `reach` entries before each aligned step are of its document, int64 [B, T]; None: all."""
        if self.document is None:
            return None
        own = self.document[:, self.reach :]
        before = (self.document[:, j : j + self.time] == own for j in range(self.reach))
        return sum((x.long() for x in before), torch.zeros_like(own))

    def spread(self, y: Tensor) -> Tensor:
        """Undo `align`, with 0 at masked steps."""
        if self.mask is None:
            return y
        slot = (self.mask.cumsum(1) - 1).clamp(min=0)
        return _take(y, slot).masked_fill(~_as(self.mask, y), 0)

    def tail(self, entries: Tensor) -> Tensor:
        """The last `reach` of `entries` [B, reach + T, ...]; 0 for those of documents that have ended."""
        tail = self._last(entries)
        return tail if self._ended is None else tail.masked_fill(_as(self._ended, tail), 0)

    def _last(self, entries: Tensor) -> Tensor:
        if self.mask is None:
            return entries[:, self.time :].clone()  # a view would keep all entries alive
        first = self.mask.sum(1, keepdim=True)
        return _take(entries, first + torch.arange(self.reach, device=entries.device))


def silence(y: Tensor, mask: Tensor | None) -> Tensor:
    """`y` [B, T, N] with 0 at masked steps, where a bias has left something else."""
    return y if mask is None else y.masked_fill(~mask[..., None], 0)


def reversed_reset(reset: Tensor) -> Tensor:
    """The resets, bool [B, T], of the same documents read backwards: each begins where it ended."""
    return torch.cat([reset[:, 1:], torch.zeros_like(reset[:, :1])], 1).flip(1)


def _take(x: Tensor, steps: Tensor) -> Tensor:
    """`x` [B, N, ...] at `steps` [B, M]: [B, M, ...]."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (rows + steps).flatten()).unflatten(0, steps.shape)


def _as(steps: Tensor, like: Tensor) -> Tensor:
    """View [B, N] so that it broadcasts against `like` [B, N, ...]."""
    return steps.reshape(*steps.shape, *[1] * (like.dim() - 2))
