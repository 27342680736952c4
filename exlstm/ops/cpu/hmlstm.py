"""Hierarchical mLSTM on chunks in C++: all products of a chunk in the cache, heads and documents in parallel."""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.backends import uncompiled
from exlstm.ops.checks import state_dtype
from exlstm.ops.chunkwise import hmlstm as chunkwise
from exlstm.ops.chunkwise.layout import Layout
from exlstm.ops.chunkwise.tree import Memory
from exlstm.ops.cpu.build import load, obstacle_of, parallel_for, real_of
from exlstm.ops.hmlstm import HMLSTMState
from exlstm.ops.operator import operator
from exlstm.ops.reference import hmlstm as reference

CHUNK_SIZE = 64
_SOURCE = Path(__file__).with_name("hmlstm.cpp")

obstacle = functools.partial(obstacle_of, _SOURCE)


@uncompiled
def hmlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    level: Tensor,
    state: HMLSTMState | None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int | None = None,
    return_state: bool = True,
) -> tuple[Tensor, HMLSTMState | None]:
    """`exlstm.ops.hmlstm` on a CPU, in chunks of `chunk_size` steps.

    The kernel begins with empty memories; a call that goes on from a state that holds something is chunkwise's.
    """
    time, dtype = q.shape[1], state_dtype(q, k, v, i, f, level)
    if time == 1:
        return reference.hmlstm(q, k, v, i, f, level, state, mask=mask, reset=reset, return_state=return_state)
    if state is not None and bool((state.position > 0).any()):
        options = {"mask": mask, "reset": reset, "chunk_size": chunk_size, "return_state": return_state}
        return chunkwise.hmlstm(q, k, v, i, f, level, state, **options)
    size = chunk_size or min(CHUNK_SIZE, 1 << (time - 1).bit_length())
    layout = Layout.from_empty(len(q), time, size, mask, reset, q.device)
    before = (state or HMLSTMState.empty_for(q, k, v, i, f, level)) if return_state else None
    if layout.chunks == 0:
        return chunkwise.zeros_of(v), before
    i, lf = layout.gather(i.to(dtype), -torch.inf), layout.gather(logsigmoid(f.to(dtype)))
    at = _gates(layout, i, lf, layout.gather(level.to(dtype)))
    common = torch.bfloat16 if {q.dtype, k.dtype, v.dtype} == {torch.bfloat16} else dtype
    inputs = [x.to(common) for x in (q, k, v)]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, i, f, level))
    all_present = len(layout.steps) == q.shape[0] * time
    h, C, n, *_ = _forward(*inputs, *at.weights, at.step, at.first, all_present, keep)
    return h.to(v.dtype), None if before is None else _final(layout, at, k, v, C, n, before)


class _Gates(NamedTuple):
    """What the kernel and the final state need to know of the gates; logarithms of weights."""

    weights: tuple[Tensor, ...]  # a, M, m, w [M, H, L], level [M, H, L, levels], u [depth, M, H, L], older, newer
    blocks: Tensor  # [depth, M, H] the largest log weight in the block of 2^b chunks that ends with a chunk
    elapsed: Tensor  # [M + 1, H] float64, sum of log f before every chunk boundary
    to_end: Tensor  # [M, H, L] of a step at the end of its chunk
    step: Tensor  # [M * L] int64, the step in [B * T], -1 where there is none
    first: Tensor  # [documents + 1] int64, the first chunk of every document


def _gates(layout: Layout, i: Tensor, lf: Tensor, level: Tensor) -> _Gates:
    """From i, lf [M, H, L] and level [M, H, L, levels]; the formulas are those of `chunkwise.hmlstm`."""
    size, top = layout.size, level.shape[-1] - 1
    inside = size.bit_length() - 1
    F = lf.cumsum(-1)
    a, total = i - F, F[..., -1]
    elapsed = torch.cat([total.new_zeros(1, total.shape[1]), total]).double().cumsum(0)

    # Memories of blocks: level b + 1 joins neighbours of level b (`older`, `newer`) where chunk numbers allow.
    depth = (int(layout.number.max()) + 1).bit_length()
    to_end = total[..., None] + a
    blocks, older, newer = [to_end.amax(-1)], [], []
    for b in range(depth):
        ends = ((layout.number + 1) % (2 << b) == 0).nonzero()[:, 0]
        left = ends - (1 << b)
        m_older = blocks[b][left] + (elapsed[ends + 1] - elapsed[left + 1]).to(a.dtype)
        m_newer = blocks[b][ends]
        m = torch.maximum(m_older, m_newer)
        nowhere = torch.full_like(total, -torch.inf)
        older.append(nowhere.index_copy(0, ends, m_older - m))
        newer.append(nowhere.index_copy(0, ends, m_newer - m))
        blocks.append(blocks[b].index_copy(0, ends, m))

    # What steps read: their own chunk, by levels, and the blocks of the set bits of its number.
    floor = (elapsed[:-1] - elapsed[layout.start]).to(a.dtype)
    M = torch.maximum(_largest_read(a, level), floor[..., None])
    reads = []
    for b in range(depth):
        chunk = ((layout.number >> b) & 1).nonzero()[:, 0]
        end = layout.start[chunk] + ((layout.number[chunk] >> b) << b) - 1
        since = (elapsed[chunk] - elapsed[end + 1]).to(a.dtype)
        log = (blocks[b][end] + since)[..., None] + level[chunk, ..., min(1 + inside + b, top)]
        reads.append(torch.full_like(a, -torch.inf).index_copy(0, chunk, log))
    u = torch.stack(reads)
    M = torch.maximum(M, u.amax(0))
    step = torch.full((layout.chunks * size,), -1, device=a.device).index_copy(0, layout.places, layout.steps)
    starts = (layout.start == torch.arange(layout.chunks, device=a.device)).nonzero()[:, 0]
    first = torch.cat([starts, starts.new_tensor([layout.chunks])])
    weights = (a, M, F + M, a - a.amax(-1, keepdim=True), level, u - M, torch.stack(older), torch.stack(newer))
    return _Gates(weights, torch.stack(blocks[:-1]), elapsed, to_end, step, first)


def _largest_read(a: Tensor, level: Tensor) -> Tensor:
    """The largest log weight that a step [M, H, L] reads in its chunk: its own, and by halves, those before it."""
    top = level.shape[-1] - 1
    largest = a + level[..., 0]
    for b in range((a.shape[-1] - 1).bit_length()):
        pairs = a.unflatten(-1, (-1, 2, 1 << b))  # a right half reads the left one
        before = pairs[..., 0, :].amax(-1, keepdim=True).expand_as(pairs[..., 1, :])
        candidate = torch.stack([torch.full_like(before, -torch.inf), before], -2).flatten(-3)
        largest = torch.maximum(largest, candidate + level[..., min(b + 1, top)])
    return largest


def _final(layout: Layout, at: _Gates, k: Tensor, v: Tensor, C: Tensor, n: Tensor, state: HMLSTMState) -> HMLSTMState:
    """The state of every row, from the slots C [documents, depth, H, DK, DV] and the steps of its last chunk."""
    last = layout.last.clamp(max=layout.chunks - 1)  # rows without such a step are mended by `as_state`
    dtype, inside = state.C.dtype, layout.size.bit_length() - 1
    steps = at.step.unflatten(0, (layout.chunks, -1))[last]
    k, v = (x.flatten(0, 1)[steps.clamp(min=0)].transpose(1, 2).to(dtype) for x in (k, v))
    slots = chunkwise.slots_of_steps(k, v, at.to_end[last], layout.position & (layout.size - 1))
    document = torch.searchsorted(at.first, last, right=True) - 1
    number = layout.position >> inside
    for b in range(C.shape[1]):
        end = (layout.start[last] + ((number >> b) << b) - 1).clamp(min=0)
        m = at.blocks[b][end] + (at.elapsed[last + 1] - at.elapsed[end + 1]).to(dtype)
        slots.append(Memory(C[document, b], n[document, b], m).only(((number >> b) & 1).bool()))
    log_decay = (at.elapsed[last + 1] - at.elapsed[layout.start[last]]).to(dtype)
    return chunkwise.as_state(slots, log_decay, layout, state.position, state)


@operator("hmlstm_cpu")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    M: Tensor,
    m: Tensor,
    w: Tensor,
    level: Tensor,
    u: Tensor,
    older: Tensor,
    newer: Tensor,
    step: Tensor,
    first: Tensor,
    all_present: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h [B, T, H, DV], the slots after every document, d and, if `keep`, the memories kept for the backward."""
    h, C, n, d, CT_kept, n_kept = _outputs(q, v, a, u, first, all_present, keep)
    q, k, v, *at = (x.contiguous() for x in (q, k, v, a, M, m, w, level, u, older, newer, step, first))
    _call("forward", q, k, v, at, [h, d, C, n, *((CT_kept, n_kept) if keep else (None, None))])
    return h, C, n, d, CT_kept, n_kept


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, a: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _outputs(q, v, a, rest[4], *rest[-3:])


def _outputs(
    q: Tensor, v: Tensor, a: Tensor, u: Tensor, first: Tensor, all_present: bool, keep: bool
) -> tuple[Tensor, ...]:
    chunks, heads, dk, dv = len(a) if keep else 0, a.shape[1], q.shape[-1], v.shape[-1]
    lanes = load(_SOURCE, real_of(a.dtype)).exlstm_hmlstm_lanes()
    padded = -(-dk // lanes) * lanes
    return (
        _of_steps(v, all_present),
        a.new_zeros(len(first) - 1, len(u), heads, dk, dv),
        a.new_zeros(len(first) - 1, len(u), heads, dk),
        a.new_empty(a.shape),
        a.new_empty(chunks, heads, dv, padded),
        a.new_empty(chunks, heads, padded),
    )


def _of_steps(like: Tensor, all_present: bool) -> Tensor:
    """Room for what the kernel writes at every step that is present; 0 where none is."""
    return like.new_empty(like.shape) if all_present else like.new_zeros(like.shape)


@operator("hmlstm_cpu_backward")
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    M: Tensor,
    m: Tensor,
    w: Tensor,
    level: Tensor,
    u: Tensor,
    older: Tensor,
    newer: Tensor,
    step: Tensor,
    first: Tensor,
    h: Tensor,
    d: Tensor,
    CT_kept: Tensor,
    n_kept: Tensor,
    dh: Tensor,
    dC: Tensor,
    dn: Tensor,
    all_present: bool,
) -> list[Tensor]:
    """The gradients of the floating-point inputs, in order."""
    gradients = [
        *(_of_steps(x, all_present) for x in (q, k, v)),
        *(x.new_empty(x.shape) for x in (a, M, m, w, level)),
        *(x.new_zeros(x.shape) for x in (u, older, newer)),  # written where a chunk reads or joins a slot
    ]
    dq, dk, dv, da, dM, dm, dw, dlevel, du, dolder, dnewer = gradients
    q, k, v, *at = (x.contiguous() for x in (q, k, v, a, M, m, w, level, u, older, newer, step, first))
    saved = [x.contiguous() for x in (h, d, CT_kept, n_kept, dh, dC, dn)]
    _call("backward", q, k, v, at, [*saved, dq, dk, dv, da, dM, dm, dw, dlevel, du, dolder, dnewer])
    return gradients


@_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in inputs[:11]]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    h, _, _, d, CT_kept, n_kept = output
    *tensors, ctx.all_present, _ = inputs
    ctx.save_for_backward(*tensors, h, d, CT_kept, n_kept)


def _derivative(ctx: Any, dh: Tensor, dC: Tensor, dn: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(*ctx.saved_tensors, dh, dC, dn, ctx.all_present), None, None, None, None


_forward.register_autograd(_derivative, setup_context=_setup)


def _call(name: str, q: Tensor, k: Tensor, v: Tensor, at: list[Tensor], rest: list[Tensor | None]) -> None:
    a, level, u, first = at[0], at[4], at[5], at[-1]

    class Sizes(ctypes.Structure):
        _fields_ = (
            *[
                (field, ctypes.c_int64)
                for field in ("documents", "chunks", "heads", "dk", "dv", "size", "depth", "levels")
            ],
            ("scale", ctypes.c_float if a.dtype == torch.float32 else ctypes.c_double),
        )

    sizes = Sizes(len(first) - 1, *a.shape[:2], q.shape[-1], v.shape[-1], a.shape[-1], len(u), level.shape[-1])
    sizes.scale = q.shape[-1] ** -0.5
    # a, M, m, w, level, u, older, newer, step, first
    pointers = (ctypes.c_void_p * len(at))(*(x.data_ptr() for x in at))
    suffix = "bfloat16" if q.dtype == torch.bfloat16 else "real"
    run = getattr(load(_SOURCE, real_of(a.dtype)), f"exlstm_hmlstm_{name}_{suffix}")
    run(
        parallel_for(),
        ctypes.byref(sizes),
        *(ctypes.c_void_p(x.data_ptr()) for x in (q, k, v)),
        ctypes.byref(pointers),
        *(None if x is None else ctypes.c_void_p(x.data_ptr()) for x in rest),
    )
