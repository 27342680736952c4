"""sLSTM in C++: forward and backward over the whole sequence, heads and batch rows in parallel."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.cpu.build import load, obstacle_of, parallel_for, real_of
from exlstm.ops.slstm import SLSTMState

_SOURCE = Path(__file__).with_name("slstm.cpp")

obstacle = functools.partial(obstacle_of, _SOURCE)


def slstm(
    x: Tensor, r: Tensor, state: SLSTMState, *, mask: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, SLSTMState]:
    """`exlstm.ops.slstm` on a CPU."""
    initial = torch.stack(state, 1)
    inputs = x if x.dtype == torch.bfloat16 else x.to(initial.dtype)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, r, initial))
    h, final, _, _ = _forward(inputs, r.to(initial.dtype), initial, mask, reset, keep)
    return h.to(x.dtype), SLSTMState(*final.unbind(1))


@torch.library.custom_op("exlstm::slstm_cpu", mutates_args=())
def _forward(
    x: Tensor, r: Tensor, initial: Tensor, mask: Tensor | None, reset: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, the final state and, if `keep`, what the backward needs.

    x is [B, T, 4, H, D], r [4, H, D, D], initial and final state [B, 4, H, D] (c, n, m, h); the backward needs the
    gates and the states after every step, each [B, T, 4, H, D].
    """
    batch, time, _, heads, width = x.shape
    x, initial, mask, reset = x.contiguous(), initial.contiguous(), _contiguous(mask), _contiguous(reset)
    library = load(_SOURCE, real_of(initial.dtype))
    tiles = -(-width // library.exlstm_lanes())
    packed = pad(r, (0, tiles * library.exlstm_lanes() - width)).unflatten(-1, (tiles, -1))  # [4, H, D, tiles, lanes]
    packed = packed.permute(1, 3, 2, 0, 4).contiguous()
    h, final = x.new_empty(batch, time, heads, width), torch.empty_like(initial)
    gates, states = (initial.new_empty(x.shape if keep else 0) for _ in range(2))
    _call(
        "forward",
        x.dtype,
        library,
        x.shape,
        x,
        packed,
        initial,
        mask,
        reset,
        h,
        final,
        *((gates, states) if keep else (None, None)),
    )
    return h, final, gates, states


@torch.library.custom_op("exlstm::slstm_cpu_backward", mutates_args=())
def _backward(
    gates: Tensor,
    states: Tensor,
    r: Tensor,
    initial: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    grad_h: Tensor,
    grad_final: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, in the dtype of the states, r and the initial state."""
    initial, mask, reset = initial.contiguous(), _contiguous(mask), _contiguous(reset)
    grad_h, grad_final = grad_h.contiguous(), grad_final.contiguous()
    width = gates.shape[-1]
    library = load(_SOURCE, real_of(initial.dtype))
    tiles = -(-width // library.exlstm_lanes())
    short = tiles * library.exlstm_lanes() - width
    packed = pad(r, (0, short, 0, short)).unflatten(2, (tiles, -1))  # [4, H, tiles, lanes, padded D]
    packed = packed.permute(1, 2, 0, 4, 3).contiguous()
    grad_x, grad_initial = torch.empty_like(gates), torch.empty_like(initial)
    _call(
        "backward", grad_h.dtype, library, gates.shape,
        gates, states, packed, initial, mask, reset, grad_h, grad_final, grad_x, grad_initial,
    )  # fmt: skip
    h_before = torch.cat([initial[:, None, 3], states[:, :-1, 3]], 1)  # [B, T, H, D]
    if reset is not None:
        h_before = h_before.masked_fill(reset[..., None, None], 0)
    grad_r = torch.einsum("bthd,btghe->ghde", h_before, grad_x)
    return grad_x, grad_r, grad_initial


def _call(name: str, dtype: torch.dtype, library: ctypes.CDLL, shape: torch.Size, *tensors: Tensor | None) -> None:
    batch, time, _, heads, width = shape
    suffix = "bfloat16" if dtype == torch.bfloat16 else "real"
    getattr(library, f"exlstm_slstm_{name}_{suffix}")(
        parallel_for(),
        *(ctypes.c_int64(n) for n in (batch, time, heads, width)),
        *(None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors),
    )


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


@_forward.register_fake
def _(
    x: Tensor, r: Tensor, initial: Tensor, mask: Tensor | None, reset: Tensor | None, keep: bool
) -> tuple[Tensor, ...]:
    saved = [initial.new_empty(x.shape if keep else 0) for _ in range(2)]
    return x.new_empty(*x.shape[:2], *x.shape[3:]), torch.empty_like(initial), *saved


@_backward.register_fake
def _(gates: Tensor, states: Tensor, r: Tensor, initial: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
    return torch.empty_like(gates), torch.empty_like(r), torch.empty_like(initial)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, r, initial, mask, reset, _ = inputs
    _, _, gates, states = output
    ctx.save_for_backward(gates, states, r, initial, mask, reset)
    ctx.x_dtype = x.dtype


def _derivative(ctx: Any, grad_h: Tensor, grad_final: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gates, states, r, initial, mask, reset = ctx.saved_tensors
    grad_x, grad_r, grad_initial = _backward(gates, states, r, initial, mask, reset, grad_h, grad_final)
    return grad_x.to(ctx.x_dtype), grad_r, grad_initial, None, None, None


_forward.register_autograd(_derivative, setup_context=_setup)
