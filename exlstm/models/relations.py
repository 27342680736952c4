"""A window of a series seen relative to its own past: what a forecast can start from, and what is left to learn."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from exlstm.data.series import scale_statistics

OUTLIER = 10.0
"""Residuals count towards a window's scale up to this many times their median size."""
PRIOR = 0.01
"""The least scale of a window's residuals, as a share of the spread of its values."""


class Relations(NamedTuple):
    """Steps of a window, the last `context` known ones and the horizon, against lagged values; T steps, R lags.

    The reference of a step for a lag is the last value known at the origin that lies a multiple of the lag
    before it. The base is the first lag's reference, or the next one's where that is missing, and at last the
    last value observed. Zeros stand wherever something is unknown.
    """

    base: Tensor
    """`[B, T]`: the forecast to start from, in units of the series."""
    base_place: Tensor
    """`[B, T]` int64: which step of the whole window the base was taken from; 0 where nothing was known."""
    scale: Tensor
    """`[B]`: the usual size of a residual `y - base` in the context, above 0."""
    spread: Tensor
    """`[B]`: how far the values of the whole history spread, in units of `scale`."""
    residual: Tensor
    """`[B, T]`: `(y - base) / scale`, 0 from the origin on."""
    observed: Tensor
    """`[B, T]` bool: where `residual` is known."""
    offsets: Tensor
    """`[B, T, S]`: for each season but the first lag, `(reference - base) / scale`."""
    carried: Tensor
    """`[B, T, R - 1]`: for each lag but the first, the residual that was at the reference."""


def history_length(context: int, lags: tuple[int, ...]) -> int:
    """Known steps a window needs so that every step of its context has its references and their residuals."""
    return context + lags[0] + max(lags[1:], default=0)


def relate(y: Tensor, mask: Tensor, horizon: int, context: int, lags: tuple[int, ...]) -> Relations:
    """Relate the last `context` steps before the origin and the `horizon` after it to the values before them.

    Args:
        y: `[B, history + horizon]` float32, 0 where `mask` is False; values from the origin on are not read.
        mask: `[B, history + horizon]` bool, where `y` was observed.
        lags: in steps; the first is the base's.
    """
    origin = y.shape[1] - horizon
    known, mask = y[:, :origin], mask[:, :origin]
    places = _reference_places(y.shape[1], origin, lags, y.device)
    references, there = _take(known, mask, places)

    base_place, based = _last_observed(mask, horizon)
    for place, has in reversed(list(zip(places, there, strict=True))):
        base_place, based = torch.where(has, place, base_place), based | has
    base = known.gather(1, base_place).masked_fill(~based, 0.0)

    residual = known - base[:, :origin]
    observed = mask & based[:, :origin]
    residual = residual.masked_fill(~observed, 0.0)
    spread = scale_statistics(known, mask)[1]
    scale = _residual_scale(residual, observed, context, spread)

    carried, _ = _take(residual / scale[:, None], observed, places[1:])
    offsets = [
        ((reference - base) / scale[:, None]).masked_fill(~has, 0.0)
        for lag, reference, has in zip(lags[1:], references[1:], there[1:], strict=True)
        if lag > 1
    ]
    window = slice(origin - context, None)
    empty = base.new_zeros(*base[:, window].shape, 0)
    return Relations(
        base=base[:, window],
        base_place=base_place[:, window],
        scale=scale,
        spread=spread / scale,
        residual=F.pad(residual / scale[:, None], (0, horizon))[:, window],
        observed=F.pad(observed, (0, horizon))[:, window],
        offsets=torch.stack(offsets, -1)[:, window] if offsets else empty,
        carried=torch.stack(carried, -1)[:, window] if carried else empty,
    )


def _reference_places(steps: int, origin: int, lags: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """For each lag, the places [steps] of the references; negative before the window's first step."""
    step = torch.arange(steps, device=device)
    ahead = (step - origin + 1).clamp(min=1)
    return [step - lag * ((ahead + lag - 1) // lag) for lag in lags]


def _take(values: Tensor, mask: Tensor, places: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The values at several `places` [steps], 0 where they are unknown, and where they are known."""
    taken = [values[:, place.clamp(min=0)] for place in places]
    there = [mask[:, place.clamp(min=0)] & (place >= 0) for place in places]
    return [value.masked_fill(~has, 0.0) for value, has in zip(taken, there, strict=True)], there


def _last_observed(mask: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """The place of the last value observed before each step `[B, history + horizon]`, and whether there is one."""
    place = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape).masked_fill(~mask, -1)
    last = place.cummax(1).values
    before = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1], last[:, -1:].expand(-1, horizon)], 1)
    return before.clamp(min=0), before >= 0


def _residual_scale(residual: Tensor, observed: Tensor, context: int, spread: Tensor) -> Tensor:
    """Mean size of the context's residuals, with that of the whole history counted as one more of them."""
    size = residual.abs()
    median = size.masked_fill(~observed, torch.nan).nanmedian(1, keepdim=True).values.nan_to_num(0.0)
    least = PRIOR * spread[:, None]
    size = size.minimum(OUTLIER * torch.maximum(median, least))
    usual = size.sum(1) / observed.sum(1).clamp(min=1) + least[:, 0]
    recent, count = size[:, -context:].sum(1), observed[:, -context:].sum(1)
    return (recent + usual) / (count + 1)
