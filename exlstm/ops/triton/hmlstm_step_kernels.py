"""Device code of one step of a hierarchical mLSTM: slots of memories count as a binary counter does."""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import denominator, log_sigmoid

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def of_slot(x, slot, s):
    """The entry of slot s in what a vector of slots says."""
    return tl.sum(tl.where(slot == s, x, 0.0), 0)


@triton.jit
def step_kernel(
    q_ptr, k_ptr, v_ptr, i_ptr, f_ptr, level_ptr, mask_ptr, C_ptr, n_ptr, m_ptr, decay_ptr, position_ptr,
    h_ptr, n1_ptr, m1_ptr, decay1_ptr, position1_ptr,
    q_row, k_row, v_row, i_row, f_row, level_row, H, scale, LEVELS: tl.constexpr, SLOTS: tl.constexpr,
    DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """BV columns of the memories [levels, DK, DV] of one head, changed where they lie; the rest is written apart."""
    tile, row = tl.program_id(0), tl.program_id(1)
    b, head = row // H, row % H
    e = tile * BV + tl.arange(0, BV)
    in_e = e < DV
    present = tl.load(mask_ptr + b) != 0
    i = tl.load(i_ptr + b * i_row + head).to(tl.float32)
    log_f = log_sigmoid(tl.load(f_ptr + b * f_row + head).to(tl.float32))
    position = tl.load(position_ptr + b)
    slot = tl.arange(0, SLOTS)
    exists, last = slot < LEVELS, slot == LEVELS - 1
    bits = position >> tl.minimum(slot, 62).to(tl.int64)
    held = exists & ((bits % 2 == 1) | (last & (bits > 0)))
    # Full slots up to the first free one, or to the last, which is never freed, become that one.
    full = exists & (((position + 1) >> tl.minimum(slot, 62).to(tl.int64)) << tl.minimum(slot, 62) == position + 1)
    target = tl.sum(full.to(tl.int32), 0) - 1
    before = tl.load(m_ptr + row * LEVELS + slot, mask=exists, other=0.0)
    m = tl.where(held, before + log_f, NOTHING)
    decay_before = tl.load(decay_ptr + row)
    decay = decay_before + log_f

    level_ptr += b * level_row + head * LEVELS
    level = tl.load(level_ptr + tl.minimum(slot + 1, LEVELS - 1), mask=exists, other=0.0).to(tl.float32)
    itself = i + tl.load(level_ptr).to(tl.float32)
    m_read = tl.maximum(tl.maximum(decay, itself), tl.max(m + level, 0))
    read = tl.exp(m + level - m_read)
    merging = tl.where(slot <= target, m, NOTHING)
    m_new = tl.maximum(i, tl.max(merging, 0))
    merge = tl.exp(merging - m_new)
    read_itself, write = tl.exp(itself - m_read), tl.exp(i - m_new)

    v = tl.load(v_ptr + b * v_row + head * DV + e, mask=in_e, other=0.0).to(tl.float32)
    h = tl.zeros((BV,), tl.float32)
    d = 0.0
    for x0 in range(0, DK, BK):
        x = x0 + tl.arange(0, BK)
        in_x = x < DK
        inside = in_x[:, None] & in_e[None, :]
        changes = tl.where(present, inside, False)
        q = tl.load(q_ptr + b * q_row + head * DK + x, mask=in_x, other=0.0).to(tl.float32) * scale
        k = tl.load(k_ptr + b * k_row + head * DK + x, mask=in_x, other=0.0).to(tl.float32)
        qk = tl.sum(q * k, 0) * read_itself
        h += qk * v
        d += qk
        C, n = k[:, None] * (v * write)[None, :], k * write
        for s in range(LEVELS):
            at = (row.to(tl.int64) * LEVELS + s) * DK
            inner = (at + x)[:, None] * DV + e[None, :]
            n_s = tl.zeros((BK,), tl.float32)
            if of_slot(held.to(tl.float32), slot, s) > 0:
                C_s = tl.load(C_ptr + inner, mask=inside, other=0.0)
                n_s = tl.load(n_ptr + at + x, mask=in_x, other=0.0)
                by = q * of_slot(read, slot, s)
                h += tl.sum(by[:, None] * C_s, 0)
                d += tl.sum(by * n_s, 0)
                if s <= target:
                    C += of_slot(merge, slot, s) * C_s
                    n += of_slot(merge, slot, s) * n_s
                    if s < target:
                        tl.debug_barrier()  # other threads may have loaded what this one is to overwrite
                        tl.store(C_ptr + inner, tl.zeros((BK, BV), tl.float32), mask=changes)
            if tile == 0:
                after = tl.where(s < target, 0.0, n_s)
                if s == target:
                    after = n
                if not present:
                    after = tl.load(n_ptr + at + x, mask=in_x, other=0.0)
                tl.store(n1_ptr + at + x, after, mask=in_x)
        at = (row.to(tl.int64) * LEVELS + target) * DK
        tl.store(C_ptr + (at + x)[:, None] * DV + e[None, :], C, mask=changes)
    h /= denominator(d, m_read)
    tl.store(h_ptr + row * DV + e, h.to(h_ptr.dtype.element_ty), mask=in_e)
    if tile == 0:
        after = tl.where(slot == target, m_new, tl.where(held & (slot > target), m, 0.0))
        tl.store(m1_ptr + row * LEVELS + slot, tl.where(present, after, before), mask=exists)
        tl.store(decay1_ptr + row, tl.where(present, decay, decay_before))
        if head == 0:
            tl.store(position1_ptr + b, position + present.to(tl.int64))
