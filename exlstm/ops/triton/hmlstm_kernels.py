"""Device code of the hierarchical mLSTM, forward: gates, memories, weights of reads, outputs.

Chunks of L steps are aligned with positions in their document; `steps` [M, L] says where in [B T] their steps lie (-1:
nowhere), so sequences [B, T, H, D] stay as they are. Where all rows are full that follows from shapes and is not looked
up, so that loads wait for no other and run further ahead. With F_t the sum of log f within a chunk, E_c that before
chunk c (`elapsed`, float64) and a_s = i_s - F_s, the log weight of step s is a_s seen from its chunk's start, and
a_s - E_c seen from chunk 0, the same from wherever it is read. Memories (`hmlstm_tables` says which there are) hold

    C = sum_s exp(a_s - E_c(s) - G) k_s v_s^T,    G = max_s (a_s - E_c(s)),    n likewise of k alone

over their steps, so that one is part of another with weight exp(G - G'), and chunk c reads it with log weight E_c + G,
to which a step adds that of the level at which it stands: the bit length of t xor s, at most `levels - 1`.

    h_t = (sum_s A_ts v_s + sum_r u_rt C_r^T q_t / sqrt(DK)) / (max(|d_t|, exp(-F_t - M_t)) + eps)
    A_ts = exp(a_s + level_t[t xor s] - M_t) q_t . k_s / sqrt(DK),      u_rt = exp(E_c + G_r + level_t[r] - M_t)

`table` [M, H, inside + 1 + R, L] holds level_t[l] - M_t for the levels within a chunk, then u. What depends on gates
alone is float32 [M, H, L] unless said otherwise.
"""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import denominator, log_sigmoid

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def bit_length(x):
    """Of integers >= 0; of large ones only the first 24 bits may be set, so that the exponent of a float tells it."""
    exponent = (x.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126
    return tl.where(x > 0, exponent, 0)


@triton.jit
def rows_at(steps_ptr, c, step, T, PER_ROW, L: tl.constexpr):
    """Where in [B T] these steps of chunk c lie; -1: nowhere. Without a table, PER_ROW chunks fill each row of T."""
    if steps_ptr is None:
        t = (c % PER_ROW) * L + step
        row = tl.where(t < T, (c // PER_ROW) * T + t, -1)
    else:
        row = tl.load(steps_ptr + c * L + step)
    return row


@triton.jit
def rows_of(ptr, row, head, H, D: tl.constexpr, d):
    """Pointers [row, d] into a sequence [B T, H, D]."""
    return ptr + (row.to(tl.int64) * H + head)[:, None] * D + d[None, :]


@triton.jit
def load_rows(ptr, row, head, H, D: tl.constexpr, d):
    """Those rows; 0 where no step lies."""
    return tl.load(rows_of(ptr, row, head, H, D, d), mask=(row >= 0)[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def load_memory(ptr, memory, head, H, DK: tl.constexpr, DV: tl.constexpr, d, e):
    """A tile [d, e] of a memory [N, H, DK, DV]."""
    at = (memory.to(tl.int64) * H + head) * (DK * DV) + d[:, None] * DV + e[None, :]
    return tl.load(ptr + at, mask=(d < DK)[:, None] & (e < DV)[None, :], other=0.0)


@triton.jit(do_not_specialize=["T", "PER_ROW", "H"])
def gates_kernel(i_ptr, f_ptr, steps_ptr, a_ptr, F_ptr, total_ptr, T, PER_ROW, H, L: tl.constexpr):
    """a and F of one chunk and head, and the sum of log f in it, float64 [M, H]."""
    c, head = tl.program_id(0), tl.program_id(1)
    step = tl.arange(0, L)
    row = rows_at(steps_ptr, c, step, T, PER_ROW, L)
    at = row.to(tl.int64) * H + head
    i = tl.load(i_ptr + at, mask=row >= 0, other=NOTHING).to(tl.float32)
    log_f = log_sigmoid(tl.load(f_ptr + at, mask=row >= 0, other=0.0).to(tl.float32))
    F = tl.cumsum(tl.where(row >= 0, log_f, 0.0), 0)
    chunk = c.to(tl.int64) * H + head
    tl.store(a_ptr + chunk * L + step, i - F)
    tl.store(F_ptr + chunk * L + step, F)
    tl.store(total_ptr + chunk, tl.sum(tl.where(step == L - 1, F, 0.0), 0).to(tl.float64))


@triton.jit(do_not_specialize=["M", "H"])
def elapsed_kernel(total_ptr, elapsed_ptr, M, H, BLOCK: tl.constexpr):
    """The sum of log f of one head before each of M chunks, and after the last, float64 [M + 1, H]."""
    head, before = tl.program_id(0), tl.full((1,), 0.0, tl.float64)
    tl.store(elapsed_ptr + head + tl.arange(0, 1), before)
    for begin in range(0, M, BLOCK):
        c = begin + tl.arange(0, BLOCK)
        total = tl.load(total_ptr + c * H + head, mask=c < M, other=0.0)
        tl.store(elapsed_ptr + (c + 1) * H + head, before + tl.cumsum(total, 0), mask=c < M)
        before += tl.sum(total, 0)


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "LEVELS", "begin", "S"])
def memories_kernel(
    k_ptr, v_ptr, steps_ptr, a_ptr, elapsed_ptr, C_ptr, n_ptr, G_ptr, source_ptr, sources_ptr,
    order_ptr, slot_chunk_ptr, slot_steps_ptr, C1_ptr, n1_ptr, m1_ptr, G1_ptr, slots,
    begin, T, PER_ROW, H, S, LEVELS, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, BL: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, FINAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of one memory: of steps, and of memories that are part of it.

    Those of chunks are written beside their sources; with FINAL, the slots of the final state, [B, H, levels, ...].
    """
    tiles: tl.constexpr = ((DK + BK - 1) // BK) * ((DV + BV - 1) // BV)
    across: tl.constexpr = (DV + BV - 1) // BV
    item, tile, head = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.program_id(1)
    d = (tile // across) * BK + tl.arange(0, BK)
    e = (tile % across) * BV + tl.arange(0, BV)
    if FINAL:
        c = tl.maximum(tl.load(slot_chunk_ptr + item), 0)
        low, high = tl.load(slot_steps_ptr + item), tl.load(slot_steps_ptr + slots + item)
        table = item
    else:
        c = tl.load(order_ptr + begin + item)
        low, high = 0, L
        table = c
    chunk = c.to(tl.int64) * H + head
    start = tl.load(elapsed_ptr + chunk)
    step = tl.arange(0, L)
    a = tl.load(a_ptr + chunk * L + step)
    a = tl.where((step >= low) & (step < high), a, NOTHING)
    G = tl.max(a, 0).to(tl.float64) - start
    count = tl.load(sources_ptr + table)
    for x in range(count):
        source = tl.load(source_ptr + table * S + x)
        G = tl.maximum(G, tl.load(G_ptr + source.to(tl.int64) * H + head))
    scale = tl.where(G == NOTHING, 0.0, G)  # nothing divided by nothing's weight is nothing
    here = (start + scale).to(tl.float32)

    C = tl.zeros((BK, BV), tl.float32)
    keys = tl.zeros((BL, BK), tl.float32)  # whose sum over steps, taken once, is n
    for s0 in range(low // BL * BL, high, BL):
        source_step = s0 + tl.arange(0, BL)
        row = rows_at(steps_ptr, c, source_step, T, PER_ROW, L)
        w = tl.exp(tl.load(a_ptr + chunk * L + source_step) - here)
        if FINAL:
            w = tl.where((source_step >= low) & (source_step < high), w, 0.0)
        k = load_rows(k_ptr, row, head, H, DK, d).to(tl.float32) * w[:, None]
        v = load_rows(v_ptr, row, head, H, DV, e)
        keys += k
        C = tl.dot(tl.trans(k.to(v.dtype)), v, C, input_precision=PRECISION)
    n = tl.sum(keys, 0)
    for x in range(count):
        source = tl.load(source_ptr + table * S + x)
        of_source = source.to(tl.int64) * H + head
        weight = tl.exp(tl.load(G_ptr + of_source) - scale).to(tl.float32)
        C += weight * load_memory(C_ptr, source, head, H, DK, DV, d, e).to(tl.float32)
        n += weight * tl.load(n_ptr + of_source * DK + d, mask=d < DK, other=0.0)

    inside = (d < DK)[:, None] & (e < DV)[None, :]
    of_tile = d[:, None] * DV + e[None, :]
    if FINAL:
        slot = ((item // LEVELS).to(tl.int64) * H + head) * LEVELS + item % LEVELS
        tl.store(C1_ptr + slot * (DK * DV) + of_tile, C, mask=inside)
        if tile % across == 0:
            tl.store(n1_ptr + slot * DK + d, n, mask=d < DK)
        if tile == 0:
            end = tl.load(elapsed_ptr + chunk + H)
            tl.store(m1_ptr + slot, tl.where(G == NOTHING, 0.0, G + end).to(tl.float32))
            tl.store(G1_ptr + slot, G)
    else:
        tl.store(C_ptr + chunk * (DK * DV) + of_tile, C.to(C_ptr.dtype.element_ty), mask=inside)
        if tile % across == 0:
            tl.store(n_ptr + chunk * DK + d, n, mask=d < DK)
        if tile == 0:
            tl.store(G_ptr + chunk, G)


@triton.jit
def _before(a, B: tl.constexpr, L: tl.constexpr):
    """The largest a in the block of B steps before the one that a step is in, if both are halves of a block of 2 B."""
    largest = tl.max(tl.reshape(a, (L // (2 * B), 2, B)), 2)
    side = tl.arange(0, 2)[None, :]
    left = tl.max(tl.where(side == 0, largest, NOTHING), 1)
    before = tl.where(side == 1, left[:, None], NOTHING)
    return tl.reshape(tl.broadcast_to(before[:, :, None], (L // (2 * B), 2, B)), (L,))


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "R", "LEVELS"])
def weights_kernel(
    a_ptr, level_ptr, steps_ptr, elapsed_ptr, start_ptr, ending_ptr, going_on_ptr, decay0_ptr, decay1_ptr, G_ptr,
    read_ptr, place_ptr, reads_ptr, M_ptr, table_ptr, T, PER_ROW, H, R, LEVELS, L: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """M of one chunk and head, and its `table`; where a row ends, the sum of log f in its last document, too."""
    c, head = tl.program_id(0), tl.program_id(1)
    chunk = c.to(tl.int64) * H + head
    step = tl.arange(0, L)
    row = rows_at(steps_ptr, c, step, T, PER_ROW, L)
    present = row >= 0
    level_ptr += (row.to(tl.int64) * H + head) * LEVELS
    a = tl.load(a_ptr + chunk * L + step)
    elapsed = tl.load(elapsed_ptr + chunk)
    start = tl.load(elapsed_ptr + tl.load(start_ptr + c).to(tl.int64) * H + head)
    ending = tl.load(ending_ptr + c)
    until = (tl.load(elapsed_ptr + chunk + H) - start).to(tl.float32)
    tl.store(decay1_ptr + ending * H + head, until, mask=ending >= 0)
    floor = (elapsed - start).to(tl.float32)
    if decay0_ptr is not None:
        going_on = tl.load(going_on_ptr + c)
        floor += tl.load(decay0_ptr + going_on * H + head, mask=going_on >= 0, other=0.0)
    M = tl.maximum(a + tl.load(level_ptr, mask=present, other=0.0).to(tl.float32), floor)
    for b in tl.static_range(INSIDE):
        level = tl.load(level_ptr + tl.minimum(b + 1, LEVELS - 1), mask=present, other=0.0).to(tl.float32)
        M = tl.maximum(M, _before(a, 1 << b, L) + level)
    count = tl.load(reads_ptr + c)
    for r in range(count):
        log = (elapsed + tl.load(G_ptr + tl.load(read_ptr + c * R + r).to(tl.int64) * H + head)).to(tl.float32)
        at = tl.minimum(bit_length(step ^ tl.load(place_ptr + c * R + r)), LEVELS - 1)
        M = tl.maximum(M, log + tl.load(level_ptr + at, mask=present, other=0.0).to(tl.float32))
    tl.store(M_ptr + chunk * L + step, M)

    table_ptr += chunk * (INSIDE + 1 + R) * L + step
    for b in tl.static_range(INSIDE + 1):
        level = tl.load(level_ptr + tl.minimum(b, LEVELS - 1), mask=present, other=0.0).to(tl.float32)
        tl.store(table_ptr + b * L, level - M)
    for r in range(count):
        log = (elapsed + tl.load(G_ptr + tl.load(read_ptr + c * R + r).to(tl.int64) * H + head)).to(tl.float32)
        at = tl.minimum(bit_length(step ^ tl.load(place_ptr + c * R + r)), LEVELS - 1)
        level = tl.load(level_ptr + at, mask=present, other=0.0).to(tl.float32)
        tl.store(table_ptr + (INSIDE + 1 + r) * L, tl.exp(log + level - M))


@triton.jit
def products_of(
    x_ptr, y_ptr, row_t, row_s, head, H, D: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """x_t . y_s of all steps t and s: [BT, BS]."""
    products = tl.zeros((BT, BS), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        x, y = load_rows(x_ptr, row_t, head, H, D, d), load_rows(y_ptr, row_s, head, H, D, d)
        products = tl.dot(x, tl.trans(y), products, input_precision=PRECISION)
    return products


@triton.jit
def weights_before(a_ptr, table_ptr, begin, s0, L: tl.constexpr, B: tl.constexpr):
    """exp(a_s + level_t - M_t) where the B steps from s0 lie before those from `begin`: at one level for all."""
    a = tl.load(a_ptr + s0 + tl.arange(0, B))
    x = tl.load(table_ptr + bit_length(begin ^ s0) * L + begin + tl.arange(0, B))
    return tl.exp(a[None, :] + x[:, None])


@triton.jit
def weights_among(a_ptr, table_ptr, begin, lev, L: tl.constexpr, B: tl.constexpr, LOG_B: tl.constexpr):
    """The same among the B steps from `begin`, whose levels are lev [B, B]."""
    offset = tl.arange(0, B)
    a = tl.load(a_ptr + begin + offset)
    x = tl.load(table_ptr + begin + offset)[:, None] + tl.zeros((B, B), tl.float32)
    for b in tl.static_range(1, LOG_B + 1):
        x = tl.where(lev == b, tl.load(table_ptr + b * L + begin + offset)[:, None], x)
    return tl.exp(tl.where(offset[None, :] <= offset[:, None], a[None, :] + x, NOTHING))


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "R"])
def scores_kernel(
    q_ptr, k_ptr, steps_ptr, a_ptr, table_ptr, read_ptr, reads_ptr, n_ptr, A_ptr, d_ptr,
    T, PER_ROW, H, R, scale, DK: tl.constexpr, L: tl.constexpr, INSIDE: tl.constexpr, B: tl.constexpr,
    LOG_B: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A [M, H, L, L] in B rows of one chunk and head, but for blocks of BLOCK that see nothing; and their d."""
    blocks: tl.constexpr = L // B
    c, begin, head = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * B, tl.program_id(1)
    chunk = c.to(tl.int64) * H + head
    offset = tl.arange(0, B)
    a_ptr += chunk * L
    table_ptr += chunk * (INSIDE + 1 + R) * L
    A_ptr += (chunk * L + begin + offset)[:, None] * L + offset[None, :]
    row = rows_at(steps_ptr, c, begin + offset, T, PER_ROW, L)

    d = tl.zeros((B,), tl.float32)
    count = tl.load(reads_ptr + c)
    for x0 in range(0, DK, BD):
        x = x0 + tl.arange(0, BD)
        q = load_rows(q_ptr, row, head, H, DK, x).to(tl.float32)
        for r in range(count):
            memory = tl.load(read_ptr + c * R + r).to(tl.int64) * H + head
            n = tl.load(n_ptr + memory * DK + x, mask=x < DK, other=0.0)
            d += tl.load(table_ptr + (INSIDE + 1 + r) * L + begin + offset) * tl.sum(q * n[None, :], 1)
    d *= scale
    for s0 in range(0, begin, B):
        row_s = rows_at(steps_ptr, c, s0 + offset, T, PER_ROW, L)
        A = products_of(q_ptr, k_ptr, row, row_s, head, H, DK, B, B, BD, PRECISION)
        A *= scale * weights_before(a_ptr, table_ptr, begin, s0, L, B)
        d += tl.sum(A, 1)
        tl.store(A_ptr + s0, A.to(A_ptr.dtype.element_ty))
    A = products_of(q_ptr, k_ptr, row, row, head, H, DK, B, B, BD, PRECISION)
    A *= scale * weights_among(a_ptr, table_ptr, begin, bit_length(offset[:, None] ^ offset[None, :]), L, B, LOG_B)
    d += tl.sum(A, 1)
    tl.store(A_ptr + begin, A.to(A_ptr.dtype.element_ty))
    for s0 in range(begin + B, (begin // BLOCK + 1) * BLOCK, B):
        tl.store(A_ptr + s0, tl.zeros((B, B), A_ptr.dtype.element_ty))
    tl.store(d_ptr + chunk * L + begin + offset, d)


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "R"])
def outputs_kernel(
    q_ptr, v_ptr, steps_ptr, A_ptr, F_ptr, M_ptr, d_ptr, table_ptr, read_ptr, reads_ptr, C_ptr, h_ptr,
    T, PER_ROW, H, R, scale, DK: tl.constexpr, DV: tl.constexpr, L: tl.constexpr, INSIDE: tl.constexpr,
    BT: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h of BT steps in one tile of BV columns, of one chunk and head."""
    across: tl.constexpr = (DV + BV - 1) // BV
    programs: tl.constexpr = across * (L // BT)
    parts: tl.constexpr = (DK + BD - 1) // BD
    c, tile, head = tl.program_id(0) // programs, tl.program_id(0) % programs, tl.program_id(1)
    chunk = c.to(tl.int64) * H + head
    begin = (tile // across) * BT
    e = (tile % across) * BV + tl.arange(0, BV)
    step = begin + tl.arange(0, BT)
    row = rows_at(steps_ptr, c, step, T, PER_ROW, L)
    table_ptr += chunk * (INSIDE + 1 + R) * L + (INSIDE + 1) * L + step

    h = tl.zeros((BT, BV), tl.float32)
    for part in range(tl.load(reads_ptr + c) * parts):  # one loop, so that loads run ahead from memory to memory
        r = part // parts
        x = (part % parts) * BD + tl.arange(0, BD)
        C = load_memory(C_ptr, tl.load(read_ptr + c * R + r), head, H, DK, DV, x, e)
        q = load_rows(q_ptr, row, head, H, DK, x).to(tl.float32) * tl.load(table_ptr + r * L)[:, None]
        h = tl.dot(q.to(C.dtype), C, h, input_precision=PRECISION)
    h *= scale
    for s0 in range(0, begin + BT, BS):
        source = s0 + tl.arange(0, BS)
        A = tl.load(A_ptr + (chunk * L + step)[:, None] * L + source[None, :])
        v = load_rows(v_ptr, rows_at(steps_ptr, c, source, T, PER_ROW, L), head, H, DV, e)
        h = tl.dot(A, v, h, input_precision=PRECISION)
    m = tl.load(F_ptr + chunk * L + step) + tl.load(M_ptr + chunk * L + step)
    d = tl.load(d_ptr + chunk * L + step)
    h /= denominator(d, m)[:, None]
    tl.store(
        rows_of(h_ptr, row, head, H, DV, e), h.to(h_ptr.dtype.element_ty), mask=(row >= 0)[:, None] & (e < DV)[None, :]
    )
