"""Device code of the sLSTM, backward; how the walk works, and its layouts, are those of `slstm_kernels`."""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import product, sigmoid
from exlstm.ops.triton.slstm_kernels import (
    at_step,
    flags_at,
    for_all_warps,
    in_registers,
    kept_and_written,
    log_sigmoid,
    read,
    states_at,
    tanh,
    turned,
    write,
)


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
