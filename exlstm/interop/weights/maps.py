"""How tensors of one layout become those of another.

From ours to theirs and back are the same bits. So are theirs to ours and back, save for what `RESIDUAL` rounds away.

The ways back also work without numbers, for the sake of shapes. Of tensors on the device "meta" they must not compute
anything: torch would load a second's worth of modules first.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


class Map(NamedTuple):
    """From the tensors of one entry of their layout to those of ours, and back."""

    forth: Callable[[Tensors], Tensors]
    back: Callable[[Tensors], Tensors]
    alike: bool = False
    """Theirs are one tensor by several names: any of them will do, and all must be equal."""
    settles_dtype: bool = False
    """What comes out may be of another dtype than what goes in, as its values need."""


def _of_one(forth: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Map:
    return Map(lambda xs: [forth(xs[0])], lambda ys: [back(ys[0])])


SAME = Map(lambda xs: xs, lambda ys: ys)
TRANSPOSED = _of_one(lambda x: x.transpose(1, 2), lambda y: y.transpose(1, 2))
"""Blocks [N, out, in] and [N, in, out]."""
CONVOLUTION = _of_one(lambda x: x[:, 0], lambda y: y[:, None])
"""Filters [N, 1, K] of torch.nn.Conv1d, and [N, K]."""
TIED = Map(lambda xs: xs[:1], lambda ys: [ys[0], ys[0]], alike=True)
GATES = Map(lambda xs: [torch.stack([*xs]).transpose(-1, -2)], lambda ys: ys[0].transpose(-1, -2).unbind())
"""Four maps [H, out, in] and one [4, H, in, out]."""
ONES = Map(lambda xs: [], lambda ys: [])
"""They have no such tensor, and compute as if it were all ones."""


def joined(*sizes: int) -> Map:
    """Several tensors one below the other in one of ours."""
    return Map(lambda xs: [torch.cat([*xs])], lambda ys: ys[0].split(sizes))


def parted(*sizes: int) -> Map:
    """Several tensors of ours one below the other in one of theirs."""
    return Map(lambda xs: xs[0].split(sizes), lambda ys: [_below_each_other(ys)])


def _below_each_other(ys: Tensors) -> Tensor:
    if ys[0].is_meta:
        return ys[0].new_empty((sum(map(len, ys)), *ys[0].shape[1:]))
    return torch.cat([*ys])


RECURRENT = {
    "vanilla": _of_one(
        lambda x: x.unflatten(1, (4, -1)).permute(1, 0, 3, 2), lambda y: y.permute(1, 0, 3, 2).flatten(1, 2)
    ),
    "cuda": _of_one(lambda x: x.unflatten(2, (4, -1)).permute(2, 0, 1, 3), lambda y: y.permute(1, 2, 0, 3).flatten(2)),
}
"""[H, 4 out, in] or [H, in, 4 out], and [4, H, in, out]."""


def gate_bias(backend: str, heads: int) -> Map:
    """[4 H D], by gates and heads ("vanilla") or by heads and gates ("cuda"), and [4, H, D]."""
    if backend == "vanilla":
        return _of_one(lambda x: x.view(4, heads, -1), lambda y: y.flatten())
    return _of_one(lambda x: x.view(heads, 4, -1).transpose(0, 1), lambda y: y.transpose(0, 1).flatten())


def _less_one(y: Tensor) -> Tensor:
    """y - 1 in the narrowest dtype, from that of `y` on, from which 1 + x gives back `y` itself: below 1/2, numbers lie
    closer together than just below 1."""
    if y.is_meta:
        return y
    for dtype in (y.dtype, torch.float32, torch.float64):
        x = y.to(torch.promote_types(dtype, y.dtype)) - 1
        if torch.equal((1 + x).to(y.dtype), y):
            return x
    least = float(y[y != 0].abs().min())
    raise ValueError(f"norm weights are stored less 1 there, which {least} does not survive; set it to 0 first")


RESIDUAL = _of_one(lambda x: 1 + x, _less_one)._replace(settles_dtype=True)
"""A weight that they store less 1."""


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in `dtype` if that holds all its values, else as it is."""
    narrow = x.to(dtype)
    return narrow if torch.equal(narrow.to(x.dtype), x) else x
