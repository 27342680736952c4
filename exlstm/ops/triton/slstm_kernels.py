"""Device code of the sLSTM: two kernels that walk over time, one head and a few batch rows each, and two products.

**The products** of the walk have the shape [W, 16, BT]: the D columns of a head, as W blocks of 16, are the rows and
BT batch rows the columns, so that 8 batch rows are enough for a tensor core. They are batched products (rank 3), which
place a block of 16 columns, of all four gates, on each warp. Only h (forward) and the gates' gradients (backward),
which every warp needs whole, cross from warp to warp, through shared memory.

**The weights** stay in registers where they fit: a product with the identity leaves them in the layout that the
products of the walk read, whereas weights merely loaded before the loop would be read from shared memory at every
step. Wider weights are read again at every step, from the L2 cache, and what every warp needs passes through `scratch`.

**Everything else** is computed on tiles [BT, 16, W], as memory has them, whose columns lie on the same warps: results
of products change layout once, within a warp, and what is loaded and stored never does. The compiler gives values the
layout of what is read last, so a step asks for what the next one needs after its products.
"""

import triton
import triton.language as tl

LEAST_ROWS = 8 if tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 5) else 16  # of tl.dot


@triton.jit
def joined(a, b, c, d):
    """Four tensors as one with two more axes: they change layout together."""
    return tl.join(tl.join(a, b), tl.join(c, d))


@triton.jit
def parted(x):
    """The inverse of `joined`."""
    ab, cd = tl.split(x)
    a, b = tl.split(ab)
    c, d = tl.split(cd)
    return a, b, c, d


@triton.jit
def read(ptr, offsets, inside, stride):
    """Four tensors, `stride` apart."""
    a = tl.load(ptr + offsets, mask=inside, other=0.0)
    b = tl.load(ptr + stride + offsets, mask=inside, other=0.0)
    c = tl.load(ptr + 2 * stride + offsets, mask=inside, other=0.0)
    d = tl.load(ptr + 3 * stride + offsets, mask=inside, other=0.0)
    return a, b, c, d


@triton.jit
def turned(x):
    """[W, 16, BT] as [BT, 16, W], and back."""
    return tl.permute(x, (2, 1, 0))


@triton.jit
def write(ptr, offsets, inside, x):
    tl.store(ptr + offsets, x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    if PRECISION == "interpreted":  # the interpreter would multiply the bits of bfloat16
        x = tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        x = tl.dot(a, b, input_precision=PRECISION)
    return x


@triton.jit
def in_registers(r, W: tl.constexpr, PRECISION: tl.constexpr):
    """Weights [W, 16, P] where the products read them: the identity times them, which is exact in half precision."""
    if r.dtype != tl.float32:
        i = tl.arange(0, 16)
        identity = tl.where((i[:, None] == i[None, :])[None, :, :], 1.0, 0.0)
        r = product(tl.broadcast_to(identity, (W, 16, 16)).to(r.dtype), r, PRECISION).to(r.dtype)
    return r


@triton.jit
def log_sigmoid(x):
    e = tl.exp(-tl.abs(x))
    # log(1 + e), where 1 + e would round away what decides how long a memory lasts.
    log = tl.where(e < 0.01, e * (1.0 - e * (0.5 - e * (1.0 / 3.0))), tl.log(1.0 + e))
    return tl.minimum(x, 0.0) - log


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))


@triton.jit
def kept_and_written(i, lf, n, m):
    """The weights of the state before and of the step, and the stabiliser after it."""
    empty = n == 0.0
    lead = lf + m - i
    least = tl.exp(-tl.abs(lead))  # one of the two weights is 1
    keep = tl.where(empty, 0.0, tl.where(lead >= 0.0, 1.0, least))
    new = tl.where(empty | (lead < 0.0), 1.0, least)
    return keep, new, tl.where(empty, i, tl.maximum(lf + m, i))


@triton.jit
def at_step(inside, t, T):
    """`inside`, if there is a step t; as a tensor, though t and T may be plain numbers in the interpreter."""
    step = tl.zeros((1, 1, 1), tl.int32) + t
    return inside & (step >= 0) & (step < T)


@triton.jit
def flags_at(ptr, b, t, T, B):
    """The flag of step t for all batch rows [BT, 1, 1]."""
    return tl.load(ptr + b * T + t, mask=at_step(b < B, t, T), other=0) != 0


@triton.jit
def states_at(ptr, offsets, inside, stride):
    """c, n and m, `stride` apart."""
    c = tl.load(ptr + offsets, mask=inside, other=0.0)
    n = tl.load(ptr + stride + offsets, mask=inside, other=0.0)
    return c, n, tl.load(ptr + 2 * stride + offsets, mask=inside, other=0.0)


@triton.jit
def for_all_warps(x, W: tl.constexpr, K: tl.constexpr, BT: tl.constexpr):
    """[BT, 16, W] or [BT, K, 1] as the second factor of products, [W, K, BT]."""
    return tl.broadcast_to(tl.reshape(turned(x), (1, K, BT)), (W, K, BT))


@triton.jit(do_not_specialize=["T", "B", "H"])
def forward_kernel(
    x_ptr, r_ptr, mask_ptr, reset_ptr, initial_ptr, h_ptr, final_ptr, kept_ptr, scratch_ptr,
    T, B, H, cap, D: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """h [B, T, H, D] of all steps, the final state [4, B, H, D], and c, n, m [3, B, T + 1, H, D] before all steps."""
    P: tl.constexpr = W * 16
    head, first = tl.program_id(0), tl.program_id(1) * BT
    heads = H * D
    dtype: tl.constexpr = x_ptr.dtype.element_ty

    # The weights' rows are what is computed (the last axis of r), their columns what is read.
    row = tl.arange(0, W)[:, None, None] * 16 + tl.arange(0, 16)[None, :, None]
    r_ptr += head * D * D
    if RESIDENT:
        column = tl.arange(0, P)[None, None, :]
        r_i, r_f, r_z, r_o = read(r_ptr, column * D + row, (row < D) & (column < D), heads * D)
        r_i, r_f = in_registers(r_i.to(dtype), W, PRECISION), in_registers(r_f.to(dtype), W, PRECISION)
        r_z, r_o = in_registers(r_z.to(dtype), W, PRECISION), in_registers(r_o.to(dtype), W, PRECISION)

    d = tl.arange(0, W)[None, None, :] * 16 + tl.arange(0, 16)[None, :, None]
    b = tl.arange(0, BT)[:, None, None]
    inside = (d < D) & (first + b < B)
    batch = first + b
    start = first.to(tl.int64) * T * heads
    in_state = b * heads + d
    state_at = first.to(tl.int64) * heads + head * D
    size = B.to(tl.int64) * heads
    c, n, m, h = read(initial_ptr + state_at, in_state, inside, size)

    x_ptr += 4 * start + head * D
    in_x = b * (T * 4 * heads) + d
    h_ptr += start + head * D
    in_h = b * (T * heads) + d
    if kept_ptr is not None:
        kept_ptr += first.to(tl.int64) * (T + 1) * heads + head * D
        in_kept = b * ((T + 1) * heads) + d
        every = size * (T + 1)
        write(kept_ptr, in_kept, inside, c)
        write(kept_ptr + every, in_kept, inside, n)
        write(kept_ptr + 2 * every, in_kept, inside, m)

    x_i, x_f, x_z, x_o = read(x_ptr, in_x, inside, heads)
    x = joined(x_i, x_f, x_z, x_o)
    present = batch < B
    fresh = batch < 0
    if mask_ptr is not None:
        present = flags_at(mask_ptr, batch, 0, T, B)
    if reset_ptr is not None:
        fresh = flags_at(reset_ptr, batch, 0, T, B)
    for t in range(T):
        if reset_ptr is not None:
            c, n = tl.where(fresh, 0.0, c), tl.where(fresh, 0.0, n)
            m, h = tl.where(fresh, 0.0, m), tl.where(fresh, 0.0, h)
        if RESIDENT:
            read_h = for_all_warps(h.to(dtype), W, P, BT)
            g = joined(
                product(r_i, read_h, PRECISION), product(r_f, read_h, PRECISION),
                product(r_z, read_h, PRECISION), product(r_o, read_h, PRECISION),
            )  # fmt: skip
        else:
            tl.debug_barrier()  # all of h is in scratch
            g_i = tl.zeros((W, 16, BT), tl.float32)
            g_f, g_z, g_o = g_i, g_i, g_i
            reads = scratch_ptr + (t % 2) * size + state_at
            for k0 in range(0, D, BK):
                column = k0 + tl.arange(0, BK)[None, None, :]
                k = k0 + tl.arange(0, BK)[None, :, None]
                seen = (k < D) & (batch < B)
                if reset_ptr is not None:
                    seen = seen & (fresh == 0)
                read_h = tl.load(reads + b * heads + k, mask=seen, other=0.0)
                read_h = for_all_warps(read_h, W, BK, BT)
                at = r_ptr + column * D + row
                fits = (row < D) & (column < D)
                r_i = tl.load(at, mask=fits, other=0.0).to(dtype)
                r_f = tl.load(at + heads * D, mask=fits, other=0.0).to(dtype)
                r_z = tl.load(at + 2 * heads * D, mask=fits, other=0.0).to(dtype)
                r_o = tl.load(at + 3 * heads * D, mask=fits, other=0.0).to(dtype)
                g_i += product(r_i, read_h, PRECISION)
                g_f += product(r_f, read_h, PRECISION)
                g_z += product(r_z, read_h, PRECISION)
                g_o += product(r_o, read_h, PRECISION)
            g = joined(g_i, g_f, g_z, g_o)
        # For the next step.
        x_ptr += 4 * heads
        x_i, x_f, x_z, x_o = read(x_ptr, in_x, at_step(inside, t + 1, T), heads)
        i, f, z, o = parted(tl.permute(g, (2, 1, 0, 3, 4)) + x)
        x = joined(x_i, x_f, x_z, x_o)
        keep, new, m_new = kept_and_written(i, log_sigmoid(tl.minimum(f, cap)), n, m)
        c_new, n_new = keep * c + new * tanh(z), keep * n + new
        h_new = c_new / (n_new * (1.0 + tl.exp(-o)))
        if mask_ptr is not None:
            c, n = tl.where(present, c_new, c), tl.where(present, n_new, n)
            m, h = tl.where(present, m_new, m), tl.where(present, h_new, h)
            present = flags_at(mask_ptr, batch, t + 1, T, B)
        else:
            c, n, m, h = c_new, n_new, m_new, h_new
        if reset_ptr is not None:
            fresh = flags_at(reset_ptr, batch, t + 1, T, B)
        if not RESIDENT:
            write(scratch_ptr + ((t + 1) % 2) * size + state_at, in_state, inside, h)
        write(h_ptr, in_h, inside, h)
        h_ptr += heads
        if kept_ptr is not None:
            kept_ptr += heads
            write(kept_ptr, in_kept, inside, c)
            write(kept_ptr + every, in_kept, inside, n)
            write(kept_ptr + 2 * every, in_kept, inside, m)
    final_ptr += state_at
    write(final_ptr, in_state, inside, c)
    write(final_ptr + size, in_state, inside, n)
    write(final_ptr + 2 * size, in_state, inside, m)
    write(final_ptr + 3 * size, in_state, inside, h)


@triton.jit
def through_gates(
    di, df, dz, do, r_i, r_f, r_z, r_o, r_ptr, scratch_ptr, scratch_at, in_state, inside, here, heads, size,
    D: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What the gates' gradients [BT, 16, W] send to the output before them, [W, 16, BT]."""
    if RESIDENT:
        through_i = product(r_i, for_all_warps(di, W, W * 16, BT), PRECISION)
        through_f = product(r_f, for_all_warps(df, W, W * 16, BT), PRECISION)
        through_z = product(r_z, for_all_warps(dz, W, W * 16, BT), PRECISION)
        through_o = product(r_o, for_all_warps(do, W, W * 16, BT), PRECISION)
        through = (through_i + through_f) + (through_z + through_o)
    else:
        scratch_ptr += scratch_at
        write(scratch_ptr, in_state, inside, di)
        write(scratch_ptr + size, in_state, inside, df)
        write(scratch_ptr + 2 * size, in_state, inside, dz)
        write(scratch_ptr + 3 * size, in_state, inside, do)
        tl.debug_barrier()  # all of them are in scratch
        through = tl.zeros((W, 16, BT), tl.float32)
        b = tl.arange(0, BT)[:, None, None]
        row = tl.arange(0, W)[:, None, None] * 16 + tl.arange(0, 16)[None, :, None]
        for k0 in range(0, D, BK):
            column = k0 + tl.arange(0, BK)[None, None, :]
            k = k0 + tl.arange(0, BK)[None, :, None]
            for gate in tl.static_range(4):
                dg = tl.load(scratch_ptr + gate * size + b * heads + k, mask=(k < D) & here, other=0.0)
                at = gate * (heads * D) + row * D + column
                r = tl.load(r_ptr + at, mask=(row < D) & (column < D), other=0.0).to(dg.dtype)
                through += product(r, for_all_warps(dg, W, BK, BT), PRECISION)
    return through


@triton.jit(do_not_specialize=["T", "B", "H"])
def backward_kernel(
    gates_ptr, r_ptr, mask_ptr, reset_ptr, kept_ptr, grad_h_ptr, grad_final_ptr, grad_x_ptr, grad_initial_ptr,
    scratch_ptr, T, B, H, cap, D: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of x, [B, T, 4, H, D], and of the initial state, [4, B, H, D], from the gates [B, T, 4, H, D]."""
    P: tl.constexpr = W * 16
    head, first = tl.program_id(0), tl.program_id(1) * BT
    heads = H * D
    dtype: tl.constexpr = grad_x_ptr.dtype.element_ty

    row = tl.arange(0, W)[:, None, None] * 16 + tl.arange(0, 16)[None, :, None]
    r_ptr += head * D * D
    if RESIDENT:
        column = tl.arange(0, P)[None, None, :]
        r_i, r_f, r_z, r_o = read(r_ptr, row * D + column, (row < D) & (column < D), heads * D)
        r_i, r_f = in_registers(r_i.to(dtype), W, PRECISION), in_registers(r_f.to(dtype), W, PRECISION)
        r_z, r_o = in_registers(r_z.to(dtype), W, PRECISION), in_registers(r_o.to(dtype), W, PRECISION)
    else:
        r_i, r_f, r_z, r_o = None, None, None, None

    d = tl.arange(0, W)[None, None, :] * 16 + tl.arange(0, 16)[None, :, None]
    b = tl.arange(0, BT)[:, None, None]
    inside = (d < D) & (first + b < B)
    batch = first + b
    in_state = b * heads + d
    state_at = first.to(tl.int64) * heads + head * D
    size = B.to(tl.int64) * heads
    dc, dn, dm, dh = read(grad_final_ptr + state_at, in_state, inside, size)

    step = 4 * (first.to(tl.int64) * T + T - 1) * heads + head * D
    gates_ptr += step
    grad_x_ptr += step
    in_x = b * (T * 4 * heads) + d
    grad_h_ptr += (first.to(tl.int64) * T + T - 1) * heads + head * D
    in_h = b * (T * heads) + d
    kept_ptr += (first.to(tl.int64) * (T + 1) + T) * heads + head * D
    in_kept = b * ((T + 1) * heads) + d
    every = size * (T + 1)

    c_new, n_new, _ = states_at(kept_ptr, in_kept, inside, every)
    next_i, next_f, next_z, next_o = read(gates_ptr, in_x, inside, heads)
    kept_ptr -= heads
    next_c, next_n, next_m = states_at(kept_ptr, in_kept, inside, every)
    next_dh = tl.load(grad_h_ptr + in_h, mask=inside, other=0.0)
    present = batch < B
    fresh = batch < 0
    if mask_ptr is not None:
        present = flags_at(mask_ptr, batch, T - 1, T, B)
    if reset_ptr is not None:
        fresh = flags_at(reset_ptr, batch, T - 1, T, B)
    fresh_after = batch < 0
    di, df = tl.zeros((BT, 16, W), dtype), tl.zeros((BT, 16, W), dtype)
    dz, do = tl.zeros((BT, 16, W), dtype), tl.zeros((BT, 16, W), dtype)
    for back in range(T):
        t = T - 1 - back
        # Through the gates of the step after; rounded, they are carried over from there.
        through = through_gates(
            di, df, dz, do, r_i, r_f, r_z, r_o, r_ptr, scratch_ptr, (t % 2) * (4 * size) + state_at, in_state,
            inside, batch < B, heads, size, D, W, BT, BK, RESIDENT, PRECISION,
        )  # fmt: skip
        i, f, z, o = next_i, next_f, next_z, next_o
        c, n, m, dh_out = next_c, next_n, next_m, next_dh
        # For the next step.
        gates_ptr -= 4 * heads
        grad_h_ptr -= heads
        kept_ptr -= heads
        next_i, next_f, next_z, next_o = read(gates_ptr, in_x, at_step(inside, t - 1, T), heads)
        next_c, next_n, next_m = states_at(kept_ptr, in_kept, at_step(inside, t - 1, T), every)
        next_dh = tl.load(grad_h_ptr + in_h, mask=at_step(inside, t - 1, T), other=0.0)

        c_old, n_old = c, n
        if reset_ptr is not None:
            c, n, m = tl.where(fresh, 0.0, c), tl.where(fresh, 0.0, n), tl.where(fresh, 0.0, m)
        lf = log_sigmoid(tl.minimum(f, cap))
        keep, new, _ = kept_and_written(i, lf, n, m)
        tanh_z, sigmoid_o = tanh(z), sigmoid(o)
        per_n = 1.0 / tl.where(n_new == 0.0, 1.0, n_new)  # 0 where nothing came yet, and beyond the width
        h_new = sigmoid_o * c_new * per_n

        dh += turned(through)
        if reset_ptr is not None:
            dh = tl.where(fresh_after, 0.0, dh)
            fresh_after = fresh
        dh_all = dh + dh_out
        do = dh_all * h_new * (1.0 - sigmoid_o)
        dc_all = dc + dh_all * sigmoid_o * per_n
        dn_all = dn - dh_all * h_new * per_n
        dz = dc_all * new * (1.0 - tanh_z * tanh_z)
        d_keep, d_new = (dc_all * c + dn_all * n) * keep, (dc_all * tanh_z + dn_all) * new
        dm_all = dm - d_keep - d_new
        # The stabiliser is the larger of lf + m and i (half each where equal, as torch.maximum has it).
        lead = lf + m - i
        to_keep = tl.where(n == 0.0, 0.0, tl.where(lead > 0.0, 1.0, tl.where(lead == 0.0, 0.5, 0.0)))
        d_keep += dm_all * to_keep
        di = d_new + dm_all * (1.0 - to_keep)
        df = tl.where(f <= cap, d_keep * sigmoid(-f), 0.0)
        if mask_ptr is not None:
            di, df = tl.where(present, di, 0.0), tl.where(present, df, 0.0)
            dz, do = tl.where(present, dz, 0.0), tl.where(present, do, 0.0)
            dc, dn = tl.where(present, dc_all * keep, dc), tl.where(present, dn_all * keep, dn)
            dm, dh = tl.where(present, d_keep, dm), tl.where(present, 0.0, dh)
            present = flags_at(mask_ptr, batch, t - 1, T, B)
        else:
            dc, dn, dm, dh = dc_all * keep, dn_all * keep, d_keep, tl.zeros_like(dh)
        c_new, n_new = c_old, n_old

        di, df, dz, do = di.to(dtype), df.to(dtype), dz.to(dtype), do.to(dtype)
        write(grad_x_ptr, in_x, inside, di)
        write(grad_x_ptr + heads, in_x, inside, df)
        write(grad_x_ptr + 2 * heads, in_x, inside, dz)
        write(grad_x_ptr + 3 * heads, in_x, inside, do)
        grad_x_ptr -= 4 * heads
        if reset_ptr is not None:
            dc, dn, dm = tl.where(fresh, 0.0, dc), tl.where(fresh, 0.0, dn), tl.where(fresh, 0.0, dm)
            fresh = flags_at(reset_ptr, batch, t - 1, T, B)
    through = through_gates(
        di, df, dz, do, r_i, r_f, r_z, r_o, r_ptr, scratch_ptr, 4 * size + state_at, in_state,
        inside, batch < B, heads, size, D, W, BT, BK, RESIDENT, PRECISION,
    )  # fmt: skip
    dh += turned(through)
    if reset_ptr is not None:
        dh = tl.where(fresh_after, 0.0, dh)
    grad_initial_ptr += state_at
    write(grad_initial_ptr, in_state, inside, dc)
    write(grad_initial_ptr + size, in_state, inside, dn)
    write(grad_initial_ptr + 2 * size, in_state, inside, dm)
    write(grad_initial_ptr + 3 * size, in_state, inside, dh)


@triton.jit
def h_before(h_ptr, h0_ptr, reset_ptr, row, k, inside, T, H, head, D: tl.constexpr):
    """The output before steps `row` = b T + t, columns k of a head; 0 where the memory is emptied there."""
    b, t = row // T, row % T
    if reset_ptr is not None:
        inside = inside & (tl.load(reset_ptr + row, mask=inside, other=1) == 0)
    column = head * D + k
    before = tl.load(h_ptr + (row - 1).to(tl.int64) * (H * D) + column, mask=inside & (t > 0), other=0.0)
    return before + tl.load(h0_ptr + b * (H * D) + column, mask=inside & (t == 0), other=0.0).to(before.dtype)


@triton.jit(do_not_specialize=["rows", "T", "H"])
def gates_kernel(
    x_ptr, r_ptr, h_ptr, h0_ptr, reset_ptr, gates_ptr, rows, T, H,
    D: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gates [B, T, 4, H, D] in float32, of all steps at once, from the outputs before them."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)[:, None]
    gate, head = tl.program_id(1) // H, tl.program_id(1) % H
    e = tl.program_id(2) * BN + tl.arange(0, BN)[None, :]
    here = row < rows
    g = tl.zeros((BR, BN), tl.float32)
    for k0 in range(0, D, BK):
        k = k0 + tl.arange(0, BK)
        h = h_before(h_ptr, h0_ptr, reset_ptr, row, k[None, :], here & (k[None, :] < D), T, H, head, D)
        r = tl.load(
            r_ptr + tl.program_id(1) * D * D + k[:, None] * D + e, mask=(k[:, None] < D) & (e < D), other=0.0
        ).to(h.dtype)
        g += product(h, r, PRECISION)
    at = (row.to(tl.int64) * 4 + gate) * (H * D) + head * D + e
    inside = here & (e < D)
    tl.store(gates_ptr + at, g + tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["rows", "part_rows", "T", "H"])
def weights_kernel(
    h_ptr, h0_ptr, reset_ptr, grad_x_ptr, grad_r_ptr, rows, part_rows, T, H,
    D: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of r [4, H, D, D] from `part_rows` steps, for each part of all steps."""
    gate, head = tl.program_id(1) // H, tl.program_id(1) % H
    tiles: tl.constexpr = (D + BN - 1) // BN
    k = (tl.program_id(2) // tiles) * BK + tl.arange(0, BK)[None, :]
    e = (tl.program_id(2) % tiles) * BN + tl.arange(0, BN)[None, :]
    begin = tl.program_id(0) * part_rows
    grad = tl.zeros((BK, BN), tl.float32)
    for r0 in range(begin, tl.minimum(begin + part_rows, rows), BR):
        row = r0 + tl.arange(0, BR)[:, None]
        here = row < tl.minimum(begin + part_rows, rows)
        h = h_before(h_ptr, h0_ptr, reset_ptr, row, k, here & (k < D), T, H, head, D)
        dg = tl.load(
            grad_x_ptr + (row.to(tl.int64) * 4 + gate) * (H * D) + head * D + e, mask=here & (e < D), other=0.0
        )
        grad += product(tl.trans(h), dg, PRECISION)
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    k_ = tl.trans(k)
    tl.store(grad_r_ptr + part.to(tl.int64) * (D * D) + k_ * D + e, grad, mask=(k_ < D) & (e < D))
