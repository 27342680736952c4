"""sLSTM in C++: forward and backward over the whole sequence, heads and batch rows in parallel."""

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.cpu.build import load, obstacle_of, parallel_for, real_of
from exlstm.ops.operator import operator
from exlstm.ops.slstm import SLSTMState

_SOURCE = Path(__file__).with_name("slstm.cpp")
STEPS = 48  # of all rows of a tile, in a segment whose states stay in the cache
MOST_PARTS = 8  # sums of the gradient of r that are added up beside each other, per head

obstacle = functools.partial(obstacle_of, _SOURCE)


def slstm(
    x: Tensor,
    r: Tensor,
    state: SLSTMState,
    *,
    forget_cap: float = math.inf,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`exlstm.ops.slstm` on a CPU."""
    initial = torch.stack(state, 1)
    inputs = x if x.dtype == torch.bfloat16 else x.to(initial.dtype)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, r, initial))
    h, final, _ = _forward(inputs, r.to(initial.dtype), initial, mask, reset, forget_cap, keep)
    return h.to(x.dtype), SLSTMState(*final.unbind(1))


@operator("slstm_cpu")
def _forward(
    x: Tensor, r: Tensor, initial: Tensor, mask: Tensor | None, reset: Tensor | None, forget_cap: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h, the final state and, if `keep`, the states [segments, B, 4, H, D] before all segments of steps.

    x is [B, T, 4, H, D], r [4, H, D, D], initial and final state [B, 4, H, D] (c, n, m, h).
    """
    h, final, kept = _outputs(x, initial, keep)
    x, initial, mask, reset = x.contiguous(), initial.contiguous(), _contiguous(mask), _contiguous(reset)
    library = load(_SOURCE, real_of(initial.dtype))
    tensors = (x, _packed(r, x, library), mask, reset, initial, h, final, kept if keep else None)
    _call("forward", x, library, forget_cap, tensors)
    return h, final, kept


def _outputs(x: Tensor, initial: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, _, heads, width = x.shape
    segments = -(-time // _segment(batch)) if keep else 0
    return (
        x.new_empty(batch, time, heads, width),
        initial.new_empty(initial.shape),
        initial.new_empty(segments, *initial.shape),
    )


def _segment(batch: int) -> int:
    """Steps from one kept state to the next: enough for products of some size, whose operands stay in the cache."""
    return -(-STEPS // min(max(batch, 1), 6))  # 6: the rows of the largest tile


@operator("slstm_cpu_backward")
def _backward(
    x: Tensor,
    r: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    forget_cap: float,
    kept: Tensor,
    grad_h: Tensor,
    grad_final: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, r and the initial state."""
    x, mask, reset = x.contiguous(), _contiguous(mask), _contiguous(reset)
    grad_h, grad_final = grad_h.contiguous(), grad_final.contiguous()
    batch, _, _, heads, width = x.shape
    library = load(_SOURCE, real_of(kept.dtype))
    lanes, rows = library.exlstm_lanes(), library.exlstm_rows()
    padded = -(-width // lanes) * lanes
    transposed = pad(r, (0, padded - width, 0, padded - width)).unflatten(2, (-1, lanes))
    transposed = transposed.permute(1, 2, 0, 4, 3).flatten(2, 3)  # [H, tiles, 4 padded D, lanes]
    transposed = _words(transposed, x, library)
    grad_x, grad_initial = torch.empty_like(x), kept.new_empty(kept.shape[1:])
    parts = min(MOST_PARTS, -(-batch // rows))
    grad_r = kept.new_zeros(heads, parts, -(-width // rows) * rows, 4, padded)
    tensors = (
        x, _packed(r, x, library), mask, reset, kept, transposed, grad_h, grad_final, grad_x, grad_initial, grad_r
    )  # fmt: skip
    _call("backward", x, library, forget_cap, tensors, ctypes.c_int64(parts))
    return grad_x, grad_r.sum(1)[:, :width, :, :width].permute(2, 0, 1, 3).contiguous(), grad_initial


def _packed(r: Tensor, x: Tensor, library: ctypes.CDLL) -> Tensor:
    """r as the forward reads it, words of [H, tiles, D, 4, lanes] along D."""
    lanes = library.exlstm_lanes()
    r = pad(r, (0, -r.shape[-1] % lanes)).unflatten(-1, (-1, lanes)).permute(1, 3, 2, 0, 4)
    return _words(r, x, library)


def _words(weights: Tensor, x: Tensor, library: ctypes.CDLL) -> Tensor:
    """Weights [H, tiles, K, ...] as products with what comes of `x` read them: neighbours along K in pairs if both are
    multiplied in bfloat16, [H, tiles, K / 2, ..., 2], the last one with a zero where K is odd."""
    if not (x.dtype == torch.bfloat16 and library.exlstm_pairs()):
        return weights.contiguous()
    odd = weights.shape[2] % 2
    weights = pad(weights.to(x.dtype), (0, 0) * (weights.dim() - 3) + (0, odd))
    return weights.unflatten(2, (-1, 2)).movedim(3, -1).contiguous()


def _call(
    name: str, x: Tensor, library: ctypes.CDLL, forget_cap: float, tensors: tuple[Tensor | None, ...], *rest: Any
) -> None:
    batch, time, _, heads, width = x.shape
    shape = (ctypes.c_int64 * 5)(batch, time, heads, width, _segment(batch))
    suffix = "bfloat16" if x.dtype == torch.bfloat16 else "real"
    getattr(library, f"exlstm_slstm_{name}_{suffix}")(
        parallel_for(),
        ctypes.byref(shape),
        ctypes.c_double(forget_cap),
        *(None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors),
        *rest,
    )


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


@_forward.register_fake
def _(
    x: Tensor, r: Tensor, initial: Tensor, mask: Tensor | None, reset: Tensor | None, forget_cap: float, keep: bool
) -> tuple[Tensor, ...]:
    return _outputs(x, initial, keep)


@_backward.register_fake
def _(
    x: Tensor, r: Tensor, mask: Tensor | None, reset: Tensor | None, forget_cap: float, kept: Tensor, *rest: Tensor
) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(r), kept.new_empty(kept.shape[1:])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, r, _, mask, reset, ctx.forget_cap, _ = inputs
    ctx.save_for_backward(x, r, mask, reset, output[-1])


def _derivative(ctx: Any, grad_h: Tensor, grad_final: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, kept = ctx.saved_tensors
    grad_x, grad_r, grad_initial = _backward(*inputs, ctx.forget_cap, kept, grad_h, grad_final)
    return grad_x, grad_r, grad_initial, None, None, None, None


_forward.register_autograd(_derivative, setup_context=_setup)
