"""One step of an mLSTM on a GPU, as text is written: without gradients, the memory read and written once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.operator import operator
from exlstm.ops.triton.launch import PROCESSORS, as_bytes, contiguous, launch, padded

COLUMNS, LEAST_COLUMNS = 64, 16  # of a memory, that a program works on
ELEMENTS = 4096  # of a memory, that it has in hand at once


@operator("mlstm_triton_step")
def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    sigmoid: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h [B, 1, H, DV] and the memory after it, of sequences of one step; C None is an empty memory."""
    h, C1, n1, m1 = _outputs(q, v)
    q, k, v, i, f, mask, reset, C, n, m = contiguous(q, k, v, i, f, mask, reset, C, n, m)
    launch_step(
        (q, k, v, i, f), (C, n, m), h, (C1, n1, m1), mask=as_bytes(mask), reset=as_bytes(reset), sigmoid=sigmoid
    )
    return h, C1, n1, m1


def launch_step(
    inputs: Sequence[Tensor],
    before: Sequence[Tensor | None],
    h: Tensor,
    after: Sequence[Tensor],
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    sigmoid: bool = False,
) -> None:
    """Write h [B, H, DV] and the memory `after` from q, k, v, i, f [B, ...], each row of which is contiguous.

    The C before may be that after; n and m may not. A mask and a reset are uint8 [B].
    """
    from exlstm.ops.triton import mlstm_step_kernels as kernels

    batch, heads, dk, dv = after[0].shape
    block, columns = memory_tile(batch * heads, dk, dv)
    names = ("q", "k", "v", "i", "f")
    launch(
        kernels.step_kernel, (-(-dv // columns), batch * heads), warps=4, stages=2,
        **{f"{name}_ptr": x for name, x in zip(names, inputs, strict=True)},
        **{f"{name}_row": x.stride(0) for name, x in zip(names, inputs, strict=True)},
        **{f"{name}_ptr": x for name, x in zip(("C", "n", "m"), before, strict=True)},
        **{f"{name}1_ptr": x for name, x in zip(("C", "n", "m"), after, strict=True)},
        mask_ptr=mask, reset_ptr=reset, h_ptr=h,
        H=heads, scale=dk**-0.5, DK=dk, DV=dv, BK=block, BV=columns, SIGMOID=sigmoid,
    )  # fmt: skip


def memory_tile(rows: int, dk: int, dv: int) -> tuple[int, int]:
    """Rows and columns of the memories [DK, DV] of `rows` heads that a program has in hand at once.

    A program reads all rows of its columns; fewer columns keep more processors busy where there are few heads.
    """
    columns = min(COLUMNS, padded(dv))
    while columns > LEAST_COLUMNS and rows * -(-dv // columns) < PROCESSORS:
        columns //= 2
    return min(ELEMENTS // columns, padded(dk)), columns


@step.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(q, v)


def _outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, heads, dk = q.shape
    shapes = (batch, heads, dk, v.shape[-1]), (batch, heads, dk), (batch, heads)
    C, n, m = (v.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return v.new_empty(v.shape), C, n, m
