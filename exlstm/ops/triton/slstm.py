"""sLSTM as Triton kernels: one launch walks over all steps, with the recurrent weights on chip while they fit.

The backward first recomputes the gates of all steps in one product, walks back with the weights on chip, and takes the
gradient of the weights in one more product over all steps.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.checks import state_dtype
from exlstm.ops.chunkwise import slstm as chunkwise
from exlstm.ops.operator import operator
from exlstm.ops.slstm import SLSTMState
from exlstm.ops.triton.launch import FLOAT64, as_bytes, interpreted, launch, padded, precision

WIDEST = 256
REMARK = f"{FLOAT64}, and so do heads of more than {WIDEST} columns"
PART, MOST_PARTS = 1024, 32  # steps whose gradients of r one program adds up, unless there were too many such programs


class Walk(NamedTuple):
    """How a kernel walks over time, one program for a head and a tile of batch rows, with a warp per 16 columns."""

    rows: int  # of a batch tile: 8 or a multiple
    warps: int  # one for each 16 columns of the head, or fewer
    resident: bool  # whether the weights stay on chip; else they are read again at every step
    block: int  # columns of weights that are read at once where they do not stay
    stages: int  # of that reading

    @property
    def compiled(self) -> dict[str, Any]:
        return {
            "BT": self.rows,
            "BK": self.block,
            "RESIDENT": self.resident,
            "warps": self.warps,
            "stages": self.stages,
        }


#   padded width: forward, backward, each of rows, warps, resident, block, stages
_HALF = {
    16: (Walk(8, 1, True, 16, 1), Walk(8, 1, True, 16, 1)),
    32: (Walk(8, 2, True, 16, 1), Walk(8, 2, True, 16, 1)),
    64: (Walk(8, 4, True, 16, 1), Walk(8, 4, True, 16, 1)),
    128: (Walk(8, 8, True, 16, 1), Walk(8, 8, True, 16, 1)),
    256: (Walk(8, 16, False, 32, 3), Walk(8, 16, False, 32, 3)),
}
_FLOAT32 = {
    16: (Walk(8, 1, True, 16, 1), Walk(8, 1, True, 16, 1)),
    32: (Walk(8, 2, True, 16, 1), Walk(8, 2, True, 16, 1)),
    64: (Walk(8, 4, True, 16, 1), Walk(8, 4, True, 16, 1)),
    128: (Walk(8, 8, False, 16, 3), Walk(8, 8, False, 16, 3)),
    256: (Walk(8, 16, False, 16, 3), Walk(8, 16, False, 16, 3)),
}


def slstm(
    x: Tensor,
    r: Tensor,
    state: SLSTMState,
    *,
    forget_cap: float = math.inf,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`exlstm.ops.slstm` with products in the dtype of x, and states in float32.

    Float64, and heads of more than 256 columns, are left to the torch backend.
    """
    if state_dtype(x, r) == torch.float64 or x.shape[-1] > WIDEST:
        return chunkwise.slstm(x, r, state, forget_cap=forget_cap, mask=mask, reset=reset)
    initial = torch.stack(state)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, r, initial))
    h, final, _ = _forward(x, r, initial, mask, reset, forget_cap, keep)
    if mask is not None:
        h = torch.where(mask[..., None, None], h, 0.0)
    return h, SLSTMState(*final.unbind())


@operator("slstm_triton")
def _forward(
    x: Tensor, r: Tensor, initial: Tensor, mask: Tensor | None, reset: Tensor | None, forget_cap: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h after every step, masked or not, the final state [4, B, H, D] and, if `keep`, c, n, m before all steps."""
    from exlstm.ops.triton import slstm_kernels as kernels

    h, final, kept = _outputs(x, initial, keep)
    batch, time, _, heads, width = x.shape
    walk = _walks(x)[0]
    scratch = None
    if not walk.resident:
        scratch = x.new_empty(2, batch, heads, width)
        scratch[0] = initial[3]
    launch(
        kernels.forward_kernel, (heads, -(-batch // walk.rows)), **walk.compiled,
        x_ptr=x.contiguous(), r_ptr=r.contiguous(), mask_ptr=as_bytes(mask), reset_ptr=as_bytes(reset),
        initial_ptr=initial.contiguous(), h_ptr=h, final_ptr=final, kept_ptr=kept if keep else None,
        scratch_ptr=scratch, T=time, B=batch, H=heads, cap=forget_cap, D=width, W=padded(width) // 16,
        PRECISION=_precision(x.dtype),
    )  # fmt: skip
    return h, final, kept


def _walks(x: Tensor) -> tuple[Walk, ...]:
    """Of the forward and the backward."""
    from exlstm.ops.triton.slstm_kernels import LEAST_ROWS

    walks = (_FLOAT32 if x.dtype == torch.float32 else _HALF)[padded(x.shape[-1])]
    return tuple(walk._replace(rows=max(walk.rows, LEAST_ROWS)) for walk in walks)


def _outputs(x: Tensor, initial: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, _, heads, width = x.shape
    kept = (3, batch, time + 1, heads, width) if keep else (0,)
    return x.new_empty(batch, time, heads, width), initial.new_empty(initial.shape), initial.new_empty(kept)


@operator("slstm_triton_backward")
def _backward(
    x: Tensor,
    r: Tensor,
    initial: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    forget_cap: float,
    h: Tensor,
    kept: Tensor,
    grad_h: Tensor,
    grad_final: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, r and the initial state."""
    from exlstm.ops.triton import slstm_backward_kernels as kernels

    batch, time, _, heads, width = x.shape
    walk = _walks(x)[1]
    r, h0, reset_ = r.contiguous(), initial[3].contiguous(), as_bytes(reset)
    gates, grad_x, grad_initial = kept.new_empty(x.shape), x.new_empty(x.shape), kept.new_empty(initial.shape)
    rows, block = batch * time, min(64, padded(width))
    before: dict[str, Any] = {"h_ptr": h, "h0_ptr": h0, "reset_ptr": reset_, "rows": rows, "T": time, "H": heads}
    blocks = {"D": width, "BR": 64, "BK": block, "BN": block, "PRECISION": _precision(x.dtype)}
    tiles = -(-width // block)
    launch(
        kernels.gates_kernel, (-(-rows // 64), 4 * heads, tiles), warps=4, stages=2,
        x_ptr=x.contiguous(), r_ptr=r, gates_ptr=gates, **before, **blocks,
    )  # fmt: skip
    launch(
        kernels.backward_kernel, (heads, -(-batch // walk.rows)), **walk.compiled,
        gates_ptr=gates, r_ptr=r, mask_ptr=as_bytes(mask), reset_ptr=reset_, kept_ptr=kept,
        grad_h_ptr=grad_h.contiguous(), grad_final_ptr=grad_final.contiguous(), grad_x_ptr=grad_x,
        grad_initial_ptr=grad_initial, scratch_ptr=None if walk.resident else x.new_empty(2, 4, batch, heads, width),
        T=time, B=batch, H=heads, cap=forget_cap, D=width, W=padded(width) // 16, PRECISION=_precision(x.dtype),
    )  # fmt: skip
    part = max(PART, -(-rows // MOST_PARTS))
    parts = kept.new_empty(-(-rows // part), *r.shape)
    launch(
        kernels.weights_kernel, (len(parts), 4 * heads, tiles * tiles), warps=4, stages=2,
        grad_x_ptr=grad_x, grad_r_ptr=parts, part_rows=part, **before, **blocks,
    )  # fmt: skip
    return grad_x, parts.sum(0).to(r.dtype), grad_initial


def _precision(dtype: torch.dtype) -> str:
    return "interpreted" if interpreted() and dtype == torch.bfloat16 else precision(dtype)


@_forward.register_fake
def _(
    x: Tensor, r: Tensor, initial: Tensor, mask: Tensor | None, reset: Tensor | None, forget_cap: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x, initial, keep)


@_backward.register_fake
def _(x: Tensor, r: Tensor, initial: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), r.new_empty(r.shape), initial.new_empty(initial.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, r, initial, mask, reset, ctx.forget_cap, _ = inputs
    h, _, kept = output
    ctx.save_for_backward(x, r, initial, mask, reset, h, kept)


def _derivative(ctx: Any, grad_h: Tensor, grad_final: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, h, kept = ctx.saved_tensors
    gradients = _backward(*inputs, ctx.forget_cap, h, kept, grad_h, grad_final)
    return *gradients, None, None, None, None


_forward.register_autograd(_derivative, setup_context=_setup)
