"""Norm of every head, skip and output gate as Triton kernels: each way, what the steps hold is read and written once.

The backward takes the norm again from h, which it reads anyway.
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.checks import state_dtype
from exlstm.ops.gated_norm import OutputGate
from exlstm.ops.operator import operator
from exlstm.ops.reference import gated_norm as reference
from exlstm.ops.triton.launch import FLOAT64, launch, padded

WIDEST = 4096
REMARK = f"{FLOAT64}, and so do heads of more than {WIDEST} columns"
ELEMENTS = 2048  # of a tile, unless a row has more
MOST_PARTS = 256  # of all steps, for each of which the gradients of the weights are added up apart


def gated_norm(
    h: Tensor,
    weight: Tensor,
    gate: Tensor,
    *,
    skip: tuple[Tensor, Tensor] | None,
    activation: OutputGate,
    eps: float,
) -> Tensor:
    """`exlstm.ops.gated_norm` in float32, of inputs in any mixture of lower precisions.

    Float64, and heads of more than 4096 columns, are left to the torch backend.
    """
    skip_weight, c = (None, None) if skip is None else skip
    dtype = state_dtype(*(x for x in (h, weight, gate, skip_weight, c) if x is not None))
    if dtype == torch.float64 or h.shape[-1] > WIDEST:
        return reference.gated_norm(h, weight, gate, skip=skip, activation=activation, eps=eps)
    return _forward(h, gate, weight, skip_weight, c, activation == "sigmoid", eps)


@operator("gated_norm_triton")
def _forward(
    h: Tensor, gate: Tensor, weight: Tensor, skip: Tensor | None, c: Tensor | None, sigmoid: bool, eps: float
) -> Tensor:
    """[B, T, H D] in the dtype of h [B, T, H, D], with the skip's weight and the c that it multiplies."""
    from exlstm.ops.triton import gated_norm_kernels as kernels

    out = h.new_empty(gate.shape)
    inputs, tile, blocks = _arguments(h, gate, weight, skip, c, sigmoid, eps)
    launch(kernels.forward_kernel, (blocks * h.shape[2],), **inputs, **tile, out_ptr=out)
    return out


@_forward.register_fake
def _(h: Tensor, gate: Tensor, *rest: Any) -> Tensor:
    return h.new_empty(gate.shape)


@operator("gated_norm_triton_backward")
def _backward(
    h: Tensor,
    gate: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    c: Tensor | None,
    sigmoid: bool,
    eps: float,
    dout: Tensor,
) -> list[Tensor]:
    """The gradients of h, gate, weight and, where there is one, of the skip's weight and c."""
    from exlstm.ops.triton import gated_norm_kernels as kernels

    inputs, tile, blocks = _arguments(h, gate, weight, skip, c, sigmoid, eps)
    of_part = max(1, -(-blocks // MOST_PARTS))
    parts = -(-blocks // of_part)
    dh, dgate = h.new_empty(h.shape), gate.new_empty(gate.shape)
    dweight = weight.new_empty(parts, len(weight), dtype=torch.float32)
    dskip, dc = (None, None) if c is None else (torch.empty_like(dweight), c.new_empty(c.shape))
    launch(
        kernels.backward_kernel, (parts * h.shape[2],), **inputs, **tile, blocks=of_part, dout_ptr=dout.contiguous(),
        dh_ptr=dh, dgate_ptr=dgate, dweight_ptr=dweight, dskip_ptr=dskip, dc_ptr=dc,
    )  # fmt: skip
    gradients = [dh, dgate, dweight.sum(0).to(weight.dtype)]
    if skip is None or dskip is None or dc is None:
        return gradients
    return [*gradients, dskip.sum(0).to(skip.dtype), dc]


@_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in inputs[:5] if x is not None]


def _arguments(
    h: Tensor, gate: Tensor, weight: Tensor, skip: Tensor | None, c: Tensor | None, sigmoid: bool, eps: float
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The inputs as both kernels read them, how they are compiled, and the number of tiles that hold a head's rows."""
    batch, time, heads, width = h.shape
    columns = padded(width)
    rows = max(1, ELEMENTS // columns)
    gate, c = _in_rows(gate), None if c is None else _in_rows(c)
    inputs = {
        "h_ptr": h.contiguous(),
        "gate_ptr": gate,
        "weight_ptr": weight.contiguous(),
        "skip_ptr": None if skip is None else skip.contiguous(),
        "c_ptr": c,
        "rows": batch * time,
        "H": heads,
        "gate_row": gate.stride(0),
        "c_row": 0 if c is None else c.stride(0),
        "eps": eps,
    }
    tile = {"D": width, "BD": columns, "BR": rows, "SIGMOID": sigmoid, "warps": max(4, columns // 512), "stages": 1}
    return inputs, tile, -(-batch * time // rows)


def _in_rows(x: Tensor) -> Tensor:
    """[B, T, H D] as [B T, H D] with contiguous rows: where they are, if they lie at even distances, else copied."""
    x = x.flatten(0, 1)
    return x if x.stride(1) == 1 else x.contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.sigmoid, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _derivative(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [*_backward(*ctx.saved_tensors, ctx.sigmoid, ctx.eps, dout), None, None]
    return *gradients[:5], None, None


_forward.register_autograd(_derivative, setup_context=_setup)
