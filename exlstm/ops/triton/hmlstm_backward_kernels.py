"""Device code of the hierarchical mLSTM, backward; names and layouts are those of `hmlstm_kernels`.

With r_t = 1 / denominator, dd_t the gradient of d_t, x_t = q_t / sqrt(DK), and C' the memory or slot of the final
state that C is part of:

    dq_t = sum_s dS_ts k_s + sum_r u_rt (r_t C_r dh_t + dd_t n_r) / sqrt(DK),   dS_ts = E_ts (r_t dh_t . v_s + dd_t)
    dC_r = sum_t u_rt r_t x_t dh_t^T + sum_C' exp(G_r - G') dC'                 (dn likewise, of u_rt dd_t x_t)
    dk_s = sum_t dS_ts q_t + w_s (dC v_s + dn),     dv_s = sum_t A_ts r_t dh_t + w_s dC^T k_s

with E_ts = A_ts / (q_t . k_s) and w_s = exp(a_s - E_c - G) in the memory of its chunk. Every weight is the exponential
of a sum of gates, so that a gate's gradient is the sum of P = weight x gradient over the weights it is part of: over
all that read step s, column sums of P_ts = A_ts (r_t dh_t . v_s + dd_t) in its chunk, and later k_s . dk_s of that
part; over all that step t reads at a level, a row sum, kept in `rows` (laid out as `table`). Of a read of memory r by
chunk c, and of its part in C', the sum of P goes to the log forget gates of the chunks between, as one number to either
end (`hmlstm_tables`): what is added there is taken away to the last bit. h does not depend on M and G, which cancel,
but for eps: that part, at most eps / denominator of the rest, is left out.
"""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import through_denominator
from exlstm.ops.triton.hmlstm_kernels import (
    NOTHING,
    bit_length,
    load_memory,
    load_rows,
    products_of,
    rows_at,
    rows_of,
    weights_among,
    weights_before,
)


@triton.jit(do_not_specialize=["T", "PER_ROW", "H"])
def reads_kernel(
    h_ptr, dh_ptr, steps_ptr, F_ptr, M_ptr, d_ptr, r_ptr, dd_ptr,
    T, PER_ROW, H, DV: tl.constexpr, L: tl.constexpr, B: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """r and dd of B steps of one chunk and head; BV covers DV."""
    blocks: tl.constexpr = L // B
    c, begin, head = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * B, tl.program_id(1)
    step = begin + tl.arange(0, B)
    row, e = rows_at(steps_ptr, c, step, T, PER_ROW, L), tl.arange(0, BV)
    at = (c.to(tl.int64) * H + head) * L + step
    h = load_rows(h_ptr, row, head, H, DV, e).to(tl.float32)
    dh = load_rows(dh_ptr, row, head, H, DV, e).to(tl.float32)
    d, m = tl.load(d_ptr + at), tl.load(F_ptr + at) + tl.load(M_ptr + at)
    r, dd = through_denominator(h, dh, d, m)
    tl.store(r_ptr + at, r)
    tl.store(dd_ptr + at, dd)


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "R"])
def scores_backward_kernel(
    q_ptr, k_ptr, v_ptr, dh_ptr, steps_ptr, a_ptr, table_ptr, r_ptr, dd_ptr, A_ptr, dS_ptr, rows_ptr, columns_ptr,
    T, PER_ROW, H, R, scale, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, INSIDE: tl.constexpr, B: tl.constexpr,
    LOG_B: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A_ts r_t and dS [M, H, L, L] in B rows of one chunk and head, and the sums of P of rows, by levels, and columns.

    The latter of these rows alone [M, H, L / B, L].
    """
    blocks: tl.constexpr = L // B
    c, begin, head = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * B, tl.program_id(1)
    chunk = c.to(tl.int64) * H + head
    offset = tl.arange(0, B)
    a_ptr += chunk * L
    table_ptr += chunk * (INSIDE + 1 + R) * L
    rows_ptr += chunk * (INSIDE + 1 + R) * L + begin + offset
    columns_ptr += (chunk * blocks + begin // B) * L + offset
    at = (chunk * L + begin + offset)[:, None] * L + offset[None, :]
    row = rows_at(steps_ptr, c, begin + offset, T, PER_ROW, L)
    r = tl.load(r_ptr + chunk * L + begin + offset)[:, None]
    dd = tl.load(dd_ptr + chunk * L + begin + offset)[:, None]

    for b in range(LOG_B, INSIDE):  # the steps before these in a block of 2^(b + 1), all at level b + 1
        total = tl.zeros((B,), tl.float32)
        low = begin >> (b + 1) << (b + 1)
        for s0 in range(low, low + (begin & (1 << b)), B):
            row_s = rows_at(steps_ptr, c, s0 + offset, T, PER_ROW, L)
            A = products_of(q_ptr, k_ptr, row, row_s, head, H, DK, B, B, BD, PRECISION)
            dA = r * products_of(dh_ptr, v_ptr, row, row_s, head, H, DV, B, B, BD, PRECISION) + dd
            E = scale * weights_before(a_ptr, table_ptr, begin, s0, L, B)
            A *= E
            tl.store(A_ptr + at + s0, (A * r).to(A_ptr.dtype.element_ty))
            P = A * dA
            total += tl.sum(P, 1)
            tl.store(columns_ptr + s0, tl.sum(P, 0))
            tl.store(dS_ptr + at + s0, (E * dA).to(dS_ptr.dtype.element_ty))
        tl.store(rows_ptr + (b + 1) * L, total)
    A = products_of(q_ptr, k_ptr, row, row, head, H, DK, B, B, BD, PRECISION)
    dA = r * products_of(dh_ptr, v_ptr, row, row, head, H, DV, B, B, BD, PRECISION) + dd
    lev = bit_length(offset[:, None] ^ offset[None, :])
    E = scale * weights_among(a_ptr, table_ptr, begin, lev, L, B, LOG_B)
    A *= E
    tl.store(A_ptr + at + begin, (A * r).to(A_ptr.dtype.element_ty))
    P = A * dA
    tl.store(columns_ptr + begin, tl.sum(P, 0))
    for b in tl.static_range(LOG_B + 1):
        tl.store(rows_ptr + b * L, tl.sum(tl.where(lev == b, P, 0.0), 1))
    tl.store(dS_ptr + at + begin, (E * dA).to(dS_ptr.dtype.element_ty))
    for s0 in range(begin + B, (begin // BLOCK + 1) * BLOCK, B):
        tl.store(A_ptr + at + s0, tl.zeros((B, B), A_ptr.dtype.element_ty))
        tl.store(dS_ptr + at + s0, tl.zeros((B, B), dS_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "R"])
def shares_kernel(
    q_ptr, steps_ptr, table_ptr, r_ptr, dd_ptr, reads_ptr, ur_ptr, dn_read_ptr,
    T, PER_ROW, H, R, scale, DK: tl.constexpr, L: tl.constexpr, INSIDE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Of one chunk and head, for every read: its steps' u_rt r_t / sqrt(DK), and what they add to dn [M, H, R, DK]."""
    c, head = tl.program_id(0), tl.program_id(1)
    chunk = c.to(tl.int64) * H + head
    step = tl.arange(0, L)
    row = rows_at(steps_ptr, c, step, T, PER_ROW, L)
    r, dd = scale * tl.load(r_ptr + chunk * L + step), scale * tl.load(dd_ptr + chunk * L + step)
    table_ptr += (chunk * (INSIDE + 1 + R) + INSIDE + 1) * L + step
    count = tl.load(reads_ptr + c)
    for read in range(count):
        tl.store(ur_ptr + (chunk * R + read) * L + step, tl.load(table_ptr + read * L) * r)
    for x0 in range(0, DK, BD):
        x = x0 + tl.arange(0, BD)
        q = load_rows(q_ptr, row, head, H, DK, x).to(tl.float32)
        for read in range(count):
            dn = tl.sum(q * (tl.load(table_ptr + read * L) * dd)[:, None], 0)
            tl.store(dn_read_ptr + (chunk * R + read) * DK + x, dn, mask=x < DK)


@triton.jit
def part_weight(G, above):
    """exp(G - above), of a memory as part of one above it; 0 where there is nothing in it."""
    return tl.exp(tl.where(G == NOTHING, NOTHING, G - above)).to(tl.float32)


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "R", "LEVELS", "N", "begin"])
def memories_backward_kernel(
    q_ptr, dh_ptr, steps_ptr, ur_ptr, dn_read_ptr, C_ptr, n_ptr, G_ptr, G1_ptr, dC1_ptr, dn1_ptr,
    order_ptr, parent_ptr, final_ptr, readers_ptr, dC_ptr, dn_ptr, link_ptr,
    begin, N, T, PER_ROW, H, R, LEVELS, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BL: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, ADD: tl.constexpr, READ: tl.constexpr, PART: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dC and dn of one tile of one memory: what is there already (ADD), from its reads (READ), from what it is part of.

    The tile's share of the sums of P of the latter goes to `link` [2, tiles, N, H].
    """
    tiles: tl.constexpr = ((DK + BK - 1) // BK) * ((DV + BV - 1) // BV)
    across: tl.constexpr = (DV + BV - 1) // BV
    parts: tl.constexpr = L // BL
    item, tile, head = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.program_id(1)
    d = (tile // across) * BK + tl.arange(0, BK)
    e = (tile % across) * BV + tl.arange(0, BV)
    in_d, inside = d < DK, (d < DK)[:, None] & (e < DV)[None, :]
    of_tile = d[:, None] * DV + e[None, :]
    once = tile % across == 0
    memory = tl.load(order_ptr + begin + item)
    here = memory.to(tl.int64) * H + head
    dC, dn = tl.zeros((BK, BV), tl.float32), tl.zeros((BK,), tl.float32)
    if ADD:
        dC += load_memory(dC_ptr, memory, head, H, DK, DV, d, e).to(tl.float32)
        dn += tl.load(dn_ptr + here * DK + d, mask=in_d, other=0.0)
    if READ:
        first, last = tl.load(readers_ptr + memory), tl.load(readers_ptr + N + memory)
        column = tl.load(readers_ptr + 2 * N + memory)
        for part in range(first * parts, last * parts):
            c = part // parts
            step = (part % parts) * BL + tl.arange(0, BL)
            row = rows_at(steps_ptr, c, step, T, PER_ROW, L)
            ur = tl.load(ur_ptr + ((c.to(tl.int64) * H + head) * R + column) * L + step)
            x = load_rows(q_ptr, row, head, H, DK, d).to(tl.float32) * ur[:, None]
            x = x.to(dC_ptr.dtype.element_ty)
            dh = load_rows(dh_ptr, row, head, H, DV, e)
            dC = tl.dot(tl.trans(x), dh.to(x.dtype), dC, input_precision=PRECISION)
        dn_read_ptr += ((first.to(tl.int64) * H + head) * R + column) * DK + d
        for _ in range(first, tl.where(once, last, first)):
            dn += tl.load(dn_read_ptr, mask=in_d, other=0.0)
            dn_read_ptr += H * R * DK
    if PART:
        parent, final = tl.load(parent_ptr + memory), -1
        if dC1_ptr is not None:
            final = tl.load(final_ptr + memory)
        link, link1 = 0.0, 0.0
        if (parent >= 0) | (final >= 0):
            G = tl.load(G_ptr + here)
            C = load_memory(C_ptr, memory, head, H, DK, DV, d, e).to(tl.float32)
            n = tl.where(once, tl.load(n_ptr + here * DK + d, mask=in_d, other=0.0), 0.0)
            if parent >= 0:
                above = parent.to(tl.int64) * H + head
                weight = part_weight(G, tl.load(G_ptr + above))
                more = weight * load_memory(dC_ptr, parent, head, H, DK, DV, d, e).to(tl.float32)
                more_n = weight * tl.load(dn_ptr + above * DK + d, mask=in_d, other=0.0)
                link += tl.sum(tl.sum(more * C, 1), 0) + tl.sum(more_n * n, 0)
                dC += more
                dn += more_n
            if dC1_ptr is not None:  # noqa: SIM102 (known when compiled, unlike what is tested next)
                if final >= 0:
                    slot = ((final // LEVELS).to(tl.int64) * H + head) * LEVELS + final % LEVELS
                    weight = part_weight(G, tl.load(G1_ptr + slot))
                    more = weight * tl.load(dC1_ptr + slot * (DK * DV) + of_tile, mask=inside, other=0.0)
                    more_n = weight * tl.load(dn1_ptr + slot * DK + d, mask=in_d, other=0.0)
                    link1 += tl.sum(tl.sum(more * C, 1), 0) + tl.sum(more_n * n, 0)
                    dC += more
                    dn += more_n
        at = (tile * N + memory).to(tl.int64) * H + head
        tl.store(link_ptr + at, link)
        tl.store(link_ptr + tiles * N.to(tl.int64) * H + at, link1)
    tl.store(dC_ptr + here * (DK * DV) + of_tile, dC.to(dC_ptr.dtype.element_ty), mask=inside)
    if once:
        tl.store(dn_ptr + here * DK + d, dn, mask=in_d)


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "R"])
def queries_kernel(
    q_ptr, k_ptr, dh_ptr, steps_ptr, dS_ptr, table_ptr, r_ptr, dd_ptr, read_ptr, reads_ptr, C_ptr, n_ptr,
    dq_ptr, rows_ptr,
    T, PER_ROW, H, R, scale, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, INSIDE: tl.constexpr,
    BT: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of BT steps of one chunk and head, and row sums of reads; BK covers DK."""
    blocks: tl.constexpr = L // BT
    c, begin, head = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BT, tl.program_id(1)
    chunk = c.to(tl.int64) * H + head
    step = begin + tl.arange(0, BT)
    row, x = rows_at(steps_ptr, c, step, T, PER_ROW, L), tl.arange(0, BK)
    in_table = chunk * (INSIDE + 1 + R) * L + (INSIDE + 1) * L + step

    dq = tl.zeros((BT, BK), tl.float32)
    for s0 in range(0, begin + BT, BS):
        source = s0 + tl.arange(0, BS)
        dS = tl.load(dS_ptr + (chunk * L + step)[:, None] * L + source[None, :])
        k = load_rows(k_ptr, rows_at(steps_ptr, c, source, T, PER_ROW, L), head, H, DK, x)
        dq = tl.dot(dS, k, dq, input_precision=PRECISION)
    r, dd = tl.load(r_ptr + chunk * L + step), tl.load(dd_ptr + chunk * L + step)
    for read in range(tl.load(reads_ptr + c)):
        memory = tl.load(read_ptr + c * R + read)
        part = tl.zeros((BT, BK), tl.float32)
        for e0 in range(0, DV, BD):
            e = e0 + tl.arange(0, BD)
            C = load_memory(C_ptr, memory, head, H, DK, DV, x, e)
            dh = load_rows(dh_ptr, row, head, H, DV, e)
            part = tl.dot(dh.to(C.dtype), tl.trans(C), part, input_precision=PRECISION)
        u = scale * tl.load(table_ptr + in_table + read * L)
        n = tl.load(n_ptr + (memory.to(tl.int64) * H + head) * DK + x, mask=x < DK, other=0.0)
        part = (u * r)[:, None] * part + (u * dd)[:, None] * n[None, :]
        q = load_rows(q_ptr, row, head, H, DK, x).to(tl.float32)
        tl.store(rows_ptr + in_table + read * L, tl.sum(q * part, 1))
        dq += part
    inside = (row >= 0)[:, None] & (x < DK)[None, :]
    tl.store(rows_of(dq_ptr, row, head, H, DK, x), dq.to(dq_ptr.dtype.element_ty), mask=inside)


@triton.jit
def write_weights(a_ptr, elapsed_ptr, G_ptr, chunk, source, L: tl.constexpr, memory):
    """The weights w_s with which steps of a chunk are part of a memory."""
    G = tl.load(G_ptr + memory)
    here = (tl.load(elapsed_ptr + chunk) + tl.where(G == NOTHING, 0.0, G)).to(tl.float32)
    return tl.exp(tl.load(a_ptr + chunk * L + source) - here)


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "LEVELS", "slots"])
def keys_kernel(
    q_ptr, k_ptr, v_ptr, steps_ptr, dS_ptr, a_ptr, elapsed_ptr, G_ptr, dC_ptr, dn_ptr,
    ending_ptr, slot_steps_ptr, G1_ptr, dC1_ptr, dn1_ptr, dk_ptr, kdk_ptr,
    slots, T, PER_ROW, H, LEVELS, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BS: tl.constexpr,
    BK: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk of BS steps of one chunk and head, and k . dk of what reads them after it."""
    blocks: tl.constexpr = L // BS
    c, begin, head = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BS, tl.program_id(1)
    chunk = c.to(tl.int64) * H + head
    source = begin + tl.arange(0, BS)
    row, x = rows_at(steps_ptr, c, source, T, PER_ROW, L), tl.arange(0, BK)

    later = tl.zeros((BS, BK), tl.float32)
    for e0 in range(0, DV, BD):
        e = e0 + tl.arange(0, BD)
        dC = load_memory(dC_ptr, c, head, H, DK, DV, x, e)
        v = load_rows(v_ptr, row, head, H, DV, e)
        later = tl.dot(v.to(dC.dtype), tl.trans(dC), later, input_precision=PRECISION)
    later += tl.load(dn_ptr + chunk * DK + x, mask=x < DK, other=0.0)[None, :]
    later *= write_weights(a_ptr, elapsed_ptr, G_ptr, chunk, source, L, chunk)[:, None]
    if dC1_ptr is not None:
        ending = tl.load(ending_ptr + c)
        for level in range(tl.where(ending >= 0, LEVELS, 0)):
            low, high = (
                tl.load(slot_steps_ptr + ending * LEVELS + level),
                tl.load(slot_steps_ptr + slots + ending * LEVELS + level),
            )
            if (low < begin + BS) & (high > begin):
                slot = (ending.to(tl.int64) * H + head) * LEVELS + level
                part = tl.zeros((BS, BK), tl.float32)
                for e0 in range(0, DV, BD):
                    e = e0 + tl.arange(0, BD)
                    at = slot * (DK * DV) + x[:, None] * DV + e[None, :]
                    dC1 = tl.load(dC1_ptr + at, mask=(x < DK)[:, None] & (e < DV)[None, :], other=0.0)
                    v = load_rows(v_ptr, row, head, H, DV, e)
                    dC1, v = dC1.to(dC_ptr.dtype.element_ty), v.to(dC_ptr.dtype.element_ty)
                    part = tl.dot(v, tl.trans(dC1), part, input_precision=PRECISION)
                part += tl.load(dn1_ptr + slot * DK + x, mask=x < DK, other=0.0)[None, :]
                w = write_weights(a_ptr, elapsed_ptr, G1_ptr, chunk, source, L, slot)
                later += tl.where((source >= low) & (source < high), w, 0.0)[:, None] * part
    k = load_rows(k_ptr, row, head, H, DK, x).to(tl.float32)
    tl.store(kdk_ptr + chunk * L + source, tl.sum(k * later, 1))
    dk = tl.zeros((BS, BK), tl.float32)
    for t0 in range(begin, L, BT):
        step = t0 + tl.arange(0, BT)
        dS = tl.load(dS_ptr + (chunk * L + step)[:, None] * L + source[None, :])
        q = load_rows(q_ptr, rows_at(steps_ptr, c, step, T, PER_ROW, L), head, H, DK, x)
        dk = tl.dot(tl.trans(dS), q, dk, input_precision=PRECISION)
    dk += later
    inside = (row >= 0)[:, None] & (x < DK)[None, :]
    tl.store(rows_of(dk_ptr, row, head, H, DK, x), dk.to(dk_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "LEVELS", "slots"])
def values_kernel(
    k_ptr, dh_ptr, steps_ptr, A_ptr, a_ptr, elapsed_ptr, G_ptr, dC_ptr,
    ending_ptr, slot_steps_ptr, G1_ptr, dC1_ptr, dv_ptr,
    slots, T, PER_ROW, H, LEVELS, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BS: tl.constexpr,
    BV: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dv of BS steps in one tile of BV columns, of one chunk and head; A_ptr holds A_ts r_t."""
    across: tl.constexpr = (DV + BV - 1) // BV
    programs: tl.constexpr = across * (L // BS)
    c, tile, head = tl.program_id(0) // programs, tl.program_id(0) % programs, tl.program_id(1)
    chunk = c.to(tl.int64) * H + head
    begin = (tile // across) * BS
    e = (tile % across) * BV + tl.arange(0, BV)
    source = begin + tl.arange(0, BS)
    row = rows_at(steps_ptr, c, source, T, PER_ROW, L)

    dv = tl.zeros((BS, BV), tl.float32)
    for x0 in range(0, DK, BD):
        x = x0 + tl.arange(0, BD)
        dC = load_memory(dC_ptr, c, head, H, DK, DV, x, e)
        dv = tl.dot(load_rows(k_ptr, row, head, H, DK, x).to(dC.dtype), dC, dv, input_precision=PRECISION)
    dv *= write_weights(a_ptr, elapsed_ptr, G_ptr, chunk, source, L, chunk)[:, None]
    if dC1_ptr is not None:
        ending = tl.load(ending_ptr + c)
        for level in range(tl.where(ending >= 0, LEVELS, 0)):
            low, high = (
                tl.load(slot_steps_ptr + ending * LEVELS + level),
                tl.load(slot_steps_ptr + slots + ending * LEVELS + level),
            )
            if (low < begin + BS) & (high > begin):
                slot = (ending.to(tl.int64) * H + head) * LEVELS + level
                part = tl.zeros((BS, BV), tl.float32)
                for x0 in range(0, DK, BD):
                    x = x0 + tl.arange(0, BD)
                    at = slot * (DK * DV) + x[:, None] * DV + e[None, :]
                    dC1 = tl.load(dC1_ptr + at, mask=(x < DK)[:, None] & (e < DV)[None, :], other=0.0)
                    k = load_rows(k_ptr, row, head, H, DK, x)
                    dC1, k = dC1.to(dC_ptr.dtype.element_ty), k.to(dC_ptr.dtype.element_ty)
                    part = tl.dot(k, dC1, part, input_precision=PRECISION)
                w = write_weights(a_ptr, elapsed_ptr, G1_ptr, chunk, source, L, slot)
                dv += tl.where((source >= low) & (source < high), w, 0.0)[:, None] * part
    for t0 in range(begin, L, BT):
        step = t0 + tl.arange(0, BT)
        A = tl.load(A_ptr + (chunk * L + step)[:, None] * L + source[None, :])
        dh = load_rows(dh_ptr, rows_at(steps_ptr, c, step, T, PER_ROW, L), head, H, DV, e)
        dv = tl.dot(tl.trans(A), dh, dv, input_precision=PRECISION)
    inside = (row >= 0)[:, None] & (e < DV)[None, :]
    tl.store(rows_of(dv_ptr, row, head, H, DV, e), dv.to(dv_ptr.dtype.element_ty), mask=inside)
