"""The Triton kernels of the sLSTM compute what the reference computes in float64.

In float32 the bound is 1e-5 of the largest entry: sums of up to 24 products a step, each rounded to 2^-24, and gates
whose exponentials and quotients are rounded a few times more, add up over at most 70 steps to some 100 x 2^-24 = 6e-6.
"""

import math

import pytest
import torch

pytest.importorskip("triton")

from exlstm.ops import SLSTMState
from exlstm.ops.chunkwise import slstm as chunkwise
from exlstm.ops.reference import slstm as reference
from exlstm.ops.triton import slstm as triton_slstm
from exlstm.ops.triton.launch import interpreted, obstacle

DEVICE = "cpu" if interpreted() else "cuda"
if reason := obstacle(torch.device(DEVICE)):
    pytest.skip(reason, allow_module_level=True)

TOLERANCE = 1e-5
pytestmark = [  # of the interpreter, which computes with NumPy
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


def draw(batch=3, time=17, heads=2, width=5, *, state=True, steps=False, gates=1.5, seed=0):
    """x, r, an initial state, masks and resets, in float64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, r = gates * normal(batch, time, 4, heads, width), normal(4, heads, width, width) / width**0.5
    c, n, m, h = normal(4, batch, heads, width)
    n = torch.where(torch.rand(n.shape, generator=generator) < 0.3, 0.0, n.abs() + 1)  # some elements are empty
    initial = [s.where(n != 0, 0.0) * state for s in (c, n, m, h)]
    mask = torch.rand(batch, time, generator=generator) < 0.7 if steps else None
    reset = torch.rand(batch, time, generator=generator) < 0.15 if steps else None
    return x, r, initial, mask, reset


def run(function, case, dtype, device="cpu", *, read=slice(None), cap=math.inf, r_dtype=None):
    """Outputs, final state and the gradients, of a random mixture of those in `read`, of x, r and the initial state."""
    x, r, initial, mask, reset = case
    sources = [x.to(device, dtype), r.to(device, r_dtype or dtype)]
    real = torch.float64 if dtype == torch.float64 else torch.float32
    sources += [s.to(device, real) for s in initial]
    sources = [s.detach().clone().requires_grad_() for s in sources]
    mask, reset = (None if s is None else s.to(device) for s in (mask, reset))
    h, final = function(sources[0], sources[1], SLSTMState(*sources[2:]), forget_cap=cap, mask=mask, reset=reset)
    out = [h, *final]
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(device) for o in out]
    total = sum((w * o).sum() for w, o in list(zip(weights, out, strict=True))[read])
    grads = torch.autograd.grad(total, sources, allow_unused=True)
    grads = [torch.zeros_like(s) if g is None else g for s, g in zip(sources, grads, strict=True)]
    return [o.detach().double().cpu() for o in (*out, *grads)]


def rounded(case, dtype):
    """The same case, with x and r as `dtype` holds them."""
    x, r, *rest = case
    return x.to(dtype).double(), r.to(dtype).double(), *rest


def assert_close(actual, expected, tolerance=TOLERANCE):
    for position, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert bool(a.isfinite().all()), f"tensor {position} is not finite"
        error, size = float((a - e).abs().amax()), max(1.0, float(e.abs().amax()))
        assert error <= tolerance * size, f"tensor {position}: error {error:.3g}, size {size:.3g}"


def check(case, **options):
    case = rounded(case, torch.float32)
    actual = run(triton_slstm.slstm, case, torch.float32, DEVICE, **options)
    assert_close(actual, run(reference.slstm, case, torch.float64, **options))


@pytest.mark.parametrize("time", [1, 2, 17, 40])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_outputs_states_and_gradients_equal_the_reference(time, state, steps):
    check(draw(time=time, state=state, steps=steps))


@pytest.mark.parametrize(("batch", "width"), [(1, 24), (17, 5), (3, 16), (2, 40)])
def test_any_batch_and_width(batch, width):
    check(draw(batch, 4, 2, width, steps=True))


@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_weights_that_do_not_stay_on_chip(monkeypatch, steps):
    walk = triton_slstm.Walk(8, 2, False, 16, 2)
    monkeypatch.setitem(triton_slstm._FLOAT32, 32, (walk, walk))
    check(draw(9, 4, 1, 24, steps=steps))


@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_capped_forget_gates(steps):
    check(draw(time=12, steps=steps), cap=0.5)


@pytest.mark.parametrize("read", [slice(1), slice(1, None)], ids=["output", "memory"])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
def test_only_the_output_or_only_the_memory_is_read(read, state):
    check(draw(state=state), read=read)


def test_a_tie_of_old_and_new_shares_the_stabilisers_gradient():
    x, r, initial, *_ = draw(2, 3, 1, 16, state=False)
    x[:, :, 1], r = 200.0, 0 * r  # log f is 0 in float32
    x[:, :, 0] = x[:, :1, 0]
    case = (x, r, initial, None, None)
    expected = run(chunkwise.slstm, case, torch.float32)
    assert_close(run(triton_slstm.slstm, case, torch.float32, DEVICE), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("r_dtype", [None, torch.float32], ids=["same", "float32 weights"])
def test_half_precision_is_close(dtype, r_dtype):
    """Rounded outputs and products, 2^-8 and 2^-11, over 12 steps: two per cent of what is typical, on average."""
    case = rounded(draw(3, 12, 2, 24, gates=1.0, steps=True), dtype)
    actual = run(triton_slstm.slstm, case, dtype, DEVICE, r_dtype=r_dtype)
    expected = run(reference.slstm, case, torch.float64)
    for a, e in zip(actual, expected, strict=True):
        assert bool(a.isfinite().all())
        assert float((a - e).abs().mean()) <= 2e-2 * float(e.abs().mean())


@pytest.mark.parametrize("scale", [30.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_gates_stay_finite(scale, dtype):
    for tensor in run(triton_slstm.slstm, draw(gates=scale, steps=True), dtype, DEVICE):
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("i", [-100.0, 100.0])
@pytest.mark.parametrize("f", [-100.0, 100.0])
@pytest.mark.parametrize("o", [-100.0, 100.0])
def test_constant_extreme_gates(i, f, o):
    case = draw(2, 5, 1, 5, state=False)
    case[0][:, :, 0], case[0][:, :, 1], case[0][:, :, 3] = i, f, o
    check(case, read=slice(1))


def test_two_runs_give_the_same_bits():
    case = draw(steps=True)
    first, second = (run(triton_slstm.slstm, case, torch.float32, DEVICE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_step_by_step_equals_the_whole():
    x, r, initial, mask, reset = draw(time=9, steps=True)
    x, r, *initial = (s.float().to(DEVICE) for s in (x, r, *initial))
    mask, reset = mask.to(DEVICE), reset.to(DEVICE)
    state = SLSTMState(*initial)
    whole, final = triton_slstm.slstm(x, r, state, mask=mask, reset=reset)
    for t in range(9):
        at = slice(t, t + 1)
        h, state = triton_slstm.slstm(x[:, at], r, state, mask=mask[:, at], reset=reset[:, at])
        assert torch.equal(h, whole[:, at])
    assert all(torch.equal(a, b) for a, b in zip(state, final, strict=True))


def test_float64_and_wide_heads_run_in_torch():
    case = draw(2, 3, 1, 5)
    assert_close(run(triton_slstm.slstm, case, torch.float64, DEVICE), run(reference.slstm, case, torch.float64), 1e-12)
    wide = draw(2, 3, 1, 257)
    assert_close(run(triton_slstm.slstm, wide, torch.float32, DEVICE), run(chunkwise.slstm, wide, torch.float32))
