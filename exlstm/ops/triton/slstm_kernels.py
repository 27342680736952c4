"""Device code of the sLSTM: a walk over time, of one head and a few batch rows, and what the walk back needs as well.

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

from exlstm.ops.triton.common_kernels import product

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
