"""Convolution and projections of an mLSTM layer as Triton kernels; its gates are a matrix product of PyTorch's."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from exlstm.ops.checks import state_dtype
from exlstm.ops.operator import operator
from exlstm.ops.qkv import QKVGates
from exlstm.ops.reference import qkv as reference
from exlstm.ops.triton.launch import contiguous, interpreted, launch, precision

REMARK = "float64 runs in torch, and so do blocks of channels that are no divisor of 32"
PARTS = 256  # at most so many partial sums of the gradients of weights


class Tile(NamedTuple):
    """What a program has in hand, and how it is compiled."""

    steps: int
    channels: int
    warps: int


_HALF, _FLOAT32 = Tile(64, 64, 8), Tile(16, 32, 4)


def qkv_gates(
    x: Tensor,
    past: Tensor,
    conv: tuple[Tensor, Tensor],
    projections: tuple[Tensor, Tensor, Tensor],
    gates: tuple[Tensor, Tensor],
    *,
    reach: Tensor | None = None,
) -> QKVGates:
    """`exlstm.ops.qkv_gates`; float64, and blocks that are no divisor of 32, are left to the torch backend."""
    if state_dtype(x, past, *conv, *projections) == torch.float64 or 32 % projections[0].shape[-1]:
        return reference.qkv_gates(x, past, conv, projections, gates, reach=reach)
    c, q, k, v = _forward(x, past.to(x.dtype), *conv, *projections, reach)
    weight, bias = gates
    parts = zip((q, k, v), weight.to(x.dtype).chunk(3, 1), strict=True)
    made = sum((F.linear(y, part) for y, part in parts), bias)  # without joining q, k and v first
    return QKVGates(c, q, k, v, made.to(weight.dtype))


class _Call:
    """The sizes of a call and what its launches have in common."""

    def __init__(self, x: Tensor, conv: Tensor, weight: Tensor) -> None:
        self.batch, self.time, self.width = x.shape
        self.taps, self.block = conv.shape[1], weight.shape[-1]
        self.tile = _FLOAT32 if x.dtype == torch.float32 else _HALF
        low = interpreted() and x.dtype != torch.float32
        self.common: dict[str, Any] = {
            "T": self.time, "N": self.width, "TAPS": self.taps, "P": self.block, "BT": self.tile.steps,
            "BN": self.tile.channels, "PRECISION": "interpreted" if low else precision(x.dtype),
        }  # fmt: skip

    def grid(self, pieces: int) -> tuple[int, int, int]:
        """So many programs along time, for all channels and rows."""
        return pieces, -(-self.width // self.tile.channels), self.batch

    @property
    def piece(self) -> int:
        """How many steps a program sums over: few enough for all processors, many enough for few sums."""
        steps = -(-self.time * self.batch // PARTS)
        return -(-steps // self.tile.steps) * self.tile.steps


@operator("qkv_triton")
def _forward(
    x: Tensor,
    past: Tensor,
    conv: Tensor,
    bias: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    reach: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c, q, k, v [B, T, N]."""
    from exlstm.ops.triton import qkv_kernels as kernels

    inputs = contiguous(x, past, conv, bias, q_weight, k_weight, v_weight, reach)
    x, past, conv, bias, q_weight, k_weight, v_weight, reach = inputs
    call = _Call(x, conv, q_weight)
    c, q, k, v = _outputs(x)
    launch(
        kernels.forward_kernel, call.grid(-(-call.time // call.tile.steps)), warps=call.tile.warps, stages=1,
        x_ptr=x, past_ptr=past, conv_ptr=conv, bias_ptr=bias, q_weight_ptr=q_weight, k_weight_ptr=k_weight,
        v_weight_ptr=v_weight, reach_ptr=reach, c_ptr=c, q_ptr=q, k_ptr=k, v_ptr=v, **call.common,
    )  # fmt: skip
    return c, q, k, v


@_forward.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(x)


def _outputs(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape)


@operator("qkv_triton_backward")
def _backward(
    x: Tensor,
    past: Tensor,
    conv: Tensor,
    bias: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    reach: Tensor | None,
    gradients: Sequence[Tensor],
) -> list[Tensor]:
    """The gradients of all inputs but reach, from those of c, q, k, v."""
    from exlstm.ops.triton import qkv_kernels as kernels

    inputs = contiguous(x, past, conv, bias, q_weight, k_weight, v_weight, reach, *gradients)
    x, past, conv, bias, q_weight, k_weight, v_weight, reach, dc, dq, dk, dv = inputs
    call = _Call(x, conv, q_weight)
    pieces = -(-call.time // call.piece)
    dpre, dx, dpast = torch.empty_like(x), torch.empty_like(x), torch.empty_like(past)
    parts = call.batch * pieces
    dconv, dbias, dweights = (
        x.new_empty(parts, *of_part, dtype=torch.float32)
        for of_part in ((call.taps, call.width), (call.width,), (3, *q_weight.shape))
    )
    launch(
        kernels.weights_backward_kernel, call.grid(pieces), warps=call.tile.warps, stages=1,
        x_ptr=x, past_ptr=past, conv_ptr=conv, bias_ptr=bias, q_weight_ptr=q_weight, k_weight_ptr=k_weight,
        reach_ptr=reach, dc_ptr=dc, dq_ptr=dq, dk_ptr=dk, dv_ptr=dv, dpre_ptr=dpre, dconv_ptr=dconv, dbias_ptr=dbias,
        dweights_ptr=dweights, PIECE=call.piece, ROOM=1 << (call.taps - 1).bit_length(), **call.common,
    )  # fmt: skip
    launch(
        kernels.inputs_backward_kernel, call.grid(-(-(call.time + call.taps - 1) // call.tile.steps)),
        warps=call.tile.warps, stages=1,
        conv_ptr=conv, v_weight_ptr=v_weight, reach_ptr=reach, dv_ptr=dv, dpre_ptr=dpre, dx_ptr=dx, dpast_ptr=dpast,
        **call.common,
    )  # fmt: skip
    sums = dconv.sum(0).t(), dbias.sum(0), *(part.sum(0) for part in dweights.unbind(1))
    weights = (conv, bias, q_weight, k_weight, v_weight)
    return [dx, dpast, *(total.to(w.dtype).contiguous() for total, w in zip(sums, weights, strict=True))]


@_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    return [w.new_empty(w.shape) for w in inputs[:7]]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _derivative(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(*ctx.saved_tensors, [y.to(ctx.saved_tensors[0].dtype) for y in gradients]), None


_forward.register_autograd(_derivative, setup_context=_setup)
