"""Device code of the chunkwise mLSTM, backward; names and layouts are those of `mlstm_kernels`.

With r_t = 1 / denominator and dd_t the gradient of d_t (`reads_kernel`):

    dq_t = (u_t (r_t C_c dh_t + dd_t n_c) + sum_s E_ts (r_t dh_t . v_s + dd_t) k_s) / sqrt(DK)
    dk_s = w_s (dC_{c+1} v_s + dn_{c+1})  + sum_t E_ts (r_t dh_t . v_s + dd_t) q_t / sqrt(DK)
    dv_s = w_s dC_{c+1}^T k_s             + sum_t E_ts (q_t . k_s) r_t dh_t / sqrt(DK)
    dC_c = kept_c dC_{c+1} + sum_t u_t q_t (r_t dh_t)^T / sqrt(DK)                  (dn likewise, of dd_t q_t)

What gates receive needs no product of its own. A step's weight exp(i_s) multiplies k_s everywhere, and exp(F_t) what
q_t reads, so di_s = k_s . dk_s; and log f_t gets the sum of q . dq - k . dk from t to the end of the chunk, and from
what lies beyond it <dC_{c+1}, C_{c+1}> + <dn_{c+1}, n_{c+1}>. h does not depend on the stabiliser m, which cancels,
but for eps: that part, at most eps / denominator of the rest, is left out.
"""

import triton
import triton.language as tl

from exlstm.ops.triton.mlstm_kernels import EPS, LARGEST_FLOOR, columns_of, log_sigmoid, rows_of, visible_weights


@triton.jit
def reads_kernel(
    h_ptr, dh_ptr, d_ptr, F_ptr, M_ptr, r_ptr, dd_ptr,
    T, H, N, DV: tl.constexpr, L: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """r and dd of BT steps of one head."""
    block, row = tl.program_id(0), tl.program_id(1)
    b, head = row // H, row % H
    t = block * BT + tl.arange(0, BT)
    e = tl.arange(0, BV)
    inside = (t < T)[:, None] & (e < DV)[None, :]
    at = row.to(tl.int64) * N * L + t
    in_chunks = t < N * L
    h = tl.load(rows_of(h_ptr, b, t, head, T, H, DV, e), mask=inside, other=0.0).to(tl.float32)
    dh = tl.load(rows_of(dh_ptr, b, t, head, T, H, DV, e), mask=inside, other=0.0).to(tl.float32)
    d = tl.load(d_ptr + at, mask=in_chunks, other=0.0)
    m = tl.load(F_ptr + at, mask=in_chunks, other=0.0) + tl.load(M_ptr + at, mask=in_chunks, other=0.0)
    floor = tl.exp(tl.minimum(-m, LARGEST_FLOOR))
    r = 1.0 / (tl.maximum(tl.abs(d), floor) + EPS)
    sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    to_d = tl.where(tl.abs(d) > floor, 1.0, tl.where(tl.abs(d) == floor, 0.5, 0.0))  # as torch.maximum has it
    tl.store(r_ptr + at, r, mask=in_chunks)
    tl.store(dd_ptr + at, -tl.sum(h * dh, 1) * r * to_d * sign, mask=in_chunks)


@triton.jit
def states_backward_kernel(
    q_ptr, dh_ptr, u_ptr, r_ptr, dd_ptr, kept_ptr, C_ptr, n_ptr, C1_ptr, n1_ptr, dC1_ptr, dn1_ptr,
    dC_ptr, dn_ptr, dC0_ptr, dn0_ptr, X_ptr,
    T, H, N, scale, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient of the memory of one head, from the last chunk to the first.

    dC_ptr [B H, N, DK, DV] gets that at every chunk's end, X_ptr [tiles, B H, N] the tile's part of <dC, C> there.
    """
    tile, row = tl.program_id(0), tl.program_id(1)
    tiles: tl.constexpr = (DV + BV - 1) // BV
    b, head = row // H, row % H
    d = (tile // tiles) * BK + tl.arange(0, BK)
    e = (tile % tiles) * BV + tl.arange(0, BV)
    in_d, in_e = d < DK, e < DV
    inside = in_d[:, None] & in_e[None, :]
    first = NORMALISED and tile % tiles == 0
    of_tile = d[:, None] * DV + e[None, :]
    at = row.to(tl.int64) * DK * DV + of_tile
    dC = tl.zeros((BK, BV), tl.float32)
    dn = tl.zeros((BK,), tl.float32)
    if dC1_ptr is not None:
        dC += tl.load(dC1_ptr + at, mask=inside, other=0.0)
    if dn1_ptr is not None:
        dn += tl.load(dn1_ptr + row * DK + d, mask=in_d, other=0.0)
    C = tl.load(C1_ptr + at, mask=inside, other=0.0)
    n = tl.load(n1_ptr + row * DK + d, mask=in_d & NORMALISED, other=0.0)
    parts: tl.constexpr = L // BL
    for back in range(N * parts):
        c = N - 1 - back // parts
        chunk = row.to(tl.int64) * N + c
        if back % parts == 0:
            tl.store(dC_ptr + chunk * DK * DV + of_tile, dC.to(dC_ptr.dtype.element_ty), mask=inside)
            beyond = tl.sum(tl.sum(dC * C, 1), 0)
            if first:
                tl.store(dn_ptr + chunk * DK + d, dn, mask=in_d)
                beyond += tl.sum(dn * n, 0)
            tl.store(X_ptr + (tile * tl.num_programs(1) + row) * N + c, beyond)
            C = tl.load(C_ptr + chunk * DK * DV + of_tile, mask=inside, other=0.0).to(tl.float32)
            n = tl.load(n_ptr + chunk * DK + d, mask=in_d & NORMALISED, other=0.0)
            kept = tl.load(kept_ptr + chunk)
            dC *= kept
            dn *= kept
        t = (N * parts - 1 - back) * BL + tl.arange(0, BL)
        at_steps = row.to(tl.int64) * N * L + t
        u = tl.load(u_ptr + at_steps) * scale
        q = tl.load(columns_of(q_ptr, b, t, head, T, H, DK, d), mask=in_d[:, None] & (t < T)[None, :], other=0.0)
        dh = tl.load(rows_of(dh_ptr, b, t, head, T, H, DV, e), mask=(t < T)[:, None] & in_e[None, :], other=0.0)
        qu = q.to(tl.float32) * u[None, :]
        if NORMALISED:
            dn += tl.sum(qu * tl.load(dd_ptr + at_steps)[None, :], 1)
            qu *= tl.load(r_ptr + at_steps)[None, :]
        dC = tl.dot(qu.to(q.dtype), dh, dC, input_precision=PRECISION)
    if dC0_ptr is not None:
        tl.store(dC0_ptr + at, dC, mask=inside)
        if first:
            tl.store(dn0_ptr + row * DK + d, dn, mask=in_d)


@triton.jit
def queries_kernel(
    q_ptr, k_ptr, v_ptr, dh_ptr, a_ptr, M_ptr, u_ptr, r_ptr, dd_ptr, document_ptr, C_ptr, n_ptr, dq_ptr, qdq_ptr,
    T, H, N, scale, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of BT steps of one chunk and head, and q . dq; BK covers DK."""
    c, row = tl.program_id(1), tl.program_id(2)
    b, head = row // H, row % H
    chunk = row.to(tl.int64) * N + c
    begin = tl.program_id(0) * BT
    x = tl.arange(0, BK)
    in_x = (x < DK)[None, :]
    step = begin + tl.arange(0, BT)
    t = c * L + step
    here = (t < T)[:, None]
    M = tl.load(M_ptr + chunk * L + step)
    document = step
    if document_ptr is not None:
        document = tl.load(document_ptr + (b.to(tl.int64) * N + c) * L + step)

    dq = tl.zeros((BT, BK), tl.float32)
    for e0 in range(0, DV, BC):
        e = e0 + tl.arange(0, BC)
        dh_part = tl.load(rows_of(dh_ptr, b, t, head, T, H, DV, e), mask=here & (e < DV)[None, :], other=0.0)
        C = tl.load(C_ptr + chunk * DK * DV + x[None, :] * DV + e[:, None], mask=in_x & (e < DV)[:, None], other=0.0)
        dq = tl.dot(dh_part.to(C.dtype), C, dq, input_precision=PRECISION)
    u = tl.load(u_ptr + chunk * L + step)
    if NORMALISED:
        r, dd = tl.load(r_ptr + chunk * L + step), tl.load(dd_ptr + chunk * L + step)
        n = tl.load(n_ptr + chunk * DK + x, mask=x < DK, other=0.0)
        dq = dq * (u * r)[:, None] + (u * dd)[:, None] * n[None, :]
    else:
        dq *= u[:, None]

    parts: tl.constexpr = (DV + BV - 1) // BV
    if parts == 1:  # the tile stays loaded
        e = tl.arange(0, BV)
        dh = tl.load(rows_of(dh_ptr, b, t, head, T, H, DV, e), mask=here & (e < DV)[None, :], other=0.0)
    for s0 in range(0, tl.minimum(begin + BT, T - c * L), BS):
        source = s0 + tl.arange(0, BS)
        s = c * L + source
        dA = tl.zeros((BT, BS), tl.float32)
        for part in tl.static_range(parts):
            e = part * BV + tl.arange(0, BV)
            if parts > 1:
                dh = tl.load(rows_of(dh_ptr, b, t, head, T, H, DV, e), mask=here & (e < DV)[None, :], other=0.0)
            v = tl.load(rows_of(v_ptr, b, s, head, T, H, DV, e), mask=(s < T)[:, None] & (e < DV)[None, :], other=0.0)
            dA = tl.dot(dh, tl.trans(v), dA, input_precision=PRECISION)
        if NORMALISED:
            dA = dA * r[:, None] + dd[:, None]
        a = tl.load(a_ptr + chunk * L + source)
        document_s = source
        if document_ptr is not None:
            document_s = tl.load(document_ptr + (b.to(tl.int64) * N + c) * L + source)
        dA *= visible_weights(
            a[None, :], M[:, None], source[None, :], step[:, None], document_s[None, :], document[:, None],
            document_ptr is not None,
        )  # fmt: skip
        k = tl.load(rows_of(k_ptr, b, s, head, T, H, DK, x), mask=(s < T)[:, None] & in_x, other=0.0)
        dq = tl.dot(dA.to(k.dtype), k, dq, input_precision=PRECISION)

    dq *= scale
    q = tl.load(rows_of(q_ptr, b, t, head, T, H, DK, x), mask=here & in_x, other=0.0)
    tl.store(qdq_ptr + chunk * L + step, tl.sum(q.to(tl.float32) * dq, 1))
    tl.store(rows_of(dq_ptr, b, t, head, T, H, DK, x), dq.to(dq_ptr.dtype.element_ty), mask=here & in_x)


@triton.jit
def keys_kernel(
    q_ptr, k_ptr, v_ptr, dh_ptr, a_ptr, M_ptr, w_ptr, r_ptr, dd_ptr, document_ptr, dC_ptr, dn_ptr, dk_ptr, kdk_ptr,
    T, H, N, scale, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk of BS steps of one chunk and head, and k . dk; BK covers DK."""
    c, row = tl.program_id(1), tl.program_id(2)
    b, head = row // H, row % H
    chunk = row.to(tl.int64) * N + c
    begin = tl.program_id(0) * BS
    x = tl.arange(0, BK)
    in_x = (x < DK)[None, :]
    source = begin + tl.arange(0, BS)
    s = c * L + source
    here = (s < T)[:, None]
    a = tl.load(a_ptr + chunk * L + source)
    document_s = source
    if document_ptr is not None:
        document_s = tl.load(document_ptr + (b.to(tl.int64) * N + c) * L + source)

    dk = tl.zeros((BS, BK), tl.float32)
    for e0 in range(0, DV, BC):
        e = e0 + tl.arange(0, BC)
        v_part = tl.load(rows_of(v_ptr, b, s, head, T, H, DV, e), mask=here & (e < DV)[None, :], other=0.0)
        dC = tl.load(dC_ptr + chunk * DK * DV + x[None, :] * DV + e[:, None], mask=in_x & (e < DV)[:, None], other=0.0)
        dk = tl.dot(v_part.to(dC.dtype), dC, dk, input_precision=PRECISION)
    if NORMALISED:
        dk += tl.load(dn_ptr + chunk * DK + x, mask=x < DK, other=0.0)[None, :]
    dk *= tl.load(w_ptr + chunk * L + source)[:, None]

    parts: tl.constexpr = (DV + BV - 1) // BV
    if parts == 1:  # the tile stays loaded
        e = tl.arange(0, BV)
        v = tl.load(rows_of(v_ptr, b, s, head, T, H, DV, e), mask=here & (e < DV)[None, :], other=0.0)
    for t0 in range(begin // BT * BT, tl.minimum(L, T - c * L), BT):
        step = t0 + tl.arange(0, BT)
        t = c * L + step
        dA = tl.zeros((BS, BT), tl.float32)
        for part in tl.static_range(parts):
            e = part * BV + tl.arange(0, BV)
            if parts > 1:
                v = tl.load(rows_of(v_ptr, b, s, head, T, H, DV, e), mask=here & (e < DV)[None, :], other=0.0)
            dh = tl.load(rows_of(dh_ptr, b, t, head, T, H, DV, e), mask=(t < T)[:, None] & (e < DV)[None, :], other=0.0)
            dA = tl.dot(v, tl.trans(dh), dA, input_precision=PRECISION)
        if NORMALISED:
            r, dd = tl.load(r_ptr + chunk * L + step), tl.load(dd_ptr + chunk * L + step)
            dA = dA * r[None, :] + dd[None, :]
        M = tl.load(M_ptr + chunk * L + step)
        document = step
        if document_ptr is not None:
            document = tl.load(document_ptr + (b.to(tl.int64) * N + c) * L + step)
        dA *= scale * visible_weights(
            a[:, None], M[None, :], source[:, None], step[None, :], document_s[:, None], document[None, :],
            document_ptr is not None,
        )  # fmt: skip
        q = tl.load(rows_of(q_ptr, b, t, head, T, H, DK, x), mask=(t < T)[:, None] & in_x, other=0.0)
        dk = tl.dot(dA.to(q.dtype), q, dk, input_precision=PRECISION)

    k = tl.load(rows_of(k_ptr, b, s, head, T, H, DK, x), mask=here & in_x, other=0.0)
    tl.store(kdk_ptr + chunk * L + source, tl.sum(k.to(tl.float32) * dk, 1))
    tl.store(rows_of(dk_ptr, b, s, head, T, H, DK, x), dk.to(dk_ptr.dtype.element_ty), mask=here & in_x)


@triton.jit
def values_kernel(
    q_ptr, k_ptr, dh_ptr, a_ptr, M_ptr, w_ptr, r_ptr, document_ptr, dC_ptr, dv_ptr,
    T, H, N, scale, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dv of BS steps in one tile of BV columns, of one chunk and head."""
    tile, c, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles: tl.constexpr = (DV + BV - 1) // BV
    b, head = row // H, row % H
    chunk = row.to(tl.int64) * N + c
    begin = (tile // tiles) * BS
    e = (tile % tiles) * BV + tl.arange(0, BV)
    source = begin + tl.arange(0, BS)
    s = c * L + source
    here, in_e = (s < T)[:, None], (e < DV)[None, :]
    a = tl.load(a_ptr + chunk * L + source)
    document_s = source
    if document_ptr is not None:
        document_s = tl.load(document_ptr + (b.to(tl.int64) * N + c) * L + source)

    dv = tl.zeros((BS, BV), tl.float32)
    for x0 in range(0, DK, BC):
        x = x0 + tl.arange(0, BC)
        k_part = tl.load(rows_of(k_ptr, b, s, head, T, H, DK, x), mask=here & (x < DK)[None, :], other=0.0)
        dC = tl.load(dC_ptr + chunk * DK * DV + x[:, None] * DV + e[None, :], mask=(x < DK)[:, None] & in_e, other=0.0)
        dv = tl.dot(k_part.to(dC.dtype), dC, dv, input_precision=PRECISION)
    dv *= tl.load(w_ptr + chunk * L + source)[:, None]

    parts: tl.constexpr = (DK + BK - 1) // BK
    if parts == 1:  # the tile stays loaded
        x = tl.arange(0, BK)
        k = tl.load(rows_of(k_ptr, b, s, head, T, H, DK, x), mask=here & (x < DK)[None, :], other=0.0)
    for t0 in range(begin // BT * BT, tl.minimum(L, T - c * L), BT):
        step = t0 + tl.arange(0, BT)
        t = c * L + step
        A = tl.zeros((BS, BT), tl.float32)
        for part in tl.static_range(parts):
            x = part * BK + tl.arange(0, BK)
            if parts > 1:
                k = tl.load(rows_of(k_ptr, b, s, head, T, H, DK, x), mask=here & (x < DK)[None, :], other=0.0)
            q = tl.load(rows_of(q_ptr, b, t, head, T, H, DK, x), mask=(t < T)[:, None] & (x < DK)[None, :], other=0.0)
            A = tl.dot(k, tl.trans(q), A, input_precision=PRECISION)
        M = tl.load(M_ptr + chunk * L + step)
        document = step
        if document_ptr is not None:
            document = tl.load(document_ptr + (b.to(tl.int64) * N + c) * L + step)
        A *= scale * visible_weights(
            a[:, None], M[None, :], source[:, None], step[None, :], document_s[:, None], document[None, :],
            document_ptr is not None,
        )  # fmt: skip
        if NORMALISED:
            A *= tl.load(r_ptr + chunk * L + step)[None, :]
        dh = tl.load(rows_of(dh_ptr, b, t, head, T, H, DV, e), mask=(t < T)[:, None] & in_e, other=0.0)
        dv = tl.dot(A.to(dh.dtype), dh, dv, input_precision=PRECISION)
    tl.store(rows_of(dv_ptr, b, s, head, T, H, DV, e), dv.to(dv_ptr.dtype.element_ty), mask=here & in_e)


@triton.jit
def gates_backward_kernel(
    i_ptr, f_ptr, mask_ptr, qdq_ptr, kdk_ptr, X_ptr, di_ptr, df_ptr,
    T, H, N, TILES, L: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """The gradients of one chunk's gates, of one head."""
    c, row = tl.program_id(0), tl.program_id(1)
    b = (row // H).to(tl.int64)
    t = c * L + tl.arange(0, L)
    inside = t < T
    at = (b * T + t) * H + row % H
    qdq = tl.load(qdq_ptr + row.to(tl.int64) * N * L + t)
    kdk = tl.load(kdk_ptr + row.to(tl.int64) * N * L + t)
    beyond = 0.0
    for tile in range(TILES):
        beyond += tl.load(X_ptr + (tile * tl.num_programs(1) + row) * N + c)
    x = qdq - kdk
    d_log_f = tl.sum(x, 0) - tl.cumsum(x, 0) + x + beyond
    if mask_ptr is not None:
        d_log_f = tl.where(tl.load(mask_ptr + b * T + t, mask=inside, other=0) != 0, d_log_f, 0.0)
    di = kdk
    if SIGMOID:
        i = tl.load(i_ptr + at, mask=inside, other=0.0).to(tl.float32)
        di = kdk * tl.exp(log_sigmoid(-i))
    f = tl.load(f_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(di_ptr + at, di.to(di_ptr.dtype.element_ty), mask=inside)
    tl.store(df_ptr + at, (d_log_f * tl.exp(log_sigmoid(-f))).to(df_ptr.dtype.element_ty), mask=inside)
