"""Device code of the norm of every head with its skip and output gate, forward and backward.

A tile is BR rows, which are steps of any sequence, of all D columns of one head, BD of them with the padding. All is
computed in float32 and rounded where it is stored. The heads of a row are neighbours in the grid as in memory.
"""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import sigmoid


@triton.jit
def normed(h_ptr, at, inside, here, eps, D: tl.constexpr):
    """A tile less its rows' means, over their deviations, and one over these [BR, 1]; 0 and 1 where no row is."""
    h = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, h - tl.sum(h, 1, keep_dims=True) / D, 0.0)
    variance = tl.sum(centred * centred, 1, keep_dims=True) / D
    inverse = tl.rsqrt(tl.where(here, variance + eps, 1.0))
    return centred * inverse, inverse


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    h_ptr, gate_ptr, weight_ptr, skip_ptr, c_ptr, out_ptr, rows, H, gate_row, c_row, eps,
    D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """out [rows, H D] from h [rows, H, D], weights [H D], gate and c [rows, H D]; skip_ptr and c_ptr None: no skip.

    From one row to the next are gate_row entries of the gate and c_row of c.
    """
    block, head = tl.program_id(0) // H, tl.program_id(0) % H
    column = tl.arange(0, BD)[None, :]
    in_head = column < D
    channel = head * D + column
    row = block * BR + tl.arange(0, BR)[:, None]
    here = row < rows
    inside = here & in_head
    row = row.to(tl.int64)
    at = row * (H * D) + channel
    x, _ = normed(h_ptr, at, inside, here, eps, D)
    y = x * tl.load(weight_ptr + channel, mask=in_head, other=0.0).to(tl.float32)
    if c_ptr is not None:
        skip = tl.load(skip_ptr + channel, mask=in_head, other=0.0).to(tl.float32)
        y += skip * tl.load(c_ptr + row * c_row + channel, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(gate_ptr + row * gate_row + channel, mask=inside, other=0.0).to(tl.float32)
    o = sigmoid(z)
    if not SIGMOID:
        o *= z
    tl.store(out_ptr + at, (y * o).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "blocks"])
def backward_kernel(
    h_ptr, gate_ptr, weight_ptr, skip_ptr, c_ptr, dout_ptr, dh_ptr, dgate_ptr, dweight_ptr, dskip_ptr, dc_ptr,
    rows, blocks, H, gate_row, c_row, eps, D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """dh, dgate and dc [rows, H D], and those of the weights, [parts, H D], from each part of `blocks` tiles."""
    part, head = tl.program_id(0) // H, tl.program_id(0) % H
    column = tl.arange(0, BD)[None, :]
    in_head = column < D
    channel = head * D + column
    weight = tl.load(weight_ptr + channel, mask=in_head, other=0.0).to(tl.float32)
    dweight = tl.zeros((BR, BD), tl.float32)
    if c_ptr is not None:
        skip = tl.load(skip_ptr + channel, mask=in_head, other=0.0).to(tl.float32)
        dskip = tl.zeros((BR, BD), tl.float32)
    for block in range(part * blocks, part * blocks + blocks):
        row = block * BR + tl.arange(0, BR)[:, None]
        here = row < rows
        inside = here & in_head
        row = row.to(tl.int64)
        at = row * (H * D) + channel
        x, inverse = normed(h_ptr, at, inside, here, eps, D)
        z = tl.load(gate_ptr + row * gate_row + channel, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(dout_ptr + at, mask=inside, other=0.0).to(tl.float32)
        o = sigmoid(z)
        slope = o * (1.0 - o)
        if SIGMOID:
            dy = d * o
        else:
            dy = d * (z * o)
            slope = o + z * slope
        y = x * weight
        if c_ptr is not None:
            c = tl.load(c_ptr + row * c_row + channel, mask=inside, other=0.0).to(tl.float32)
            y += skip * c
            dskip += dy * c
            tl.store(dc_ptr + at, (dy * skip).to(dc_ptr.dtype.element_ty), mask=inside)
        tl.store(dgate_ptr + at, (d * y * slope).to(dgate_ptr.dtype.element_ty), mask=inside)
        dweight += dy * x
        dx = dy * weight
        mean, along = tl.sum(dx, 1, keep_dims=True) / D, tl.sum(dx * x, 1, keep_dims=True) / D
        tl.store(dh_ptr + at, ((dx - mean - x * along) * inverse).to(dh_ptr.dtype.element_ty), mask=inside)
    sums = part * (H * D) + channel
    tl.store(dweight_ptr + sums, tl.sum(dweight, 0, keep_dims=True), mask=in_head)
    if c_ptr is not None:
        tl.store(dskip_ptr + sums, tl.sum(dskip, 0, keep_dims=True), mask=in_head)
