"""Where a series lies and how far it spreads, so that a model sees every series alike."""

import torch
from torch import Tensor

TRIM = 0.02
"""The share of observed values that is clipped on either side."""


def scale_statistics(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and scale of the observed values along the last axis, to be used as `(values - centre) / scale`.

    `values [..., T]` float32, `mask [..., T]` bool (True = observed); both results `[...]` float32, finite,
    scale > 0. They are the mean and the standard deviation after the lowest and the highest 2% (at least one
    value each, from three values on) are clipped to the nearest value kept, so that a spike of any height
    hardly moves them. Where clipping leaves no spread (rare events in a constant series) the scale is the
    root mean square distance of all values from the centre. A constant series has the size of its level as
    scale, or 1 if that is 0; with nothing observed they are 0 and 1. Observed values must be at most 1e38 in
    size; the others are never read.
    """
    count = mask.sum(-1, keepdim=True)
    trim = (TRIM * count).long().clamp(min=1).minimum((count - 1) // 2).clamp(min=0)
    lowest, low = _order_statistics(values, mask, trim, largest=False)
    highest, high = _order_statistics(values, mask, trim, largest=True)

    centre, scale = _mean_and_deviation(values.clamp(low, high), mask, low, high)
    events = _mean_and_deviation(values, mask, lowest, highest, centre)[1]
    for fallback in (events, centre.abs(), torch.ones_like(scale)):
        scale = torch.where(scale > 0, scale, fallback)
    return centre.squeeze(-1), scale.squeeze(-1)


def _order_statistics(values: Tensor, mask: Tensor, trim: Tensor, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The extreme observed value `[..., 1]` and the one `trim` places behind it; 0 with nothing observed."""
    beyond = torch.finfo(values.dtype).max
    places = min(values.shape[-1], max(1, int(TRIM * values.shape[-1])) + 1)
    ordered = values.masked_fill(~mask, -beyond if largest else beyond).topk(places, largest=largest).values
    unobserved = ~mask.any(-1, keepdim=True)
    extreme, trimmed = ordered[..., :1], ordered.gather(-1, trim)
    return extreme.masked_fill(unobserved, 0.0), trimmed.masked_fill(unobserved, 0.0)


def _mean_and_deviation(
    values: Tensor, mask: Tensor, lowest: Tensor, highest: Tensor, around: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Masked mean and root mean square distance from it, or from `around`.

    Both are taken on [0, 1] between the bounds, where no square overflows.
    """
    width = (highest - lowest).clamp(min=torch.finfo(values.dtype).tiny)
    share = ((values - lowest) / width).masked_fill(~mask, 0.0)
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    mean = share.sum(-1, keepdim=True) / count
    middle = mean if around is None else (around - lowest) / width
    spread = (share - middle).masked_fill(~mask, 0.0).square().sum(-1, keepdim=True) / count
    return lowest + mean * width, spread.sqrt() * width
