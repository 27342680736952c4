"""mLSTM on chunks in C++: all products of a chunk in the cache, heads and batch rows in parallel."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.chunkwise.chunks import Chunks
from exlstm.ops.chunkwise.gates import gates
from exlstm.ops.cpu.build import load, obstacle_of, parallel_for, real_of
from exlstm.ops.mlstm import InputGate, MLSTMState
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
    state: MLSTMState,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int | None = None,
    input_gate: InputGate = "exp",
) -> tuple[Tensor, MLSTMState]:
    """`exlstm.ops.mlstm` on a CPU, in chunks of `chunk_size` steps."""
    time, dtype = q.shape[1], state.C.dtype
    if time == 1:
        return reference.mlstm(q, k, v, i, f, state, mask=mask, reset=reset, input_gate=input_gate)
    chunks = Chunks(time, min(chunk_size or CHUNK_SIZE, time))
    at = gates(i, f, state.m, chunks, mask=mask, reset=reset, input_gate=input_gate)
    common = torch.bfloat16 if {q.dtype, k.dtype, v.dtype} == {torch.bfloat16} else dtype
    inputs = (x.to(common) for x in (q, k, v))
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, i, f, state.C, state.n))
    h, C, n, *_ = _forward(*inputs, *at.weights, at.m, at.document, state.C, state.n, chunks.size, keep)
    if mask is not None:
        h = torch.where(mask[..., None, None], h, 0.0)
    return h.to(v.dtype), MLSTMState(C, n, at.final_m)


@torch.library.custom_op("exlstm::mlstm_cpu", mutates_args=())
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
    C: Tensor,
    n: Tensor,
    size: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h [B, T, H, DV] and the memory after the last step; d and, if `keep`, memories kept for the backward."""
    h, C1, n1, d, C_kept, n_kept = _outputs(v, a, C, n, keep)
    tensors = _contiguous(q, k, v, a, M, u, w, kept, m, document, C, n)
    q, k, v, *at, C, n = tensors
    _call("forward", q, v, size, [q, k, v], at, [C, n, h, d, C1, n1, *((C_kept, n_kept) if keep else (None, None))])
    return h, C1, n1, d, C_kept, n_kept


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, a: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    C, n, _, keep = rest[-4:]
    return _outputs(v, a, C, n, keep)


def _outputs(v: Tensor, a: Tensor, C: Tensor, n: Tensor, keep: bool) -> tuple[Tensor, ...]:
    groups = -(-len(a) // GROUP) if keep else 0
    return (
        v.new_empty(v.shape),
        C.new_empty(C.shape),
        n.new_empty(n.shape),
        a.new_empty(a.shape),
        C.new_empty(groups, *C.shape),
        n.new_empty(groups, *n.shape),
    )


@torch.library.custom_op("exlstm::mlstm_cpu_backward", mutates_args=())
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
    dh: Tensor,
    dC: Tensor,
    dn: Tensor,
) -> list[Tensor]:
    """The gradients of q, k, v, a, M, u, w, kept, C, n and, where there is one, m."""
    gradients = _gradients(q, k, v, a, kept, dC, dn, m)
    dq, dk, dv, da, dM, du, dw, dkept, dC0, dn0, *dm = gradients
    tensors = _contiguous(q, k, v, a, M, u, w, kept, m, document, h, d, C_kept, n_kept, dh, dC, dn)
    q, k, v, *at, h, d, C_kept, n_kept, dh, dC, dn = tensors
    out = [dq, dk, dv, da, dM, du, dw, dkept, dm[0] if dm else None, dC0, dn0]
    _call("backward", q, v, size, [q, k, v], at, [h, d, C_kept, n_kept, dh, dC, dn, *out])
    return gradients


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, a: Tensor, *rest: Any) -> list[Tensor]:
    kept, m, dC, dn = rest[3], rest[4], rest[-2], rest[-1]
    return _gradients(q, k, v, a, kept, dC, dn, m)


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, kept: Tensor, dC: Tensor, dn: Tensor, m: Tensor | None
) -> list[Tensor]:
    like = [q, k, v, a, a, a, a, kept, dC, dn, *([] if m is None else [m])]
    return [x.new_empty(x.shape) for x in like]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, _, ctx.size, _ = inputs
    h, _, _, d, C_kept, n_kept = output
    ctx.save_for_backward(*tensors, h, d, C_kept, n_kept)


def _derivative(ctx: Any, dh: Tensor, dC: Tensor, dn: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *gradients, dC0, dn0, dm = [*_backward(*ctx.saved_tensors, ctx.size, dh, dC, dn), None][:11]
    return *gradients, dm, None, dC0, dn0, None, None


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
