"""Device code of what an mLSTM layer computes before its memory: convolution, and projections in blocks of channels.

A program has BT steps of BN channels in hand. Blocks of P channels that are mapped by themselves are one matrix
[BN, BN] with nothing but them on its diagonal: tensor cores multiply the zeros along faster than channels could be
exchanged. With pre_t = bias + sum_j w_j x_{t - TAPS + 1 + j} and c = silu(pre), the gradients are

    dpre = (dc + dq Wq^T + dk Wk^T) silu'(pre),      dx_t = dv_t Wv^T + sum_j w_j dpre_{t + TAPS - 1 - j}

where a step does not see inputs farther back than its `reach`.
"""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import product, sigmoid


@triton.jit
def rows_of(ptr, b, t, T, N, n):
    """Pointers [t, n] into a sequence [B, T, N]."""
    return ptr + (b * T + t).to(tl.int64)[:, None] * N + n[None, :]


@triton.jit
def inputs_at(x_ptr, past_ptr, b, t, T, N, n, TAPS: tl.constexpr):
    """x of steps t, which before the first are those of `past` [B, TAPS - 1, N]; 0 outside."""
    in_n = (n < N)[None, :]
    x = tl.load(rows_of(x_ptr, b, t, T, N, n), mask=((t >= 0) & (t < T))[:, None] & in_n, other=0.0).to(tl.float32)
    if TAPS > 1:
        before = t + TAPS - 1
        at = rows_of(past_ptr, b, before, TAPS - 1, N, n)
        x += tl.load(at, mask=((before >= 0) & (t < 0))[:, None] & in_n, other=0.0).to(tl.float32)
    return x


@triton.jit
def sees(reach_ptr, b, t, T, back):
    """Whether steps t see the input `back` steps before them."""
    seen = t < T
    if reach_ptr is not None:
        seen = seen & (tl.load(reach_ptr + b * T + t, mask=seen, other=0) >= back)
    return seen


@triton.jit
def tap_of(conv_ptr, N, n, j, TAPS: tl.constexpr):
    """w_j of channels n, of filters [N, TAPS]."""
    return tl.load(conv_ptr + n * TAPS + j, mask=n < N, other=0.0).to(tl.float32)


@triton.jit
def convolved(x_ptr, past_ptr, conv_ptr, bias_ptr, reach_ptr, b, t, T, N, n, TAPS: tl.constexpr):
    """pre of steps t."""
    pre = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(TAPS):
        back = TAPS - 1 - j
        x = inputs_at(x_ptr, past_ptr, b, t - back, T, N, n, TAPS)
        pre += tl.where(sees(reach_ptr, b, t, T, back)[:, None], x * tap_of(conv_ptr, N, n, j, TAPS)[None, :], 0.0)
    return pre


@triton.jit
def diagonal(weight_ptr, N, n, P: tl.constexpr):
    """Blocks [N / P, in, out] as a matrix [BN (in), BN (out)] of channels n."""
    same = (n // P)[:, None] == (n // P)[None, :]
    return tl.load(weight_ptr + n[:, None] * P + (n % P)[None, :], mask=same & (n < N)[:, None], other=0.0)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    x_ptr, past_ptr, conv_ptr, bias_ptr, q_weight_ptr, k_weight_ptr, v_weight_ptr, reach_ptr,
    c_ptr, q_ptr, k_ptr, v_ptr, T, N, TAPS: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """c, q, k, v of BT steps of BN channels."""
    t, n = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1) * BN + tl.arange(0, BN)
    b = tl.program_id(2)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    inside = (t < T)[:, None] & (n < N)[None, :]
    pre = convolved(x_ptr, past_ptr, conv_ptr, bias_ptr, reach_ptr, b, t, T, N, n, TAPS)
    c = (pre * sigmoid(pre)).to(dtype)
    tl.store(rows_of(c_ptr, b, t, T, N, n), c, mask=inside)
    q = product(c, diagonal(q_weight_ptr, N, n, P).to(dtype), PRECISION)
    tl.store(rows_of(q_ptr, b, t, T, N, n), q.to(dtype), mask=inside)
    k = product(c, diagonal(k_weight_ptr, N, n, P).to(dtype), PRECISION)
    tl.store(rows_of(k_ptr, b, t, T, N, n), k.to(dtype), mask=inside)
    x = tl.load(rows_of(x_ptr, b, t, T, N, n), mask=inside, other=0.0)
    v = product(x, diagonal(v_weight_ptr, N, n, P).to(dtype), PRECISION)
    tl.store(rows_of(v_ptr, b, t, T, N, n), v.to(dtype), mask=inside)


@triton.jit(do_not_specialize=["T", "PIECE"])
def weights_backward_kernel(
    x_ptr, past_ptr, conv_ptr, bias_ptr, q_weight_ptr, k_weight_ptr, reach_ptr, dc_ptr, dq_ptr, dk_ptr, dv_ptr,
    dpre_ptr, dconv_ptr, dbias_ptr, dweights_ptr, T, N, PIECE, TAPS: tl.constexpr, ROOM: tl.constexpr,
    P: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dpre of PIECE steps of BN channels, and what these steps send to the weights: partial sums, in float32."""
    piece, n, b = tl.program_id(0), tl.program_id(1) * BN + tl.arange(0, BN), tl.program_id(2)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    in_n = n < N
    part = b * tl.num_programs(0) + piece
    q_weight = diagonal(q_weight_ptr, N, n, P).to(dtype)
    k_weight = diagonal(k_weight_ptr, N, n, P).to(dtype)
    dq_weight = tl.zeros((BN, BN), tl.float32)
    dk_weight, dv_weight = dq_weight, dq_weight
    dbias, dconv = tl.zeros((BN,), tl.float32), tl.zeros((ROOM, BN), tl.float32)
    tap = tl.arange(0, ROOM)[:, None]
    for t0 in range(piece * PIECE, tl.minimum(T, piece * PIECE + PIECE), BT):
        t = t0 + tl.arange(0, BT)
        inside = (t < T)[:, None] & in_n[None, :]
        pre = convolved(x_ptr, past_ptr, conv_ptr, bias_ptr, reach_ptr, b, t, T, N, n, TAPS)
        share = sigmoid(pre)
        c, x = (pre * share).to(dtype), tl.load(rows_of(x_ptr, b, t, T, N, n), mask=inside, other=0.0)
        dq = tl.load(rows_of(dq_ptr, b, t, T, N, n), mask=inside, other=0.0)
        dk = tl.load(rows_of(dk_ptr, b, t, T, N, n), mask=inside, other=0.0)
        dv = tl.load(rows_of(dv_ptr, b, t, T, N, n), mask=inside, other=0.0)
        dq_weight += product(tl.trans(c), dq, PRECISION)
        dk_weight += product(tl.trans(c), dk, PRECISION)
        dv_weight += product(tl.trans(x), dv, PRECISION)
        dc = tl.load(rows_of(dc_ptr, b, t, T, N, n), mask=inside, other=0.0).to(tl.float32)
        dc += product(dq, tl.trans(q_weight), PRECISION) + product(dk, tl.trans(k_weight), PRECISION)
        dpre = tl.where(inside, dc * share * (1.0 + pre * (1.0 - share)), 0.0)
        tl.store(rows_of(dpre_ptr, b, t, T, N, n), dpre.to(dtype), mask=inside)
        dbias += tl.sum(dpre, 0)
        for j in tl.static_range(TAPS):
            back = TAPS - 1 - j
            before = inputs_at(x_ptr, past_ptr, b, t - back, T, N, n, TAPS)
            of_tap = tl.sum(tl.where(sees(reach_ptr, b, t, T, back)[:, None], before * dpre, 0.0), 0)
            dconv += tl.where(tap == j, of_tap[None, :], 0.0)
    tl.store(dconv_ptr + (part * TAPS + tap) * N + n[None, :], dconv, mask=(tap < TAPS) & in_n[None, :])
    tl.store(dbias_ptr + part * N + n, dbias, mask=in_n)
    own = ((n // P)[:, None] == (n // P)[None, :]) & in_n[:, None]
    at = dweights_ptr + part.to(tl.int64) * 3 * N * P + n[:, None] * P + (n % P)[None, :]
    tl.store(at, dq_weight, mask=own)
    tl.store(at + N * P, dk_weight, mask=own)
    tl.store(at + 2 * N * P, dv_weight, mask=own)


@triton.jit(do_not_specialize=["T"])
def inputs_backward_kernel(
    conv_ptr, v_weight_ptr, reach_ptr, dv_ptr, dpre_ptr, dx_ptr, dpast_ptr, T, N, TAPS: tl.constexpr, P: tl.constexpr,
    BT: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx of BT steps of BN channels; the first TAPS - 1 of all steps are those of `past`."""
    t = tl.program_id(0) * BT + tl.arange(0, BT) - (TAPS - 1)
    n, b = tl.program_id(1) * BN + tl.arange(0, BN), tl.program_id(2)
    dtype: tl.constexpr = dv_ptr.dtype.element_ty
    in_n = (n < N)[None, :]
    inside = ((t >= 0) & (t < T))[:, None] & in_n
    dv = tl.load(rows_of(dv_ptr, b, t, T, N, n), mask=inside, other=0.0)
    dx = product(dv, tl.trans(diagonal(v_weight_ptr, N, n, P).to(dtype)), PRECISION)
    for j in tl.static_range(TAPS):
        back = TAPS - 1 - j
        reader = t + back
        reads = (reader >= 0) & sees(reach_ptr, b, tl.maximum(reader, 0), T, back)
        at = rows_of(dpre_ptr, b, reader, T, N, n)
        dpre = tl.load(at, mask=reads[:, None] & in_n, other=0.0).to(tl.float32)
        dx += dpre * tap_of(conv_ptr, N, n, j, TAPS)[None, :]
    tl.store(rows_of(dx_ptr, b, t, T, N, n), dx.to(dtype), mask=inside)
    if TAPS > 1:
        at = rows_of(dpast_ptr, b, t + TAPS - 1, TAPS - 1, N, n)
        tl.store(at, dx.to(dpast_ptr.dtype.element_ty), mask=(t < 0)[:, None] & in_n)
