"""Device code of a step program: vectors, thin products, and cells that are updated where they lie.

A `vector` is what all elementwise instructions come to when they are put together, computed in float32:

    y = cap(norm(x) weight + factor other) activation(gate)

Each part may be missing: its pointer is then None.
"""

import triton
import triton.language as tl

from exlstm.ops.triton.common_kernels import log_sigmoid


@triton.jit
def tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def activated(x, KIND: tl.constexpr):
    if KIND == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        y = 1.0 / (1.0 + tl.exp(-x))
        if KIND == "silu":
            y *= x
    return y


@triton.jit
def capped(x, cap):
    if cap is not None:
        x = cap * tanh(x / cap)
    return x


@triton.jit
def numbers(ptr, at, inside):
    """What lies there, in float32; 0 outside."""
    return tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def vector(
    x_ptr, weight_ptr, other_ptr, factor_ptr, gate_ptr, at, inside, width, eps, cap,
    NORM: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The elements `at` of a vector: with NORM "layer" or "rms", one whole group of `width` that is normed together."""
    y = tl.where(inside, 1.0, 0.0)
    if x_ptr is not None:
        y = numbers(x_ptr, at, inside)
    if NORM is not None:
        if NORM == "layer":
            y = tl.where(inside, y - tl.sum(y, 0) / width, 0.0)
        y *= 1.0 / tl.sqrt(tl.sum(y * y, 0) / width + eps)
        y *= numbers(weight_ptr, at, inside)
    if other_ptr is not None:
        other = numbers(other_ptr, at, inside)
        if factor_ptr is not None:
            other *= numbers(factor_ptr, at, inside)
        y += other
    y = capped(y, cap)
    if gate_ptr is not None:
        y *= activated(numbers(gate_ptr, at, inside), KIND)
    return y


@triton.jit
def vector_kernel(
    x_ptr, weight_ptr, other_ptr, factor_ptr, gate_ptr, y_ptr, x_row, other_row, gate_row, y_row,
    columns, eps, cap, WIDTH: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """One group of WIDTH elements of one row of a vector."""
    group, b = tl.program_id(0), tl.program_id(1)
    offset = tl.arange(0, BLOCK)
    at = group * WIDTH + offset
    inside = (offset < WIDTH) & (at < columns)
    if x_ptr is not None:
        x_ptr += b * x_row
    if other_ptr is not None:
        other_ptr += b * other_row
    if gate_ptr is not None:
        gate_ptr += b * gate_row
    y = vector(x_ptr, weight_ptr, other_ptr, factor_ptr, gate_ptr, at, inside, WIDTH, eps, cap, NORM, KIND)
    tl.store(y_ptr + b * y_row + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def mapped(
    x_ptr, weight_ptr, other_ptr, factor_ptr, gate_ptr, matrix_ptr, scale_ptr, bias_ptr, add_ptr, y_ptr,
    tile, outputs, inputs, eps, cap, NORM: tl.constexpr, KIND: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, STAGES: tl.constexpr, y_cap, GLU: tl.constexpr,
):  # fmt: skip
    """ROWS outputs of a matrix [outputs, inputs] and one vector, which every program makes anew: it is short.

    A matrix of int8 has a scale for each of its rows. With GLU the matrix has twice as many rows, and the first half of
    its outputs, activated, multiply the second.
    """
    row = tile * ROWS + tl.arange(0, ROWS)
    here = row < outputs
    offset = tl.arange(0, BLOCK)
    # What a thread loads at once is added up there, so that sums leave registers for more programs at a time.
    AT_ONCE: tl.constexpr = 128 // matrix_ptr.dtype.element_ty.primitive_bitwidth
    sums = tl.zeros((ROWS, BLOCK // AT_ONCE), tl.float32)
    others = sums
    for begin in tl.range(0, inputs, WIDTH, num_stages=STAGES):
        at = begin + offset
        inside = (offset < WIDTH) & (at < inputs)
        both = here[:, None] & inside[None, :]
        entry = matrix_ptr + row.to(tl.int64)[:, None] * inputs + at[None, :]
        matrix = tl.load(entry, mask=both, other=0.0).to(tl.float32)  # first, for it comes from farther than x
        if GLU is not None:
            entry = matrix_ptr + (row.to(tl.int64) + outputs)[:, None] * inputs + at[None, :]
            second = tl.load(entry, mask=both, other=0.0).to(tl.float32)
        x = vector(x_ptr, weight_ptr, other_ptr, factor_ptr, gate_ptr, at, inside, WIDTH, eps, cap, NORM, KIND)
        sums += tl.sum(tl.reshape(matrix * x[None, :], (ROWS, BLOCK // AT_ONCE, AT_ONCE)), 2)
        if GLU is not None:
            others += tl.sum(tl.reshape(second * x[None, :], (ROWS, BLOCK // AT_ONCE, AT_ONCE)), 2)
    y = tl.sum(sums, 1)
    if scale_ptr is not None:
        y *= numbers(scale_ptr, row, here)
    if bias_ptr is not None:
        y += numbers(bias_ptr, row, here)
    if GLU is not None:
        other = tl.sum(others, 1)
        if scale_ptr is not None:
            other *= numbers(scale_ptr + outputs, row, here)
        if bias_ptr is not None:
            other += numbers(bias_ptr + outputs, row, here)
        y = activated(y, GLU) * other
    y = capped(y, y_cap)
    if add_ptr is not None:
        y += numbers(add_ptr, row, here)
    tl.store(y_ptr + row, y.to(y_ptr.dtype.element_ty), mask=here)


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, other_ptr, factor_ptr, gate_ptr, eps, cap,
    matrix_ptr, scale_ptr, bias_ptr, add_ptr, y_ptr, outputs, inputs, stride, y_cap,
    matrix2_ptr, scale2_ptr, bias2_ptr, y2_ptr, outputs2, y2_cap, tiles,
    NORM: tl.constexpr, KIND: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr, GLU: tl.constexpr,
):  # fmt: skip
    """Of one vector, ROWS outputs of one of several matrices: of blocks that map their own part, or of two for all."""
    tile, block = tl.program_id(0), tl.program_id(1)
    if matrix2_ptr is not None:  # noqa: SIM102 (known when compiled, unlike what is tested next)
        if tile >= tiles:
            mapped(
                x_ptr, weight_ptr, other_ptr, factor_ptr, gate_ptr, matrix2_ptr, scale2_ptr, bias2_ptr, None,
                y2_ptr, tile - tiles, outputs2, inputs, eps, cap, NORM, KIND, WIDTH, BLOCK, ROWS, STAGES, y2_cap, None,
            )  # fmt: skip
    if tile < tiles:
        if x_ptr is not None:
            x_ptr += block * inputs
        matrix_ptr += block.to(tl.int64) * outputs * inputs
        y_ptr += block * stride
        if scale_ptr is not None:
            scale_ptr += block * outputs
        if bias_ptr is not None:
            bias_ptr += block * outputs
        if add_ptr is not None:
            add_ptr += block * stride
        mapped(
            x_ptr, weight_ptr, other_ptr, factor_ptr, gate_ptr, matrix_ptr, scale_ptr, bias_ptr, add_ptr, y_ptr,
            tile, outputs, inputs, eps, cap, NORM, KIND, WIDTH, BLOCK, ROWS, STAGES, y_cap, GLU,
        )  # fmt: skip


@triton.jit
def embed_kernel(
    tokens_ptr, table_ptr, given_ptr, y_ptr, present_ptr, batch, numbers, tokens_row, y_row, columns,
    BATCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of the row of a table [numbers, columns] that a token chooses, and whether its row is present.

    If any token is out of range, as each program finds out for itself, all are taken for 0 and no row is present.
    """
    tile, b = tl.program_id(0), tl.program_id(1)
    at, each = tile * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BATCH)
    inside = at < columns
    tokens = tl.load(tokens_ptr + each * tokens_row, mask=each < batch, other=0)
    good = (tl.min(tokens, 0) >= 0) & (tl.max(tokens, 0) < numbers)
    token = tl.where(good, tl.load(tokens_ptr + b * tokens_row), 0)
    y = tl.load(table_ptr + token * columns + at, mask=inside, other=0.0)
    tl.store(y_ptr + b * y_row + at, y, mask=inside)
    if tile == 0:
        tl.store(present_ptr + b, tl.where(good, tl.load(given_ptr + b), 0))


@triton.jit
def headwise_kernel(
    x_ptr, weight_ptr, y_ptr, x_row, y_row, columns, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """BLOCK outputs of one row of small blocks [columns / SIZE, in, out]."""
    at, b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    inside = at < columns
    first, out = at // SIZE * SIZE, at % SIZE
    y = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(SIZE):
        y += numbers(x_ptr + b * x_row, first + j, inside) * numbers(weight_ptr, (first + j) * SIZE + out, inside)
    tl.store(y_ptr + b * y_row + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def conv_kernel(
    x_ptr, weight_ptr, bias_ptr, past_ptr, mask_ptr, y_ptr, past1_ptr, x_row, y_row, columns, TAPS: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Filters [columns, TAPS] of one row, activated or not; past [TAPS - 1, columns], the oldest first, goes on."""
    at, b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    inside = at < columns
    present = tl.load(mask_ptr + b) != 0
    past = b * (TAPS - 1) * columns + at
    x = tl.load(x_ptr + b * x_row + at, mask=inside, other=0.0)
    y = numbers(bias_ptr, at, inside) + numbers(weight_ptr, at * TAPS + TAPS - 1, inside) * x.to(tl.float32)
    for tap in tl.static_range(TAPS - 1):
        before = tl.load(past_ptr + past + tap * columns, mask=inside, other=0.0)
        y += numbers(weight_ptr, at * TAPS + tap, inside) * before.to(tl.float32)
        after = x.to(before.dtype)
        if tap + 2 < TAPS:
            after = tl.load(past_ptr + past + (tap + 1) * columns, mask=inside, other=0.0)
        tl.store(past1_ptr + past + tap * columns, tl.where(present, after, before), mask=inside)
    if KIND is not None:
        y = activated(y, KIND)
    tl.store(y_ptr + b * y_row + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def slstm_kernel(
    gates_ptr, c_ptr, n_ptr, m_ptr, h_ptr, mask_ptr, gates_row, columns, cap, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """sLSTM cells of one row [H, D], from pre-activations [H, 4, D]; equations as in `exlstm.ops.slstm`."""
    at, b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    inside = at < columns
    present = tl.where(tl.load(mask_ptr + b) != 0, inside, False)
    gate = gates_ptr + b * gates_row
    of = at // D * (4 * D) + at % D
    i, f = numbers(gate, of, inside), numbers(gate, of + D, inside)
    z, o = numbers(gate, of + 2 * D, inside), numbers(gate, of + 3 * D, inside)
    if cap is not None:
        f = tl.minimum(f, cap)
    here = b * columns + at
    before = tl.load(n_ptr + here, mask=inside, other=0.0)
    kept = log_sigmoid(f) + tl.load(m_ptr + here, mask=inside, other=0.0)
    m = tl.where(before == 0, i, tl.maximum(kept, i))
    keep = tl.where(before == 0, 0.0, tl.exp(kept - m))
    write = tl.exp(i - m)
    c = keep * tl.load(c_ptr + here, mask=inside, other=0.0) + write * tanh(z)
    n = keep * before + write
    tl.store(c_ptr + here, c, mask=present)
    tl.store(n_ptr + here, n, mask=present)
    tl.store(m_ptr + here, m, mask=present)
    tl.store(h_ptr + here, activated(o, "sigmoid") * c / n, mask=present)
