"""The sLSTM kernels compute what the float64 reference computes: outputs, states and all gradients.

Tolerances are of the norm of a tensor. float32: sums of up to 40 products a step, each rounded by 2^-24, and gates
whose exponentials and quotients are rounded a few times more, over at most 40 steps: 1e-5. bfloat16 and float16:
outputs and products rounded by 2^-9 and 2^-12 come back into the sums of 12 steps: 3e-2 and 4e-3.
"""

import pytest
import torch

from exlstm.ops.triton import slstm as triton_slstm
from tests.ops.cases import draw, leaves
from tests.ops.triton.agreement import assert_close, bits, compared, on

SINGLE = 1e-5
pytestmark = [  # of the interpreter, which computes with NumPy
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.mark.parametrize("time", [1, 2, 17, 40])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_outputs_states_and_gradients_equal_the_reference(device, time, state, steps):
    assert_close(*compared(draw("slstm", time, state=state, steps=steps), device, torch.float32), SINGLE)


@pytest.mark.parametrize(("batch", "width"), [(1, 24), (17, 5), (3, 16), (2, 40)])
def test_any_batch_and_width(device, batch, width, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.BATCH", batch)
    monkeypatch.setattr("tests.ops.cases.DK", width)
    assert_close(*compared(draw("slstm", 4, gates=1.0), device, torch.float32), SINGLE)


@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_weights_that_do_not_stay_on_chip(device, monkeypatch, steps):
    walk = triton_slstm.Walk(8, 2, False, 16, 2)
    monkeypatch.setitem(triton_slstm._FLOAT32, 32, (walk, walk))
    monkeypatch.setattr("tests.ops.cases.BATCH", 9)
    monkeypatch.setattr("tests.ops.cases.DK", 24)
    assert_close(*compared(draw("slstm", 4, gates=1.0, steps=steps), device, torch.float32), SINGLE)


@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_capped_forget_gates(device, steps):
    assert_close(*compared(draw("slstm", 12, steps=steps, forget_cap=0.5), device, torch.float32), SINGLE)


@pytest.mark.parametrize("read", [slice(1), slice(1, None)], ids=["output", "memory"])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
def test_gradients_are_right_where_only_the_output_or_only_the_memory_is_read(device, read, state):
    assert_close(*compared(draw("slstm", 17, state=state), device, torch.float32, read), SINGLE)


def test_a_tie_of_old_and_new_shares_the_stabilisers_gradient(device):
    case = draw("slstm", 3, state=False, steps=False)
    (x,), (r,) = (tuple(t.detach().clone() for t in of) for of in (case.inputs, case.shared))
    x[:, :, 1] = 200.0  # log f is 0 in float32
    x[:, :, 0] = x[:, :1, 0]
    low = on(case._replace(inputs=(x.requires_grad_(),), shared=((0 * r).requires_grad_(),)), device, torch.float32)
    found, expected = ([t.double() for p in low.outputs_and_gradients(b) for t in p] for b in ("triton", "torch"))
    assert_close(found, expected, SINGLE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("weights", ["same", "float32"])
def test_half_precision_keeps_float32_states_and_stays_close(device, dtype, tolerance, weights, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.DK", 24)
    case = draw("slstm", 12, gates=1.0)
    case = case._replace(shared=tuple((r.detach() / 24**0.5).requires_grad_() for r in case.shared))
    if weights == "same":
        found, expected = compared(case, device, dtype)
    else:  # the kernel rounds them itself: what it is given is more exact than what it computes with
        low = on(case, device, dtype)
        low = low._replace(shared=tuple(r.detach().float().requires_grad_() for r in low.shared))
        exact = on(low, torch.device("cpu"), torch.float64, states=torch.float64)
        found, expected = (
            [x.double().cpu() for part in of.outputs_and_gradients(backend) for x in part]
            for of, backend in ((low, "triton"), (exact, "reference"))
        )
    assert_close(found, expected, tolerance)
    h, state = on(case, device, dtype).whole("triton")
    assert h.dtype == dtype
    assert all(x.dtype == torch.float32 for x in leaves(state))


@pytest.mark.parametrize("scale", [30.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_gates_stay_finite(device, scale, dtype):
    for x in bits(draw("slstm", 17, gates=scale), device, dtype):
        assert bool(x.isfinite().all())


@pytest.mark.parametrize("i", [-100.0, 100.0])
@pytest.mark.parametrize("f", [-100.0, 100.0])
@pytest.mark.parametrize("o", [-100.0, 100.0])
def test_whole_sequences_of_extreme_gates_equal_the_reference(device, i, f, o):
    case = draw("slstm", 5, state=False, steps=False)
    x = case.inputs[0].detach().clone()
    x[:, :, 0], x[:, :, 1], x[:, :, 3] = i, f, o
    case = case._replace(inputs=(x.requires_grad_(),))
    assert_close(*compared(case, device, torch.float32, slice(1)), SINGLE)


def test_two_runs_give_the_same_bits(device):
    for x, y in zip(*(bits(draw_once(), device, torch.float16) for _ in range(2)), strict=True):
        assert torch.equal(x, y)


def draw_once():
    torch.manual_seed(3)
    return draw("slstm", 17)


def test_step_by_step_gives_the_bits_of_the_whole(device):
    case = on(draw("slstm", 9), device, torch.float32)
    whole, pieces = case.whole("triton"), case.in_pieces("triton", range(1, 9))
    assert all(torch.equal(x, y) for x, y in zip(leaves(whole), leaves(pieces), strict=True))


@pytest.mark.parametrize(("dtype", "width"), [(torch.float64, 5), (torch.float32, 257)])
def test_float64_and_heads_too_wide_run_in_torch(device, dtype, width, monkeypatch):
    monkeypatch.setattr("tests.ops.cases.DK", width)
    case = on(draw("slstm", 3), device, dtype, states=dtype)
    for x, y in zip(*(leaves(case.whole(backend)) for backend in ("triton", "torch")), strict=True):
        assert torch.equal(x, y)
