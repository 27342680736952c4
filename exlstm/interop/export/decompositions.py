"""What ONNX has no operator for, or only one that is not exact enough, in terms of what it has."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def log_sigmoid(x: Tensor) -> Tensor:
    """min(x, 0) - log(1 + exp(-|x|)).

    The logarithm of a sigmoid would be -inf from x = -104 on, and wrong in the fourth digit at x = 8, where forget
    gates are. `log(u) y / (u - 1)` with u = 1 + y is log(1 + y) to the last digits however small y is (W. Kahan).
    """
    y = (-x.abs()).exp()
    u = 1 + y
    return x.clamp(max=0) - torch.where(u == 1, y, u.log() * (y / (u - 1)))


def cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest entry so far and where it is, over an axis of fixed length N, in log2(N) steps."""
    x = x.movedim(dim, -1)
    place = torch.arange(x.shape[-1], device=x.device).expand(x.shape)
    reach = 1
    while reach < x.shape[-1]:
        earlier = x[..., :-reach] > x[..., reach:]
        x, place = (
            torch.cat([e[..., :reach], torch.where(earlier, e[..., :-reach], e[..., reach:])], -1) for e in (x, place)
        )
        reach *= 2
    return x.movedim(-1, dim), place.movedim(-1, dim)


def nanmedian(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower median of what is not NaN, and where it is; NaN where all are."""
    some = ~x.isnan()
    ordered, order = torch.where(some, x, torch.inf).sort(dim)
    count = some.sum(dim, keepdim=True)
    middle = ((count - 1) // 2).clamp(min=0)
    median = torch.where(count > 0, ordered.gather(dim, middle), torch.nan)
    place = order.gather(dim, middle)
    return (median, place) if keepdim else (median.squeeze(dim), place.squeeze(dim))


def stable_argsort(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Any:
    """The order of a stable sort of small integers or booleans: by value first, then by place."""
    if x.dtype.is_floating_point or descending:
        return NotImplemented
    length = x.shape[dim]
    place = torch.arange(length, device=x.device)
    place = place.view(-1, *[1] * (-dim - 1 if dim < 0 else x.dim() - dim - 1))
    return (x.long() * length + place).sort(dim).indices


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """A concatenation without the empty tensors, which not every runtime takes: columns that a model does without."""
    full = [x for x in tensors if not (isinstance(x.shape[dim], int) and x.shape[dim] == 0)]
    if len(full) == len(tensors) or not full:
        return NotImplemented
    return full[0].clone() if len(full) == 1 else torch.cat(full, dim)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What `ExportedProgram.run_decompositions` is to replace, and by what."""
    einsum = torch.ops.aten.einsum.default
    return {
        torch.ops.aten.log_sigmoid.default: log_sigmoid,
        torch.ops.aten.cummax.default: cummax,
        torch.ops.aten.nanmedian.dim: nanmedian,
        torch.ops.aten.argsort.stable: stable_argsort,
        torch.ops.aten.cat.default: cat,
        # By products of matrices, for which every runtime has fast code, and whose weights it may keep as int8.
        einsum: torch.export.default_decompositions()[einsum],
    }
