"""Device code of the chunkwise mLSTM, backward; names and layouts are those of `mlstm_kernels`.

With r_t = 1 / denominator, dd_t the gradient of d_t (`reads_kernel`) and
dS_ts = E_ts (r_t dh_t . v_s + dd_t) / sqrt(DK):

    dq_t = u_t (r_t C_c dh_t + dd_t n_c) / sqrt(DK) + sum_s dS_ts k_s
    dk_s = w_s (dC_{c+1} v_s + dn_{c+1})            + sum_t dS_ts q_t
    dv_s = w_s dC_{c+1}^T k_s                       + sum_t A_ts r_t dh_t
    dC_c = kept_c dC_{c+1} + sum_t (u_t r_t q_t / sqrt(DK)) dh_t^T              (dn likewise, of u_t dd_t q_t)

The last is the recurrence of the forward, in reverse (`mlstm_kernels.states_kernel`).

Every weight is the exponential of a sum of gates, so that a gate's gradient is the sum of P = weight x gradient over
the weights it is part of: i_s of all that read step s, log f_t of all that from t on read a step before t. Inside a
chunk P_ts = A_ts (r_t dh_t . v_s + dd_t), whose sums over s and over t are taken of the same numbers, so that what log
forget gates have not part in cancels to the last bits. Of what t reads of the chunk's start the sum of P is q_t . dq_t
of that part, of what reads s later k_s . dk_s of that part; what is read later and was written before is
X_c = kept_c (<dC_{c+1}, C_c> + <dn_{c+1}, n_c>). h does not depend on the stabiliser m, which cancels, but for eps:
that part, at most eps / denominator of the rest, is left out.
"""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import log_sigmoid, through_denominator
from exlstm.ops.triton.mlstm_kernels import products_of, rows_of, visible_weights


@triton.jit(do_not_specialize=["T", "H", "N"])
def reads_kernel(
    h_ptr, dh_ptr, d_ptr, F_ptr, M_ptr, u_ptr, r_ptr, dd_ptr, ur_ptr, ud_ptr,
    T, H, N, scale, DV: tl.constexpr, L: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """r and dd of BT steps of one head, and both times u / sqrt(DK)."""
    block, row = tl.program_id(0), tl.program_id(1)
    b, head = row // H, row % H
    t = block * BT + tl.arange(0, BT)
    at = row.to(tl.int64) * N * L + t
    u = tl.load(u_ptr + at) * scale
    if NORMALISED:
        e = tl.arange(0, BV)
        inside = (t < T)[:, None] & (e < DV)[None, :]
        h = tl.load(rows_of(h_ptr, b, t, head, T, H, DV, e), mask=inside, other=0.0).to(tl.float32)
        dh = tl.load(rows_of(dh_ptr, b, t, head, T, H, DV, e), mask=inside, other=0.0).to(tl.float32)
        m = tl.load(F_ptr + at) + tl.load(M_ptr + at)
        r, dd = through_denominator(h, dh, tl.load(d_ptr + at), m)
    else:
        r, dd = tl.full((BT,), 1.0, tl.float32), tl.zeros((BT,), tl.float32)
    tl.store(r_ptr + at, r)
    tl.store(dd_ptr + at, dd)
    tl.store(ur_ptr + at, u * r)
    tl.store(ud_ptr + at, u * dd)


@triton.jit(do_not_specialize=["T", "H", "N"])
def scores_backward_kernel(
    q_ptr, k_ptr, v_ptr, dh_ptr, a_ptr, M_ptr, r_ptr, dd_ptr, document_ptr, A_ptr, dS_ptr, sums_t_ptr, sums_s_ptr,
    T, H, N, scale, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, B: tl.constexpr, BD: tl.constexpr,
    NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dS and A_ts r_t [B H, N, L, L] in B rows of one chunk and head, but for the blocks that see nothing.

    And the sums of P of these rows, and of the columns in them [B H, N, L / B, L].
    """
    c, row = tl.program_id(1), tl.program_id(2)
    b, head = row // H, row % H
    chunk = row.to(tl.int64) * N + c
    begin = tl.program_id(0) * B
    step = begin + tl.arange(0, B)
    t = c * L + step
    M = tl.load(M_ptr + chunk * L + step)
    r, dd = tl.load(r_ptr + chunk * L + step), tl.load(dd_ptr + chunk * L + step)
    documents = document_ptr + (b.to(tl.int64) * N + c) * L if document_ptr is not None else document_ptr
    document = step
    if document_ptr is not None:
        document = tl.load(documents + step)
    sums_s_ptr += (chunk * (L // B) + tl.program_id(0)) * L
    sums_t = tl.zeros((B,), tl.float32)
    for s0 in range(0, tl.minimum(begin + B, T - c * L), B):
        source = s0 + tl.arange(0, B)
        document_s = source
        if document_ptr is not None:
            document_s = tl.load(documents + source)
        a = tl.load(a_ptr + chunk * L + source)
        E = scale * visible_weights(
            a[None, :], M[:, None], source[None, :], step[:, None], document_s[None, :], document[:, None],
            document_ptr is not None,
        )  # fmt: skip
        at = (chunk * L + step)[:, None] * L + source[None, :]
        S = products_of(q_ptr, k_ptr, b, t, c * L + source, head, T, H, DK, B, B, BD, PRECISION)
        tl.store(A_ptr + at, (S * E * r[:, None]).to(A_ptr.dtype.element_ty))
        dS = products_of(dh_ptr, v_ptr, b, t, c * L + source, head, T, H, DV, B, B, BD, PRECISION)
        dS = (dS * r[:, None] + dd[:, None]) * E
        tl.store(dS_ptr + at, dS.to(dS_ptr.dtype.element_ty))
        P = S * dS
        sums_t += tl.sum(P, 1)
        tl.store(sums_s_ptr + source, tl.sum(P, 0))
    tl.store(sums_t_ptr + chunk * L + step, sums_t)


@triton.jit(do_not_specialize=["T", "H", "N"])
def queries_kernel(
    q_ptr, k_ptr, dh_ptr, dS_ptr, ur_ptr, ud_ptr, C_ptr, n_ptr, dq_ptr, qdq_ptr,
    T, H, N, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    BD: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of BT steps of one chunk and head, and q . dq of what they read of its start; BK covers DK."""
    c, row = tl.program_id(1), tl.program_id(2)
    b, head = row // H, row % H
    chunk = row.to(tl.int64) * N + c
    begin = tl.program_id(0) * BT
    x = tl.arange(0, BK)
    in_x = x < DK
    step = begin + tl.arange(0, BT)
    t = c * L + step
    here = (t < T)[:, None]

    dq = tl.zeros((BT, BK), tl.float32)
    for e0 in range(0, DV, BD):
        e = e0 + tl.arange(0, BD)
        dh = tl.load(rows_of(dh_ptr, b, t, head, T, H, DV, e), mask=here & (e < DV)[None, :], other=0.0)
        at = chunk * DK * DV + x[:, None] * DV + e[None, :]
        C = tl.load(C_ptr + at, mask=in_x[:, None] & (e < DV)[None, :], other=0.0)
        dq = tl.dot(dh.to(C.dtype), tl.trans(C), dq, input_precision=PRECISION)
    dq *= tl.load(ur_ptr + chunk * L + step)[:, None]
    if NORMALISED:
        n = tl.load(n_ptr + chunk * DK + x, mask=in_x, other=0.0)
        dq += tl.load(ud_ptr + chunk * L + step)[:, None] * n[None, :]
    q = tl.load(rows_of(q_ptr, b, t, head, T, H, DK, x), mask=here & in_x[None, :], other=0.0)
    tl.store(qdq_ptr + chunk * L + step, tl.sum(q.to(tl.float32) * dq, 1))
    for s0 in range(0, tl.minimum(begin + BT, T - c * L), BD):
        source = s0 + tl.arange(0, BD)
        s = c * L + source
        dS = tl.load(dS_ptr + (chunk * L + step)[:, None] * L + source[None, :])
        k = tl.load(rows_of(k_ptr, b, s, head, T, H, DK, x), mask=(s < T)[:, None] & in_x[None, :], other=0.0)
        dq = tl.dot(dS, k, dq, input_precision=PRECISION)
    tl.store(rows_of(dq_ptr, b, t, head, T, H, DK, x), dq.to(dq_ptr.dtype.element_ty), mask=here & in_x[None, :])


@triton.jit(do_not_specialize=["N"])
def beyond_kernel(
    C_ptr, n_ptr, dC_ptr, dn_ptr, kept_ptr, X_ptr,
    N, DK: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """X of one chunk and head: from the memory before the chunk and the gradient after it."""
    c, row = tl.program_id(0), tl.program_id(1)
    chunk = row.to(tl.int64) * N + c
    offset = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, DK * DV, BLOCK):
        at, inside = begin + offset, begin + offset < DK * DV
        C = tl.load(C_ptr + chunk * DK * DV + at, mask=inside, other=0.0).to(tl.float32)
        total += C * tl.load(dC_ptr + chunk * DK * DV + at, mask=inside, other=0.0).to(tl.float32)
    X = tl.sum(total, 0)
    if NORMALISED:
        x = tl.arange(0, BK)
        n = tl.load(n_ptr + chunk * DK + x, mask=x < DK, other=0.0)
        X += tl.sum(n * tl.load(dn_ptr + chunk * DK + x, mask=x < DK, other=0.0), 0)
    tl.store(X_ptr + chunk, X * tl.load(kept_ptr + chunk))


@triton.jit(do_not_specialize=["T", "H", "N"])
def keys_kernel(
    q_ptr, k_ptr, v_ptr, dS_ptr, w_ptr, dC_ptr, dn_ptr, dk_ptr, kdk_ptr,
    T, H, N, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BS: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk of BS steps of one chunk and head, and k . dk of what reads them after it; BK covers DK."""
    c, row = tl.program_id(1), tl.program_id(2)
    b, head = row // H, row % H
    chunk = row.to(tl.int64) * N + c
    begin = tl.program_id(0) * BS
    x = tl.arange(0, BK)
    in_x = x < DK
    source = begin + tl.arange(0, BS)
    s = c * L + source
    here = (s < T)[:, None]

    dk = tl.zeros((BS, BK), tl.float32)
    for e0 in range(0, DV, BD):
        e = e0 + tl.arange(0, BD)
        v = tl.load(rows_of(v_ptr, b, s, head, T, H, DV, e), mask=here & (e < DV)[None, :], other=0.0)
        at = chunk * DK * DV + x[:, None] * DV + e[None, :]
        dC = tl.load(dC_ptr + at, mask=in_x[:, None] & (e < DV)[None, :], other=0.0)
        dk = tl.dot(v.to(dC.dtype), tl.trans(dC), dk, input_precision=PRECISION)
    if NORMALISED:
        dk += tl.load(dn_ptr + chunk * DK + x, mask=in_x, other=0.0)[None, :]
    dk *= tl.load(w_ptr + chunk * L + source)[:, None]
    k = tl.load(rows_of(k_ptr, b, s, head, T, H, DK, x), mask=here & in_x[None, :], other=0.0)
    tl.store(kdk_ptr + chunk * L + source, tl.sum(k.to(tl.float32) * dk, 1))
    for t0 in range(begin, tl.minimum(L, T - c * L), BD):
        step = t0 + tl.arange(0, BD)
        t = c * L + step
        dS = tl.load(dS_ptr + (chunk * L + step)[:, None] * L + source[None, :])
        q = tl.load(rows_of(q_ptr, b, t, head, T, H, DK, x), mask=(t < T)[:, None] & in_x[None, :], other=0.0)
        dk = tl.dot(tl.trans(dS), q, dk, input_precision=PRECISION)
    tl.store(rows_of(dk_ptr, b, s, head, T, H, DK, x), dk.to(dk_ptr.dtype.element_ty), mask=here & in_x[None, :])


@triton.jit(do_not_specialize=["T", "H", "N"])
def values_kernel(
    k_ptr, dh_ptr, A_ptr, w_ptr, dC_ptr, dv_ptr,
    T, H, N, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BS: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dv of BS steps in one tile of BV columns, of one chunk and head; A_ptr holds A_ts r_t."""
    tile, c, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles: tl.constexpr = (DV + BV - 1) // BV
    b, head = row // H, row % H
    chunk = row.to(tl.int64) * N + c
    begin = (tile // tiles) * BS
    e = (tile % tiles) * BV + tl.arange(0, BV)
    source = begin + tl.arange(0, BS)
    s = c * L + source
    here, in_e = (s < T)[:, None], (e < DV)[None, :]

    dv = tl.zeros((BS, BV), tl.float32)
    for x0 in range(0, DK, BD):
        x = x0 + tl.arange(0, BD)
        k = tl.load(rows_of(k_ptr, b, s, head, T, H, DK, x), mask=here & (x < DK)[None, :], other=0.0)
        dC = tl.load(dC_ptr + chunk * DK * DV + x[:, None] * DV + e[None, :], mask=(x < DK)[:, None] & in_e, other=0.0)
        dv = tl.dot(k.to(dC.dtype), dC, dv, input_precision=PRECISION)
    dv *= tl.load(w_ptr + chunk * L + source)[:, None]
    for t0 in range(begin, tl.minimum(L, T - c * L), BD):
        step = t0 + tl.arange(0, BD)
        t = c * L + step
        A = tl.load(A_ptr + (chunk * L + step)[:, None] * L + source[None, :])
        dh = tl.load(rows_of(dh_ptr, b, t, head, T, H, DV, e), mask=(t < T)[:, None] & in_e, other=0.0)
        dv = tl.dot(tl.trans(A), dh, dv, input_precision=PRECISION)
    tl.store(rows_of(dv_ptr, b, s, head, T, H, DV, e), dv.to(dv_ptr.dtype.element_ty), mask=here & in_e)


@triton.jit(do_not_specialize=["T", "H", "N"])
def gates_backward_kernel(
    i_ptr, f_ptr, mask_ptr, sums_t_ptr, sums_s_ptr, qdq_ptr, kdk_ptr, X_ptr, di_ptr, df_ptr,
    T, H, N, L: tl.constexpr, B: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """The gradients of one chunk's gates, of one head."""
    c, row = tl.program_id(0), tl.program_id(1)
    b = (row // H).to(tl.int64)
    step = tl.arange(0, L)
    t = c * L + step
    inside = t < T
    at = (b * T + t) * H + row % H
    chunk = row.to(tl.int64) * N + c
    sums_s = tl.zeros((L,), tl.float32)
    for block in tl.static_range(L // B):
        read = inside & (step < (block + 1) * B)
        sums_s += tl.load(sums_s_ptr + (chunk * (L // B) + block) * L + step, mask=read, other=0.0)
    x = tl.load(sums_t_ptr + chunk * L + step) + tl.load(qdq_ptr + chunk * L + step) - sums_s
    kdk = tl.load(kdk_ptr + chunk * L + step)
    d_log_f = tl.sum(x, 0) - tl.cumsum(x, 0) + x
    d_log_f += tl.cumsum(kdk, 0) - kdk + tl.load(X_ptr + chunk)
    if mask_ptr is not None:
        d_log_f = tl.where(tl.load(mask_ptr + b * T + t, mask=inside, other=0) != 0, d_log_f, 0.0)
    di = sums_s + kdk
    if SIGMOID:
        i = tl.load(i_ptr + at, mask=inside, other=0.0).to(tl.float32)
        di *= tl.exp(log_sigmoid(-i))
    f = tl.load(f_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(di_ptr + at, di.to(di_ptr.dtype.element_ty), mask=inside)
    tl.store(df_ptr + at, (d_log_f * tl.exp(log_sigmoid(-f))).to(df_ptr.dtype.element_ty), mask=inside)
