"""mLSTM on chunks in C++: all products of a chunk in the cache, heads and batch rows in parallel."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.checks import state_dtype
from exlstm.ops.chunkwise.chunks import Chunks
from exlstm.ops.chunkwise.gates import gates
from exlstm.ops.cpu.build import load, obstacle_of, parallel_for, real_of
from exlstm.ops.mlstm import InputGate, MLSTMState
from exlstm.ops.operator import operator
from exlstm.ops.reference import mlstm as reference

CHUNK_SIZE = 64
GROUP = 16  # chunks from one memory kept for the backward to the next
_SOURCE = Path(__file__).with_name("mlstm.cpp")

obstacle = functools.partial(obstacle_of, _SOURCE)


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState | None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int | None = None,
    input_gate: InputGate = "exp",
) -> tuple[Tensor, MLSTMState]:
    """`exlstm.ops.mlstm` on a CPU, in chunks of `chunk_size` steps."""
    time, dtype = q.shape[1], state_dtype(q, k, v, i, f)
    if time == 1:
        return reference.mlstm(q, k, v, i, f, state, mask=mask, reset=reset, input_gate=input_gate)
    chunks = Chunks(time, min(chunk_size or CHUNK_SIZE, time))
    # From an empty memory there is nothing to read: the kernel gets none, which in short sequences is most of the work.
    C0, n0, m0 = (None, None, q.new_zeros(q.shape[0], q.shape[2], dtype=dtype)) if state is None else state
    at = gates(i, f, m0, chunks, mask=mask, reset=reset, input_gate=input_gate)
    common = torch.bfloat16 if {q.dtype, k.dtype, v.dtype} == {torch.bfloat16} else dtype
    inputs = (x.to(common) for x in (q, k, v))
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, i, f, C0, n0))
    h, C, n, *_ = _forward(*inputs, *at.weights, at.m, at.document, C0, n0, chunks.size, keep)
    if mask is not None:
        h = torch.where(mask[..., None, None], h, 0.0)
    return h.to(v.dtype), MLSTMState(C, n, at.final_m)


@operator("mlstm_cpu")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    M: Tensor,
    u: Tensor,
    w: Tensor,
    kept: Tensor,
    m: Tensor | None,
    document: Tensor | None,
    C: Tensor | None,
    n: Tensor | None,
    size: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h [B, T, H, DV] and the memory after the last step; d and, if `keep`, memories kept for the backward."""
    h, C1, n1, d, C_kept, n_kept = _outputs(q, v, a, C, keep)
    tensors = _contiguous(q, k, v, a, M, u, w, kept, m, document, C, n)
    q, k, v, *at, C, n = tensors
    _call("forward", q, v, size, [q, k, v], at, [C, n, h, d, C1, n1, *((C_kept, n_kept) if keep else (None, None))])
    return h, C1, n1, d, C_kept, n_kept


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, a: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    C, _, _, keep = rest[-4:]
    return _outputs(q, v, a, C, keep)


def _outputs(q: Tensor, v: Tensor, a: Tensor, C: Tensor | None, keep: bool) -> tuple[Tensor, ...]:
    batch, _, heads, dk = q.shape
    n, C1 = (batch, heads, dk), (batch, heads, dk, v.shape[-1])
    # The first group of chunks begins with the initial memory, of which an empty one is not kept.
    groups = -(-len(a) // GROUP) - (C is None) if keep else 0
    return (
        v.new_empty(v.shape),
        a.new_empty(C1),
        a.new_empty(n),
        a.new_empty(a.shape),
        a.new_empty(groups, *C1),
        a.new_empty(groups, *n),
    )


@operator("mlstm_cpu_backward")
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    M: Tensor,
    u: Tensor,
    w: Tensor,
    kept: Tensor,
    m: Tensor | None,
    document: Tensor | None,
    h: Tensor,
    d: Tensor,
    C_kept: Tensor,
    n_kept: Tensor,
    size: int,
    empty: bool,
    dh: Tensor,
    dC: Tensor | None,
    dn: Tensor | None,
) -> list[Tensor]:
    """The gradients of q, k, v, a, M, u, w, kept, of m if there is one, and of the initial C and n unless `empty`."""
    gradients = _gradients(q, k, v, a, kept, m, empty)
    dq, dk, dv, da, dM, du, dw, dkept, *more = gradients
    dm = None if m is None else more[0]
    dC0, dn0 = (None, None) if empty else more[-2:]
    tensors = _contiguous(q, k, v, a, M, u, w, kept, m, document, h, d, C_kept, n_kept, dh, dC, dn)
    q, k, v, *at, h, d, C_kept, n_kept, dh, dC, dn = tensors
    out = [dq, dk, dv, da, dM, du, dw, dkept, dm, dC0, dn0]
    _call("backward", q, v, size, [q, k, v], at, [h, d, C_kept, n_kept, dh, dC, dn, *out])
    return gradients


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, a: Tensor, *rest: Any) -> list[Tensor]:
    kept, m, empty = rest[3], rest[4], rest[-4]
    return _gradients(q, k, v, a, kept, m, empty)


def _gradients(q: Tensor, k: Tensor, v: Tensor, a: Tensor, kept: Tensor, m: Tensor | None, empty: bool) -> list[Tensor]:
    like = [x.new_empty(x.shape) for x in [q, k, v, a, a, a, a, kept, *([] if m is None else [m])]]
    batch, _, heads, dk = q.shape
    return like if empty else [*like, a.new_empty(batch, heads, dk, v.shape[-1]), a.new_empty(batch, heads, dk)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, C, _, ctx.size, _ = inputs
    ctx.empty = C is None
    h, _, _, d, C_kept, n_kept = output
    ctx.save_for_backward(*tensors, h, d, C_kept, n_kept)
    ctx.set_materialize_grads(False)  # of a final memory that nothing reads


def _derivative(
    ctx: Any, dh: Tensor | None, dC: Tensor | None, dn: Tensor | None, *_: Tensor
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: under torch's checkpoint they are computed anew
    m, _, h = saved[8:11]
    dh = torch.zeros_like(h) if dh is None else dh
    gradients = _backward(*saved, ctx.size, ctx.empty, dh, dC, dn)
    *most, dC0, dn0 = [*gradients, None, None] if ctx.empty else gradients
    dm = [None] if m is None else []
    return *most, *dm, None, dC0, dn0, None, None


_forward.register_autograd(_derivative, setup_context=_setup)


def _call(
    name: str,
    q: Tensor,
    v: Tensor,
    size: int,
    inputs: list[Tensor],
    at: list[Tensor | None],
    rest: list[Tensor | None],
) -> None:
    real = at[0].dtype if at[0] is not None else q.dtype
    scalar = ctypes.c_float if real == torch.float32 else ctypes.c_double

    class Sizes(ctypes.Structure):
        _fields_ = (
            *[(field, ctypes.c_int64) for field in ("batch", "time", "heads", "dk", "dv", "size", "group")],
            ("scale", scalar),
        )

    sizes = Sizes(*q.shape, v.shape[-1], size, GROUP, q.shape[-1] ** -0.5)
    # a, M, u, w, kept, m, document
    pointers = (ctypes.c_void_p * 7)(*(None if x is None else x.data_ptr() for x in at))
    run = getattr(
        load(_SOURCE, real_of(real)), f"exlstm_mlstm_{name}_{'bfloat16' if q.dtype == torch.bfloat16 else 'real'}"
    )
    before = (ctypes.c_void_p(x.data_ptr()) for x in inputs)
    after = (None if x is None else ctypes.c_void_p(x.data_ptr()) for x in rest)
    run(parallel_for(), ctypes.byref(sizes), *before, ctypes.byref(pointers), *after)


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.contiguous() for x in tensors]
