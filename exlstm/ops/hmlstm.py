"""Hierarchical mLSTM: a matrix memory recalled at several granularities.

The memory is a Fenwick tree of matrix memories: a step p of a document (counted from 0) recalls the steps before it in
blocks of 2^b steps, one for every set bit b of p, fine for the recent and coarse for the distant past, and chooses how
strongly it reads each (the idea is that of Log-Linear Attention, arXiv 2506.04761).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.backends import resolve
from exlstm.ops.checks import check_float, check_shape, check_steps, check_time, state_dtype


class HMLSTMState(NamedTuple):
    """The memory of a hierarchical mLSTM between two steps; float32, or float64 for float64 inputs.

    Slot b holds the block of 2^b steps that bit b of `position` stands for, and is zero where that bit is 0; the last
    slot holds all older steps, for levels past the last one share its weight.
    """

    C: Tensor  # [B, H, levels, DK, DV] matrix memories, slot b scaled by exp(-m[b])
    n: Tensor  # [B, H, levels, DK] normalisers, likewise
    m: Tensor  # [B, H, levels] largest log weight in the slot, seen from now
    log_decay: Tensor  # [B, H] sum of the log forget gates since the memory was empty
    position: Tensor  # [B] int64, unmasked steps since the memory was empty

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        levels: int,
        dk: int,
        dv: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "HMLSTMState":
        """A memory that holds nothing."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch, heads, *shape, dtype=dtype, device=device)

        position = torch.zeros(batch, dtype=torch.int64, device=device)
        return cls(zeros(levels, dk, dv), zeros(levels, dk), zeros(levels), zeros(), position)

    @classmethod
    def empty_for(cls, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, level: Tensor) -> "HMLSTMState":
        """A memory that holds nothing, for a call of `hmlstm`."""
        batch, _, heads, dk = q.shape
        dtype = state_dtype(q, k, v, i, f, level)
        return cls.empty(batch, heads, level.shape[-1], dk, v.shape[-1], dtype=dtype, device=q.device)


def hmlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    level: Tensor,
    state: HMLSTMState | None = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int | None = None,
    return_state: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, HMLSTMState | None]:
    """Run a hierarchical mLSTM over a sequence.

        level(t, s) = 0 if s == t else min(1 + floor(log2(t xor s)), levels - 1)
        logD[t, s]  = sum(log f[s+1..t]) + i_s + level_t[level(t, s)]                    for s <= t
        m_t         = max(sum(log f[..t]), max_s logD[t, s])
        w[t, s]     = exp(logD[t, s] - m_t) q_t . k_s / sqrt(DK)
        h_t         = sum_s w[t, s] v_s / (max(|sum_s w[t, s]|, exp(-m_t)) + 1e-6)

    where t counts a row's unmasked steps since its last reset, from 0. `level = 0` gives `mlstm` exactly.

    Args:
        q: queries [B, T, H, DK].
        k: keys [B, T, H, DK].
        v: values [B, T, H, DV].
        i: input gate pre-activations [B, T, H].
        f: forget gate pre-activations [B, T, H]; the forget gate is sigmoid(f).
        level: log weights [B, T, H, levels] with which a step reads itself (0) and the blocks of 2^(l-1) steps (l);
            the last one serves all larger blocks.
        state: the memory before the first step; None is an empty one.
        mask: bool [B, T]; a False step leaves the memory untouched and outputs 0.
        reset: bool [B, T]; the memory is emptied before a True step, masked or not.
        chunk_size: a power of two, steps worked on at once by the chunkwise backends; None chooses. Results do not
            depend on it.
        return_state: False where nothing goes on from the last step, as in most training: the memory after it has
            DK x DV numbers for every level and head, more than a sequence of a thousand steps, and is not computed.
        backend: "auto", "reference", "torch", "cpu" or "triton".

    Returns:
        h [B, T, H, DV] in the dtype of v, and the memory after the last step, or None.

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend cannot run here.
    """
    check_shape("q", q, (None, None, None, None), "[B, T, H, DK]")
    batch, time, heads, dk = q.shape
    check_time(time)
    check_shape("k", k, (batch, time, heads, dk), "[B, T, H, DK]")
    check_shape("v", v, (batch, time, heads, None), "[B, T, H, DV]")
    check_shape("i", i, (batch, time, heads), "[B, T, H]")
    check_shape("f", f, (batch, time, heads), "[B, T, H]")
    check_shape("level", level, (batch, time, heads, None), "[B, T, H, levels]")
    check_float(q=q, k=k, v=v, i=i, f=f, level=level)
    check_steps("mask", mask, batch, time)
    check_steps("reset", reset, batch, time)
    dv, levels, dtype = v.shape[-1], level.shape[-1], state_dtype(q, k, v, i, f, level)
    if levels < 1:
        raise ValueError("level must have at least one level in its last axis, got 0")
    if chunk_size is not None and (chunk_size < 1 or chunk_size & (chunk_size - 1)):
        raise ValueError(f"chunk_size must be a power of two, got {chunk_size}")
    if state is not None:
        check_shape("state.C", state.C, (batch, heads, levels, dk, dv), "[B, H, levels, DK, DV]")
        check_shape("state.n", state.n, (batch, heads, levels, dk), "[B, H, levels, DK]")
        check_shape("state.m", state.m, (batch, heads, levels), "[B, H, levels]")
        check_shape("state.log_decay", state.log_decay, (batch, heads), "[B, H]")
        check_shape("state.position", state.position, (batch,), "[B]")
        check_float(q=q, C=state.C, n=state.n, m=state.m, log_decay=state.log_decay)
        C, n, m, log_decay = (x.to(dtype) for x in state[:4])
        state = HMLSTMState(C, n, m, log_decay, state.position)
    run = resolve("hmlstm", backend, q.device)
    options = {"mask": mask, "reset": reset, "chunk_size": chunk_size, "return_state": return_state}
    return run(q, k, v, i, f, level, state, **options)
