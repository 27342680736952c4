"""Device code that kernels of several operators share."""

import triton
import triton.language as tl

EPS = tl.constexpr(1e-6)  # exlstm.ops.mlstm.EPS
LARGEST_FLOOR = tl.constexpr(80.0)  # exlstm.ops.mlstm.largest_floor


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def log_sigmoid(x):
    e = tl.exp(-tl.abs(x))
    one_more = 1.0 + e
    lost = tl.where(one_more == 1.0, 1.0, one_more - 1.0)  # log(1 + e) to the last bit, e small or not
    return tl.minimum(x, 0.0) - tl.where(one_more == 1.0, e, tl.log(one_more) * (e / lost))


@triton.jit
def denominator(d, m):
    """What a read is divided by: max(|d|, exp(-m)) + eps."""
    return tl.maximum(tl.abs(d), tl.exp(tl.minimum(-m, LARGEST_FLOOR))) + EPS


@triton.jit
def through_denominator(h, dh, d, m):
    """Of steps with outputs h and their gradients dh [steps, columns]: 1 / denominator, and the gradient of d."""
    floor = tl.exp(tl.minimum(-m, LARGEST_FLOOR))
    r = 1.0 / denominator(d, m)
    sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    to_d = tl.where(tl.abs(d) > floor, 1.0, tl.where(tl.abs(d) == floor, 0.5, 0.0))  # as torch.maximum has it
    return r, -tl.sum(h * dh, 1) * r * to_d * sign


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a b, in float32."""
    if PRECISION == "interpreted":  # the interpreter would multiply the bits of bfloat16
        x = tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        x = tl.dot(a, b, input_precision=PRECISION)
    return x
