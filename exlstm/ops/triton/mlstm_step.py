"""One step of an mLSTM on a GPU, as text is written: without gradients, the memory read and written once."""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.triton.launch import as_bytes, contiguous, launch, padded

ROWS, COLUMNS = 64, 64  # of the memory, that a program has in hand at once


@torch.library.custom_op("exlstm::mlstm_triton_step", mutates_args=())
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
    from exlstm.ops.triton import mlstm_step_kernels as kernels

    batch, _, heads, dk = q.shape
    dv = v.shape[-1]
    h, C1, n1, m1 = _outputs(q, v)
    q, k, v, i, f, mask, reset, C, n, m = contiguous(q, k, v, i, f, mask, reset, C, n, m)
    columns = min(COLUMNS, padded(dv))
    launch(
        kernels.step_kernel, (-(-dv // columns), batch * heads), warps=4, stages=2,
        q_ptr=q, k_ptr=k, v_ptr=v, i_ptr=i, f_ptr=f, mask_ptr=as_bytes(mask), reset_ptr=as_bytes(reset),
        C_ptr=C, n_ptr=n, m_ptr=m, h_ptr=h, C1_ptr=C1, n1_ptr=n1, m1_ptr=m1,
        H=heads, scale=dk**-0.5, DK=dk, DV=dv, BK=min(ROWS, padded(dk)), BV=columns, SIGMOID=sigmoid,
    )  # fmt: skip
    return h, C1, n1, m1


@step.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(q, v)


def _outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, heads, dk = q.shape
    shapes = (batch, heads, dk, v.shape[-1]), (batch, heads, dk), (batch, heads)
    C, n, m = (v.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return v.new_empty(v.shape), C, n, m
