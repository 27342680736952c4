"""Device code of one step of an mLSTM: the memory is read and written once."""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import denominator, log_sigmoid


@triton.jit
def step_kernel(
    q_ptr, k_ptr, v_ptr, i_ptr, f_ptr, mask_ptr, reset_ptr, C_ptr, n_ptr, m_ptr, h_ptr, C1_ptr, n1_ptr, m1_ptr,
    q_row, k_row, v_row, i_row, f_row, H, scale, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """BV columns of the memory of one head: q, k [B, H, DK], v [B, H, DV], gates [B, H]; C_ptr None: it is empty.

    C1_ptr may be C_ptr; not so n1_ptr and m1_ptr, for other programs of the head still read what is there.
    """
    tile, row = tl.program_id(0), tl.program_id(1)
    b, head = row // H, row % H
    e = tile * BV + tl.arange(0, BV)
    in_e = e < DV
    i = tl.load(i_ptr + b * i_row + head).to(tl.float32)
    log_f = log_sigmoid(tl.load(f_ptr + b * f_row + head).to(tl.float32))
    m = 0.0
    if C_ptr is not None:
        m = tl.load(m_ptr + row)
    held = 1.0  # 0 where the memory is emptied first
    if reset_ptr is not None:
        held = tl.where(tl.load(reset_ptr + b) != 0, 0.0, 1.0)
        m *= held
    if SIGMOID:
        m_new = m
        keep, write = tl.exp(log_f), tl.exp(log_sigmoid(i))
    else:
        m_new = tl.maximum(log_f + m, i)
        keep, write = tl.exp(log_f + m - m_new), tl.exp(i - m_new)
    present = 1.0
    if mask_ptr is not None:
        absent = tl.load(mask_ptr + b) == 0
        keep, write, m_new = tl.where(absent, 1.0, keep), tl.where(absent, 0.0, write), tl.where(absent, m, m_new)
        present = tl.where(absent, 0.0, 1.0)
    v = tl.load(v_ptr + b * v_row + head * DV + e, mask=in_e, other=0.0).to(tl.float32) * write
    h = tl.zeros((BV,), tl.float32)
    d = 0.0
    for x0 in range(0, DK, BK):
        x = x0 + tl.arange(0, BK)
        in_x = x < DK
        q = tl.load(q_ptr + b * q_row + head * DK + x, mask=in_x, other=0.0).to(tl.float32) * scale
        k = tl.load(k_ptr + b * k_row + head * DK + x, mask=in_x, other=0.0).to(tl.float32)
        at = row.to(tl.int64) * DK * DV + x[:, None] * DV + e[None, :]
        inside = in_x[:, None] & in_e[None, :]
        C, n = k[:, None] * v[None, :], k * write
        if C_ptr is not None:
            C += tl.where(held > 0, tl.load(C_ptr + at, mask=inside, other=0.0), 0.0) * keep
            n += tl.where(held > 0, tl.load(n_ptr + row * DK + x, mask=in_x, other=0.0), 0.0) * keep
        tl.store(C1_ptr + at, C, mask=inside)
        h += tl.sum(q[:, None] * C, 0)
        if SIGMOID:
            n *= 0.0
        d += tl.sum(q * n, 0)
        if tile == 0:
            tl.store(n1_ptr + row * DK + x, n, mask=in_x)
    if not SIGMOID:
        h /= denominator(d, m_new)
    tl.store(h_ptr + row * DV + e, (h * present).to(h_ptr.dtype.element_ty), mask=in_e)
    if tile == 0:
        tl.store(m1_ptr + row, m_new)
