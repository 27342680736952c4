"""Device code of the chunkwise mLSTM, forward: gates, memories at the chunks' starts, outputs.

The maths is that of `exlstm.ops.chunkwise`: with F_t the sum of log f within a chunk and a_s = i_s - F_s,

    A_ts    = E_ts q_t . k_s / sqrt(DK),   E_ts = exp(a_s - M_t)     for visible s
    h_t     = (sum_s A_ts v_s + u_t C_c^T q_t) / (max(|d_t|, exp(-m_t)) + eps),    m_t = F_t + M_t
    d_t     = sum_s A_ts + u_t n_c . q_t
    C_{c+1} = kept_c C_c + sum_s w_s k_s v_s^T                       (n likewise, of k alone)

All exponentials are taken once: A and w_s k_s are written out (A is half as large as q, with chunks of 128 steps and
256 columns), and what remains are plain products whose operands stream from memory to the tensor cores.

Sequences are [B, T, H, D]; what depends on gates is float32 [B H, N L], one head's steps beside one another, chunks
filled up with steps that weigh nothing. Where a step is masked, M is inf: then it reads nothing and outputs 0.
"""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import denominator, log_sigmoid


@triton.jit
def _larger(x, y):
    return tl.maximum(x, y)


@triton.jit
def _larger_of_document(x, x_document, y, y_document):
    return tl.where(x_document == y_document, tl.maximum(x, y), y), y_document


@triton.jit
def _chained(x_kept, x, y_kept, y):
    return x_kept + y_kept, tl.maximum(x + y_kept, y)


@triton.jit(do_not_specialize=["T", "H", "N"])
def gates_kernel(
    i_ptr, f_ptr, mask_ptr, reset_ptr, a_ptr, F_ptr, top_ptr, document_ptr, kept_ptr, reach_ptr,
    T, H, N, L: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: a, F, the largest a so far (`top`), and what the chunk does to the stabiliser.

    After the chunk it is max(kept + before, reach). The memory m = 0 that a document begins with is part of `top`.
    """
    c, row = tl.program_id(0), tl.program_id(1)
    b = (row // H).to(tl.int64)
    step = tl.arange(0, L)
    t = c * L + step
    inside = t < T
    at = (b * T + t) * H + row % H
    i = tl.load(i_ptr + at, mask=inside, other=0.0).to(tl.float32)
    log_f = log_sigmoid(tl.load(f_ptr + at, mask=inside, other=0.0).to(tl.float32))
    if SIGMOID:
        i = log_sigmoid(i)
    present = inside
    if mask_ptr is not None:
        present = present & (tl.load(mask_ptr + b * T + t, mask=inside, other=0) != 0)
    i = tl.where(present, i, float("-inf"))
    log_f = tl.where(present, log_f, 0.0)
    F = tl.cumsum(log_f, 0)
    a = i - F
    total = tl.sum(log_f, 0)
    kept = total
    if reset_ptr is not None:
        begins = (tl.load(reset_ptr + b * T + t, mask=inside, other=0) != 0).to(tl.int32)
        document = tl.cumsum(begins, 0)
        kept = tl.where(tl.sum(begins, 0) > 0, float("-inf"), total)
        top = tl.maximum(a, tl.where(begins > 0, log_f - F, float("-inf")))
        top, document = tl.associative_scan((top, document), 0, _larger_of_document)
        if row % H == 0:
            tl.store(document_ptr + b * N * L + t, document)
    else:
        top = tl.associative_scan(a, 0, _larger)
    reach = total + tl.max(tl.where(step == L - 1, top, float("-inf")), 0)
    out = row.to(tl.int64) * N * L + t
    tl.store(a_ptr + out, a)
    tl.store(F_ptr + out, F)
    tl.store(top_ptr + out, top)
    tl.store(kept_ptr + row * N + c, kept)
    tl.store(reach_ptr + row * N + c, reach)


@triton.jit(do_not_specialize=["N"])
def stabilisers_kernel(kept_ptr, reach_ptr, m0_ptr, m_ptr, m1_ptr, N, BLOCK: tl.constexpr):
    """The stabilisers [N + 1] at the chunks' starts, and after the last, of one head: chained in parallel."""
    row, offset = tl.program_id(0), tl.arange(0, BLOCK)
    before = 0.0
    if m0_ptr is not None:
        before = tl.load(m0_ptr + row)
    tl.store(m_ptr + row * (N + 1), before)
    for begin in range(0, N, BLOCK):
        c = begin + offset
        kept = tl.load(kept_ptr + row * N + c, mask=c < N, other=0.0)
        reach = tl.load(reach_ptr + row * N + c, mask=c < N, other=float("-inf"))
        kept, reach = tl.associative_scan((kept, reach), 0, _chained)
        m = tl.maximum(kept + before, reach)
        tl.store(m_ptr + row * (N + 1) + 1 + c, m, mask=c < N)
        before = tl.max(tl.where(offset == BLOCK - 1, m, float("-inf")), 0)
    tl.store(m1_ptr + row, before)


@triton.jit(do_not_specialize=["T", "H", "N"])
def weights_kernel(
    a_ptr, F_ptr, top_ptr, mask_ptr, document_ptr, kept_ptr, m_ptr, M_ptr, u_ptr, w_ptr,
    T, H, N, L: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: M, which may take the place of `top`, the weights u and w, and `kept` as a weight."""
    c, row = tl.program_id(0), tl.program_id(1)
    b = (row // H).to(tl.int64)
    step = tl.arange(0, L)
    t = c * L + step
    at = row.to(tl.int64) * N * L + t
    a, F, top = tl.load(a_ptr + at), tl.load(F_ptr + at), tl.load(top_ptr + at)
    total = tl.sum(tl.where(step == L - 1, F, 0.0), 0)
    start, end = tl.load(m_ptr + row * (N + 1) + c), tl.load(m_ptr + row * (N + 1) + c + 1)
    reaches = step >= 0  # the steps that the memory at the chunk's start reaches, and those that reach its end
    ends = reaches
    if document_ptr is not None:
        document = tl.load(document_ptr + b * N * L + t)
        reaches = document == 0
        ends = document == tl.max(document, 0)
    if SIGMOID:
        M = -F
    else:
        M = tl.maximum(top, tl.where(reaches, start, float("-inf")))
    u = tl.where(reaches, tl.exp(start - M), 0.0)
    if mask_ptr is not None:
        present = tl.load(mask_ptr + b * T + t, mask=t < T, other=0) != 0
        M = tl.where(present, M, float("inf"))
        u = tl.where(present, u, 0.0)
    tl.store(M_ptr + at, M)
    tl.store(u_ptr + at, u)
    tl.store(w_ptr + at, tl.where(ends, tl.exp(total + a - end), 0.0))
    kept = tl.load(kept_ptr + row * N + c)
    tl.store(kept_ptr + row * N + c, tl.exp(kept + start - end))


@triton.jit
def rows_of(ptr, b, t, head, T, H, D: tl.constexpr, d):
    """Pointers [t, d] into a sequence [B, T, H, D]."""
    return ptr + ((b * T + t).to(tl.int64) * H + head)[:, None] * D + d[None, :]


@triton.jit(do_not_specialize=["T", "H", "N"])
def weighted_kernel(
    x_ptr, by_ptr, sum_by_ptr, out_ptr, sum_ptr,
    T, H, N, D: tl.constexpr, L: tl.constexpr, BD: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The rows x_t of one chunk and head times their weights; and, with SUM, their sum by other weights [B H, N, D]."""
    c, row = tl.program_id(0), tl.program_id(1)
    b, head = row // H, row % H
    chunk = row.to(tl.int64) * N + c
    step = tl.arange(0, L)
    t = c * L + step
    by = tl.load(by_ptr + chunk * L + step)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        inside = (t < T)[:, None] & (d < D)[None, :]
        x = tl.load(rows_of(x_ptr, b, t, head, T, H, D, d), mask=inside, other=0.0).to(tl.float32)
        out = (x * by[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(rows_of(out_ptr, b, t, head, T, H, D, d), out, mask=inside)
        if SUM:
            total = tl.sum(x * tl.load(sum_by_ptr + chunk * L + step)[:, None], 0)
            tl.store(sum_ptr + chunk * D + d, total, mask=d < D)


@triton.jit(do_not_specialize=["T", "H", "N", "CHUNKS", "SEGMENTS"])
def states_kernel(
    kw_ptr, v_ptr, nw_ptr, kept_ptr, C0_ptr, n0_ptr, C_ptr, n_ptr, C1_ptr, n1_ptr, keep1_ptr,
    T, H, N, CHUNKS, SEGMENTS, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, REVERSE: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the memory of one head, from chunk to chunk: that before a chunk goes to C_ptr [B H, N, DK, DV].

    It takes the steps' products kw_t v_t^T, and nw of every chunk. In REVERSE it goes from the last chunk to the first,
    as gradients do: what comes in is that of the memory after the last chunk, what goes to C_ptr that after a chunk.
    Without C_ptr and n_ptr only the memory after all chunks is written.

    Programs share the way, CHUNKS chunks each, from a memory C0_ptr [B H, SEGMENTS, DK, DV] for each. The last writes
    C1_ptr [B H, DK, DV]; but with keep1_ptr, all do, to C1_ptr [B H, SEGMENTS, DK, DV], and what they keep of C0.
    """
    tile, row, segment = tl.program_id(0), tl.program_id(1) // SEGMENTS, tl.program_id(1) % SEGMENTS
    tiles: tl.constexpr = (DV + BV - 1) // BV
    b, head = row // H, row % H
    d = (tile // tiles) * BK + tl.arange(0, BK)
    e = (tile % tiles) * BV + tl.arange(0, BV)
    in_d, in_e = d < DK, e < DV
    inside = in_d[:, None] & in_e[None, :]
    first = NORMALISED and tile % tiles == 0
    of_tile = d[:, None] * DV + e[None, :]
    own = tl.program_id(1).to(tl.int64)
    C = tl.zeros((BK, BV), tl.float32)
    n = tl.zeros((BK,), tl.float32)
    if C0_ptr is not None:
        C += tl.load(C0_ptr + own * DK * DV + of_tile, mask=inside, other=0.0)
    if n0_ptr is not None:
        n += tl.load(n0_ptr + own * DK + d, mask=in_d, other=0.0)
    parts: tl.constexpr = L // BL
    begin = segment * CHUNKS
    end = tl.minimum(begin + CHUNKS, N)
    chunk, onwards = row.to(tl.int64) * N + begin, 1
    if REVERSE:
        chunk, onwards = row.to(tl.int64) * N + N - 1 - begin, -1
    kept, keep = tl.load(kept_ptr + chunk, mask=begin < N, other=0.0), 1.0
    for part in range(begin * parts, end * parts):  # blocks of steps, so that loads run ahead from chunk to chunk
        block = part
        if REVERSE:
            block = N * parts - 1 - part
        if part % parts == 0:
            if C_ptr is not None:
                tl.store(C_ptr + chunk * DK * DV + of_tile, C.to(C_ptr.dtype.element_ty), mask=inside)
            C *= kept
            keep *= kept
            if first:
                if n_ptr is not None:
                    tl.store(n_ptr + chunk * DK + d, n, mask=in_d)
                n = n * kept + tl.load(nw_ptr + chunk * DK + d, mask=in_d, other=0.0)
            chunk += onwards
            # A chunk ahead, so that nothing waits for it.
            kept = tl.load(kept_ptr + chunk, mask=part + parts < end * parts, other=0.0)
        t = block * BL + tl.arange(0, BL)
        kw = tl.load(rows_of(kw_ptr, b, t, head, T, H, DK, d), mask=(t < T)[:, None] & in_d[None, :], other=0.0)
        v = tl.load(rows_of(v_ptr, b, t, head, T, H, DV, e), mask=(t < T)[:, None] & in_e[None, :], other=0.0)
        C = tl.dot(tl.trans(kw), v, C, input_precision=PRECISION)
    if C1_ptr is not None:
        to = own
        if keep1_ptr is None:
            to = row.to(tl.int64)
        if (keep1_ptr is not None) | (segment == SEGMENTS - 1):
            tl.store(C1_ptr + to * DK * DV + of_tile, C, mask=inside)
            if first:
                tl.store(n1_ptr + to * DK + d, n, mask=in_d)
    if keep1_ptr is not None:  # noqa: SIM102 (known when compiled, unlike what is tested next)
        if tile == 0:
            tl.store(keep1_ptr + own, keep)


@triton.jit(do_not_specialize=["SEGMENTS"])
def starts_kernel(x0_ptr, made_ptr, keep_ptr, x_ptr, x1_ptr, SEGMENTS, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK of SIZE entries of a memory of one head before each segment of the way, and after all.

    x_{g + 1} = keep_g x_g + made_g; x_ptr or x1_ptr may be None.
    """
    at, row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    inside = at < SIZE
    x = tl.zeros((BLOCK,), tl.float32)
    if x0_ptr is not None:
        x += tl.load(x0_ptr + row * SIZE + at, mask=inside, other=0.0)
    for segment in range(SEGMENTS):
        own = row * SEGMENTS + segment
        if x_ptr is not None:
            tl.store(x_ptr + own * SIZE + at, x, mask=inside)
        x = x * tl.load(keep_ptr + own) + tl.load(made_ptr + own * SIZE + at, mask=inside, other=0.0)
    if x1_ptr is not None:
        tl.store(x1_ptr + row * SIZE + at, x, mask=inside)


@triton.jit
def visible_weights(a, M, s, t, document_s, document_t, DOCUMENTS: tl.constexpr):
    """E_ts where step t sees step s, 0 elsewhere; s and t broadcast against one another."""
    seen = s <= t
    if DOCUMENTS:
        seen = seen & (document_s == document_t)
    return tl.exp(tl.where(seen, a - M, float("-inf")))


@triton.jit
def products_of(
    x_ptr, y_ptr, b, t, s, head, T, H, D: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """x_t . y_s of all steps t and s: [BT, BS]."""
    products = tl.zeros((BT, BS), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        x = tl.load(rows_of(x_ptr, b, t, head, T, H, D, d), mask=(t < T)[:, None] & (d < D)[None, :], other=0.0)
        y = tl.load(rows_of(y_ptr, b, s, head, T, H, D, d), mask=(s < T)[:, None] & (d < D)[None, :], other=0.0)
        products = tl.dot(x, tl.trans(y), products, input_precision=PRECISION)
    return products


@triton.jit(do_not_specialize=["T", "H", "N"])
def scores_kernel(
    q_ptr, k_ptr, a_ptr, M_ptr, u_ptr, document_ptr, n_ptr, A_ptr, d_ptr,
    T, H, N, scale, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, B: tl.constexpr, BD: tl.constexpr,
    NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A [B H, N, L, L] in B rows of one chunk and head, but for the blocks that see nothing; and d of their steps."""
    c, row = tl.program_id(1), tl.program_id(2)
    b, head = row // H, row % H
    chunk = row.to(tl.int64) * N + c
    begin = tl.program_id(0) * B
    step = begin + tl.arange(0, B)
    t = c * L + step
    M = tl.load(M_ptr + chunk * L + step)
    documents = document_ptr + (b.to(tl.int64) * N + c) * L if document_ptr is not None else document_ptr
    document = step
    if document_ptr is not None:
        document = tl.load(documents + step)
    d = tl.zeros((B,), tl.float32)
    if NORMALISED:
        for x0 in range(0, DK, BD):
            x = x0 + tl.arange(0, BD)
            q = tl.load(rows_of(q_ptr, b, t, head, T, H, DK, x), mask=(t < T)[:, None] & (x < DK)[None, :], other=0.0)
            d += tl.sum(q.to(tl.float32) * tl.load(n_ptr + chunk * DK + x, mask=x < DK, other=0.0)[None, :], 1)
        d *= tl.load(u_ptr + chunk * L + step) * scale
    for s0 in range(0, tl.minimum(begin + B, T - c * L), B):
        source = s0 + tl.arange(0, B)
        document_s = source
        if document_ptr is not None:
            document_s = tl.load(documents + source)
        A = products_of(q_ptr, k_ptr, b, t, c * L + source, head, T, H, DK, B, B, BD, PRECISION)
        a = tl.load(a_ptr + chunk * L + source)
        A *= scale * visible_weights(
            a[None, :], M[:, None], source[None, :], step[:, None], document_s[None, :], document[:, None],
            document_ptr is not None,
        )  # fmt: skip
        d += tl.sum(A, 1)
        tl.store(A_ptr + (chunk * L + step)[:, None] * L + source[None, :], A.to(A_ptr.dtype.element_ty))
    if NORMALISED:
        tl.store(d_ptr + chunk * L + step, d)


@triton.jit(do_not_specialize=["T", "H", "N"])
def outputs_kernel(
    q_ptr, v_ptr, A_ptr, F_ptr, M_ptr, u_ptr, d_ptr, C_ptr, h_ptr,
    T, H, N, scale, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
    BD: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h of BT steps in one tile of BV columns, of one chunk and head."""
    tile, c, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles: tl.constexpr = (DV + BV - 1) // BV
    b, head = row // H, row % H
    chunk = row.to(tl.int64) * N + c
    begin = (tile // tiles) * BT
    e = (tile % tiles) * BV + tl.arange(0, BV)
    step = begin + tl.arange(0, BT)
    t = c * L + step
    here, in_e = (t < T)[:, None], (e < DV)[None, :]

    h = tl.zeros((BT, BV), tl.float32)
    for x0 in range(0, DK, BD):
        x = x0 + tl.arange(0, BD)
        q = tl.load(rows_of(q_ptr, b, t, head, T, H, DK, x), mask=here & (x < DK)[None, :], other=0.0)
        C = tl.load(C_ptr + chunk * DK * DV + x[:, None] * DV + e[None, :], mask=(x < DK)[:, None] & in_e, other=0.0)
        h = tl.dot(q.to(C.dtype), C, h, input_precision=PRECISION)
    h *= (tl.load(u_ptr + chunk * L + step) * scale)[:, None]
    for s0 in range(0, tl.minimum(begin + BT, T - c * L), BD):
        source = s0 + tl.arange(0, BD)
        s = c * L + source
        A = tl.load(A_ptr + (chunk * L + step)[:, None] * L + source[None, :])
        v = tl.load(rows_of(v_ptr, b, s, head, T, H, DV, e), mask=(s < T)[:, None] & in_e, other=0.0)
        h = tl.dot(A, v, h, input_precision=PRECISION)
    if NORMALISED:
        m = tl.load(F_ptr + chunk * L + step) + tl.load(M_ptr + chunk * L + step)
        d = tl.load(d_ptr + chunk * L + step)
        h /= denominator(d, m)[:, None]
    tl.store(rows_of(h_ptr, b, t, head, T, H, DV, e), h.to(h_ptr.dtype.element_ty), mask=here & in_e)
