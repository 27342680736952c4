"""Hierarchical mLSTM on chunks as Triton kernels: products on tensor cores, memories in a Fenwick tree.

What is asked for here is which rows a call has: full ones, whose tables follow from shapes, so that nothing waits for
the GPU; rows with masks and resets; and rows that go on from a state.
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.backends import uncompiled
from exlstm.ops.checks import state_dtype
from exlstm.ops.chunkwise import hmlstm as chunkwise
from exlstm.ops.chunkwise.layout import Layout
from exlstm.ops.hmlstm import HMLSTMState
from exlstm.ops.reference import hmlstm as reference
from exlstm.ops.triton.hmlstm_call import forward
from exlstm.ops.triton.hmlstm_tables import tables_from_empty, tables_of
from exlstm.ops.triton.hmlstm_tiles import chunk_of
from exlstm.ops.triton.launch import WIDEST


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
    """`exlstm.ops.hmlstm` in chunks of about `chunk_size` steps: 16 to 256.

    `state` None is an empty memory. Float64, and heads of more than 512 columns, are left to the torch backend, as in
    `exlstm.ops.triton.mlstm`.
    """
    dtype, common = state_dtype(q, k, v, i, f, level), q.dtype if q.dtype == k.dtype == v.dtype else torch.float32
    options: dict[str, Any] = {"mask": mask, "reset": reset, "chunk_size": chunk_size, "return_state": return_state}
    if q.shape[1] == 1:
        return reference.hmlstm(q, k, v, i, f, level, state, **options)
    if dtype == torch.float64 or max(q.shape[-1], v.shape[-1]) > WIDEST:
        return chunkwise.hmlstm(q, k, v, i, f, level, state, **options)
    inputs, size = (*(x.to(common) for x in (q, k, v)), i, f, level), chunk_size or 0
    if state is not None:
        h, after = _from_state(inputs, state, mask, reset, size, return_state)
    elif mask is None and reset is None:
        h, after = _of_full_rows(inputs, None, size, return_state)
    else:
        h, after = _of_marked_rows(inputs, mask, reset, size, return_state)
    return h.to(v.dtype), after


def _of_full_rows(
    inputs: tuple[Tensor, ...], log_decay: Tensor | None, chunk_size: int, return_state: bool
) -> tuple[Tensor, HMLSTMState | None]:
    """From an empty memory, over steps that are all there: the tables follow from shapes."""
    h, C, n, m, decay, *_ = forward(*inputs, *[None] * 3, log_decay, *[None] * 3, (), (), chunk_size, return_state)
    if not return_state:
        return h, None
    position = torch.full((len(h),), h.shape[1], dtype=torch.int64, device=h.device)
    return h, HMLSTMState(C, n, m, decay if log_decay is None else decay + log_decay, position)


@uncompiled
def _of_marked_rows(
    inputs: tuple[Tensor, ...], mask: Tensor | None, reset: Tensor | None, chunk_size: int, return_state: bool
) -> tuple[Tensor, HMLSTMState | None]:
    """From an empty memory, with a mask or resets."""
    q, _, v, _, _, level = inputs
    batch, time, _, dk = q.shape
    chunk = chunk_of(q.dtype, dk, v.shape[-1], time, chunk_size)
    layout = Layout.from_empty(batch, time, chunk, mask, reset, q.device)
    if layout.chunks == 0:  # no step is present
        marks = {"mask": mask, "reset": reset}
        return chunkwise.hmlstm(*inputs, None, **marks, chunk_size=chunk, return_state=return_state)
    tables, counts = tables_from_empty(layout, batch, level.shape[-1])
    rows = mask, reset, torch.zeros_like(layout.position), tables, counts
    h, C, n, m, decay, *_ = forward(*inputs, *[None] * 4, *rows, chunk_size, return_state)
    if not return_state:
        return h, None
    # C, n and m are 0 where the row's last document has no step; no chunk ends there, whose kernel would write this.
    decay = decay.masked_fill((layout.last == layout.chunks)[:, None], 0.0)
    return h, HMLSTMState(C, n, m, decay, layout.position)


@uncompiled
def _from_state(
    inputs: tuple[Tensor, ...],
    state: HMLSTMState,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    return_state: bool,
) -> tuple[Tensor, HMLSTMState | None]:
    q, _, v, _, _, level = inputs
    batch, time, _, dk = q.shape
    levels, empty = level.shape[-1], not bool((state.position > 0).any())
    if empty and mask is None and reset is None:
        return _of_full_rows(inputs, state.log_decay, chunk_size, return_state)
    begun = state.position & ((1 << (levels - 1)) - 1)
    chunk = chunk_of(q.dtype, dk, v.shape[-1], time, chunk_size)
    layout = Layout.of(batch, time, chunk, begun, mask, reset)
    if layout.chunks == 0:
        marks = {"mask": mask, "reset": reset}
        return chunkwise.hmlstm(*inputs, state, **marks, chunk_size=chunk, return_state=return_state)
    tables, counts = tables_of(layout, batch, levels, begun, None if empty else _held(state, chunk))
    memory = (None, None, None) if empty else state[:3]
    rows = mask, reset, begun, tables, counts
    h, C, n, m, decay, *_ = forward(*inputs, *memory, state.log_decay, *rows, chunk_size, return_state)
    if not return_state:
        return h, None
    goes_on = torch.where(layout.emptied, 0, 1)
    computed = HMLSTMState(
        C, n, m, decay + goes_on[:, None] * state.log_decay, layout.position + goes_on * (state.position - begun)
    )
    untouched = layout.last == layout.chunks  # the row's last document has no step here
    ended = untouched & layout.emptied

    def choose(new: Tensor, old: Tensor) -> Tensor:
        rows = (-1, *[1] * (new.dim() - 1))
        return torch.where(ended.view(rows), 0, torch.where(untouched.view(rows), old, new))

    return h, HMLSTMState(*(choose(x, y) for x, y in zip(computed, state, strict=True)))


def _held(state: HMLSTMState, size: int) -> Tensor:
    """Which slots hold something, bool [B, S]: if a chunk has more levels than the state, put in before the last."""
    levels = state.m.shape[-1]
    held = reference.held_slots(state.position, levels)
    missing = max(0, size.bit_length() - levels)
    return torch.cat([held[:, :-1], held.new_zeros(len(held), missing), held[:, -1:]], 1)
