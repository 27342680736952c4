"""Norm of every head, skip and output gate in C++: one walk over the steps, which run in parallel."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.checks import state_dtype
from exlstm.ops.cpu.build import load, obstacle_of, parallel_for, real_of
from exlstm.ops.gated_norm import OutputGate
from exlstm.ops.operator import operator

PIECE = 256  # steps of a task, whatever the number of threads: it decides how sums over steps are rounded
_SOURCE = Path(__file__).with_name("gated_norm.cpp")

obstacle = functools.partial(obstacle_of, _SOURCE)


def gated_norm(
    h: Tensor,
    weight: Tensor,
    gate: Tensor,
    *,
    skip: tuple[Tensor, Tensor] | None,
    activation: OutputGate,
    eps: float,
) -> Tensor:
    """`exlstm.ops.gated_norm` on a CPU."""
    skip_weight, c = (None, None) if skip is None else skip
    dtype = state_dtype(*(x for x in (h, weight, gate, skip_weight, c) if x is not None))
    common = torch.bfloat16 if h.dtype == torch.bfloat16 else dtype
    weights = (None if w is None else w.to(dtype) for w in (weight, skip_weight))
    return _forward(h.to(common), gate.to(common), *weights, None if c is None else c.to(common), activation, eps).to(
        h.dtype
    )


@operator("gated_norm_cpu")
def _forward(
    h: Tensor, gate: Tensor, weight: Tensor, skip: Tensor | None, c: Tensor | None, activation: str, eps: float
) -> Tensor:
    out = h.new_empty(*h.shape[:2], len(weight))
    _call("forward", (h, gate, weight, skip, c), activation, eps, (out,))
    return out


@_forward.register_fake
def _(h: Tensor, gate: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return h.new_empty(*h.shape[:2], len(weight))


@operator("gated_norm_cpu_backward")
def _backward(
    h: Tensor,
    gate: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    c: Tensor | None,
    activation: str,
    eps: float,
    dout: Tensor,
) -> list[Tensor]:
    """The gradients of h, gate, weight and, where there is one, of the skip's weight and c."""
    tasks = -(-h.shape[0] * h.shape[1] // PIECE)
    dh, dgate = h.new_empty(h.shape), gate.new_empty(gate.shape)
    dweight = weight.new_zeros(tasks, len(weight))
    dc, dskip = (None, None) if c is None else (c.new_empty(c.shape), torch.zeros_like(dweight))
    _call("backward", (h, gate, weight, skip, c), activation, eps, (dout.contiguous(), dh, dgate, dc, dweight, dskip))
    gradients = [dh, dgate, dweight.sum(0)]
    return gradients if dc is None or dskip is None else [*gradients, dskip.sum(0), dc]


@_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in inputs[:5] if x is not None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _derivative(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    gradients = [*_backward(*ctx.saved_tensors, ctx.activation, ctx.eps, dout), None, None]
    return *gradients[:5], None, None


_forward.register_autograd(_derivative, setup_context=_setup)


def _call(
    name: str, inputs: tuple[Tensor | None, ...], activation: str, eps: float, rest: tuple[Tensor | None, ...]
) -> None:
    h, gate, weight, skip, c = inputs
    assert h is not None
    assert gate is not None
    assert weight is not None
    (batch, time, heads, width), dtype = h.shape, weight.dtype
    gate = gate.flatten(0, 1)  # a part of wider rows is read where it is
    if gate.stride(1) != 1:
        gate = gate.contiguous()

    class Sizes(ctypes.Structure):
        _fields_ = (
            *[(field, ctypes.c_int64) for field in ("steps", "heads", "width", "piece", "gate_row", "sigmoid")],
            ("eps", ctypes.c_float if dtype == torch.float32 else ctypes.c_double),
        )

    sizes = Sizes(batch * time, heads, width, PIECE, gate.stride(0), activation == "sigmoid", eps)
    h, weight, skip, c = (None if x is None else x.contiguous() for x in (h, weight, skip, c))
    pointers = (ctypes.c_void_p * 5)(*(None if x is None else x.data_ptr() for x in (h, gate, weight, skip, c)))
    suffix = "bfloat16" if gate.dtype == torch.bfloat16 else "real"
    run = getattr(load(_SOURCE, real_of(dtype)), f"exlstm_gated_norm_{name}_{suffix}")
    run(
        parallel_for(),
        ctypes.byref(sizes),
        pointers,
        *(None if x is None else ctypes.c_void_p(x.data_ptr()) for x in rest),
    )
