"""Device code of the hierarchical mLSTM, backward: what gates and level weights receive; names as in `hmlstm_kernels`.

A log forget gate is part of the weight of every read of an earlier step by a later one: of reads within its chunk, of
reads by its chunk, of its chunk's own memory, and of all memories from before its chunk that are read, joined or kept
after it. The last are the same for all steps of a chunk: `between`.
"""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import log_sigmoid
from exlstm.ops.triton.hmlstm_kernels import bit_length, rows_at


@triton.jit(do_not_specialize=["H", "R"])
def read_sums_kernel(
    rows_ptr, reads_ptr, sums_ptr,
    H, R, L: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """The sum of P of everything that one chunk reads, of one head: float64 [H, R, M]."""
    c, head, M = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    rows_ptr += ((c.to(tl.int64) * H + head) * (INSIDE + 1 + R) + INSIDE + 1) * L + tl.arange(0, L)
    count = tl.load(reads_ptr + c)
    for r in range(R):
        P = tl.where(r < count, tl.load(rows_ptr + r * L), 0.0)
        tl.store(sums_ptr + (head.to(tl.int64) * R + r) * M + c, tl.sum(P, 0))


@triton.jit(do_not_specialize=["M", "N", "H", "ROWS", "R", "S", "SLOTS"])
def between_kernel(
    links_ptr, sums_ptr, readers_ptr, source_ptr, start_ptr, going_on_ptr, before_ptr, parts_ptr, between_ptr,
    M, N, H, ROWS, R, S, SLOTS, PROGRAMS: tl.constexpr, READS: tl.constexpr, SOURCES: tl.constexpr,
    KEPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of P, over memories before a chunk and what they are part of or read by after it, of one head [M, H].

    A memory counts from the end of its steps: with what each of its readers reads, up to that reader; with what it is
    to another memory, up to that one; with what it is to the final state, up to the document's end. `parts` [H, 2, N]
    is what memories are to others and to the final state, all programs' `links` [2, PROGRAMS, N, H] together; `before`
    [H, R + 1, M + 1] the sums over the chunks before each, of what is read in each column and of what the final state
    has of chunks' memories. READS, SOURCES and KEPT (0: no state) are powers of two that hold R + 1 reads, S sources
    and the state's SLOTS slots.
    """
    head = tl.program_id(0)
    sums_ptr += head.to(tl.int64) * R * M
    before_ptr += head.to(tl.int64) * (R + 1) * (M + 1)
    parts_ptr += head.to(tl.int64) * 2 * N
    finals_ptr = parts_ptr + N
    for begin in range(0, N, BLOCK):
        n = begin + tl.arange(0, BLOCK)
        for which in tl.static_range(2):
            part = tl.zeros((BLOCK,), tl.float64)
            for p in range(which * PROGRAMS, (which + 1) * PROGRAMS):
                part += tl.load(links_ptr + (p * N + n).to(tl.int64) * H + head, mask=n < N, other=0.0).to(tl.float64)
            tl.store(parts_ptr + which * N + n, part, mask=n < N)
    tl.debug_barrier()  # what is read from here on other threads have written

    read = tl.arange(0, READS)
    total = tl.zeros((READS,), tl.float64)
    tl.store(before_ptr + read * (M + 1), total, mask=read <= R)
    for begin in range(0, M, BLOCK):
        c = begin + tl.arange(0, BLOCK)
        inside = (read <= R)[:, None] & (c < M)[None, :]
        x_ptr = tl.where((read == R)[:, None], finals_ptr + c[None, :], sums_ptr + read[:, None] * M + c[None, :])
        x = tl.load(x_ptr, mask=inside, other=0.0)
        tl.store(before_ptr + read[:, None] * (M + 1) + c[None, :] + 1, total[:, None] + tl.cumsum(x, 1), mask=inside)
        total += tl.sum(x, 1)
    tl.debug_barrier()

    running = tl.zeros((1,), tl.float64)
    source = tl.arange(0, SOURCES)[None, :]
    for begin in range(0, M, BLOCK):
        c = begin + tl.arange(0, BLOCK)
        inside, follows = c < M, (c > 0) & (c < M)
        change = _counted(readers_ptr, before_ptr, parts_ptr, c - 1, follows, M, N)
        s = tl.load(source_ptr + (c[:, None] - 1) * S + source, mask=follows[:, None] & (source < S), other=-1)
        change -= tl.sum(tl.load(parts_ptr + s, mask=s >= 0, other=0.0), 1)
        reads = inside[:, None] & (read < R)[None, :]
        change -= tl.sum(tl.load(sums_ptr + read[None, :] * M + c[:, None], mask=reads, other=0.0), 1)
        start = tl.load(start_ptr + c, mask=inside, other=0)
        kept_ptr = before_ptr + R * (M + 1)
        kept = tl.load(kept_ptr + c, mask=inside, other=0.0) - tl.load(kept_ptr + start, mask=inside, other=0.0)
        if KEPT > 0:  # slots of the initial state, which count from a row's first chunk
            slot = tl.arange(0, KEPT)[None, :]
            row = tl.load(going_on_ptr + c, mask=inside, other=-1)[:, None]
            n, there = M + slot * ROWS + row, (row >= 0) & (slot < SLOTS)
            kept += tl.sum(tl.load(finals_ptr + n, mask=there, other=0.0), 1)
            first = there & (c == start)[:, None]
            change += tl.sum(_counted(readers_ptr, before_ptr, parts_ptr, n, first, M, N), 1)
        between = running + tl.cumsum(change, 0) + kept
        tl.store(between_ptr + c.to(tl.int64) * H + head, between.to(tl.float32), mask=inside)
        running += tl.sum(change, 0)


@triton.jit
def _counted(readers_ptr, before_ptr, parts_ptr, n, there, M, N):
    """What memories are to others and to the chunks that read them."""
    first = tl.load(readers_ptr + n, mask=there, other=0)
    last = tl.load(readers_ptr + N + n, mask=there, other=0)
    column = tl.maximum(tl.load(readers_ptr + 2 * N + n, mask=there, other=0), 0) * (M + 1)
    read = tl.load(before_ptr + column + last, mask=there, other=0.0)
    read -= tl.load(before_ptr + column + first, mask=there, other=0.0)
    return read + tl.load(parts_ptr + n, mask=there, other=0.0)


@triton.jit(do_not_specialize=["T", "PER_ROW", "H", "R", "LEVELS"])
def gates_backward_kernel(
    f_ptr, steps_ptr, rows_ptr, columns_ptr, kdk_ptr, place_ptr, reads_ptr, between_ptr,
    di_ptr, df_ptr, dlevel_ptr,
    T, PER_ROW, H, R, LEVELS, L: tl.constexpr, INSIDE: tl.constexpr, COLUMNS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The gradients of one chunk's gates and level weights, of one head."""
    c, head = tl.program_id(0), tl.program_id(1)
    chunk = c.to(tl.int64) * H + head
    step = tl.arange(0, L)
    rows_ptr += chunk * (INSIDE + 1 + R) * L + step
    count = tl.load(reads_ptr + c)
    row = rows_at(steps_ptr, c, step, T, PER_ROW, L)
    at = row.to(tl.int64) * H + head
    column = tl.arange(0, COLUMNS)[None, :]
    dlevel = tl.zeros((L, COLUMNS), tl.float32)
    x, by_s = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    for b in tl.static_range(INSIDE + 1):
        P = tl.load(rows_ptr + b * L)
        dlevel += tl.where(column == tl.minimum(b, LEVELS - 1), P[:, None], 0.0)
        x += P
    for block in tl.static_range(L // B):
        by_s += tl.load(columns_ptr + (chunk * (L // B) + block) * L + step, mask=step < (block + 1) * B, other=0.0)
    x -= by_s
    kdk = tl.load(kdk_ptr + chunk * L + step)
    for r in range(count):
        P = tl.load(rows_ptr + (INSIDE + 1 + r) * L)
        level = tl.minimum(bit_length(step ^ tl.load(place_ptr + c * R + r)), LEVELS - 1)
        dlevel += tl.where(column == level[:, None], P[:, None], 0.0)
        x += P
    # A log forget gate is part of all that later steps read of earlier ones; itself included among the former.
    d_log_f = tl.sum(x, 0) - tl.cumsum(x, 0) + x
    d_log_f += tl.cumsum(kdk, 0) - kdk + tl.load(between_ptr + chunk)
    f = tl.load(f_ptr + at, mask=row >= 0, other=0.0).to(tl.float32)
    tl.store(di_ptr + at, (by_s + kdk).to(di_ptr.dtype.element_ty), mask=row >= 0)
    tl.store(df_ptr + at, (d_log_f * tl.exp(log_sigmoid(-f))).to(df_ptr.dtype.element_ty), mask=row >= 0)
    tl.store(
        dlevel_ptr + at[:, None] * LEVELS + column, dlevel.to(dlevel_ptr.dtype.element_ty),
        mask=(row >= 0)[:, None] & (column < LEVELS),
    )  # fmt: skip
