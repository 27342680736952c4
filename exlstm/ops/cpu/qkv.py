"""Convolution, projections and gates of an mLSTM layer in C++: one walk over the inputs, steps in parallel."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.backends import constant_when_compiled
from exlstm.ops.checks import state_dtype
from exlstm.ops.cpu.build import load, obstacle_of, parallel_for, real_of
from exlstm.ops.operator import operator
from exlstm.ops.qkv import QKVGates
from exlstm.ops.reference import qkv as reference

BLOCK = 4  # channels that the kernel's projections mix
PIECE = 512  # steps of a task, whatever the number of threads: it decides how sums over steps are rounded
_SOURCE = Path(__file__).with_name("qkv.cpp")

obstacle = functools.partial(obstacle_of, _SOURCE)


def qkv_gates(
    x: Tensor,
    past: Tensor,
    conv: tuple[Tensor, Tensor],
    projections: tuple[Tensor, Tensor, Tensor],
    gates: tuple[Tensor, Tensor],
    *,
    reach: Tensor | None = None,
) -> QKVGates:
    """`exlstm.ops.qkv_gates` on a CPU; other blocks or longer convolutions than the kernel's go to the reference."""
    dtype = state_dtype(x, past, *conv, *projections, *gates)
    strip, most_taps = _limits(real_of(dtype))
    if projections[0].shape[-1] != BLOCK or x.shape[-1] % strip or conv[0].shape[-1] > most_taps:
        return reference.qkv_gates(x, past, conv, projections, gates, reach=reach)
    inputs = x if x.dtype == torch.bfloat16 else x.to(dtype)
    weights = (w.to(dtype) for w in (conv[0].t(), conv[1], torch.stack(projections), *gates))
    c, q, k, v, made = _forward(inputs, past.to(inputs.dtype), *weights, reach)
    c, q, k, v = (y.to(x.dtype) for y in (c, q, k, v))
    return QKVGates(c, q, k, v, made.to(gates[0].dtype))


@constant_when_compiled
def _limits(real: str) -> tuple[int, int]:
    """Channels that the kernel works on together, and the longest convolution it takes."""
    library = load(_SOURCE, real)
    return library.exlstm_qkv_strip(), library.exlstm_qkv_taps()


@operator("qkv_cpu")
def _forward(
    x: Tensor,
    past: Tensor,
    conv: Tensor,
    bias: Tensor,
    weights: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    reach: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """c, q, k, v [B, T, N] and gates [B, T, G], from conv [taps, N] and weights [3, blocks, in, out]."""
    out = _outputs(x, gate_bias)
    _call("forward", (x, past, conv, bias, weights, gate_weight, gate_bias, reach), out)
    return out


@_forward.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(x, rest[5])


def _outputs(x: Tensor, gate_bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    c, q, k, v = (x.new_empty(x.shape) for _ in range(4))
    return c, q, k, v, gate_bias.new_empty(*x.shape[:2], len(gate_bias))


@operator("qkv_cpu_backward")
def _backward(
    x: Tensor,
    past: Tensor,
    conv: Tensor,
    bias: Tensor,
    weights: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    reach: Tensor | None,
    made: list[Tensor],
    gradients: list[Tensor],
) -> list[Tensor]:
    """The gradients of the inputs but reach; `made` is q, k, v, and `gradients` those of c, q, k, v and the gates."""
    tasks = x.shape[0] * -(-x.shape[1] // PIECE)
    blocks = weights.shape[1]
    dx, dpast = torch.empty_like(x), past.new_empty(past.shape)
    dconv, dbias, dgate_weight = (w.new_zeros(tasks, *w.shape) for w in (conv, bias, gate_weight))
    dweights = weights.new_zeros(tasks, 3, BLOCK, blocks, BLOCK)
    inputs = (x, past, conv, bias, weights, gate_weight, gate_bias, reach)
    # The piece at the start of a row writes what its `past` gets.
    rest = [y.contiguous() for y in (*made, *gradients)]
    _call("backward", inputs, (*rest, dx, dpast, dconv, dbias, dweights, dgate_weight))
    sums = [w.sum(0) for w in (dconv, dbias, dweights, dgate_weight)]
    return [dx, dpast, sums[0], sums[1], sums[2].transpose(1, 2).contiguous(), sums[3], gradients[-1].sum((0, 1))]


@_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    return [w.new_empty(w.shape) for w in inputs[:7]]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:4])


def _derivative(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, q, k, v = ctx.saved_tensors
    return *_backward(*inputs, [q, k, v], list(gradients)), None


_forward.register_autograd(_derivative, setup_context=_setup)


def _call(name: str, inputs: tuple[Any, ...], rest: tuple[Tensor, ...]) -> None:
    x, past, conv, bias, weights, gate_weight, gate_bias = (y.contiguous() for y in inputs[:-1])
    reach = None if inputs[-1] is None else inputs[-1].contiguous()
    # [3, blocks, in, out] to [3, in, N (out)], and to [3, out, N (in)]
    forth, back = weights.transpose(1, 2).contiguous(), weights.permute(0, 3, 1, 2).contiguous()
    tensors = (x, past, conv, bias, forth, back, gate_weight, gate_bias, reach)
    pointers = (ctypes.c_void_p * len(tensors))(*(None if y is None else y.data_ptr() for y in tensors))
    sizes = (ctypes.c_int64 * 6)(*x.shape, conv.shape[0], gate_weight.shape[0], PIECE)
    suffix = "bfloat16" if x.dtype == torch.bfloat16 else "real"
    run = getattr(load(_SOURCE, real_of(conv.dtype)), f"exlstm_qkv_{name}_{suffix}")
    run(parallel_for(), sizes, pointers, *(ctypes.c_void_p(y.data_ptr()) for y in rest))
