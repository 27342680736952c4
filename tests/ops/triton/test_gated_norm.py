"""The kernels of gated_norm compute what the float64 reference computes: output and all gradients.

Tolerances are of the norm of a tensor. float32: means of up to 33 columns and gradients of weights over up to 75 rows,
each addition rounded by 2^-24, and some ten roundings of the norm, the gate and their products: at most
(33 + 75 + 10) 2^-24 = 7e-6, so 1e-5. bfloat16 and float16: the same rounded once more, by at most 2^-8 (Triton's
interpreter cuts bfloat16 off) and 2^-12, so well within the 3e-2 and 4e-3 of the other kernels.
"""

import pytest
import torch

from exlstm.ops.reference import gated_norm as reference
from exlstm.ops.triton import gated_norm as kernels
from tests.ops.triton.agreement import assert_close, moved

SINGLE = 1e-5
HALF = [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)]
pytestmark = [  # of the interpreter, which computes with NumPy
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def poisoned():
    # What no kernel writes is NaN.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(device, dtype, *, batch=3, time=7, heads=2, width=5, skip=True):
    """h, the weight, a gate twice as wide as it is and, with a skip, its weight and what that multiplies."""
    steps, channels = (batch, time), heads * width
    shapes = [(*steps, heads, width), (channels,), (*steps, 2 * channels)]
    shapes += [(channels,), (*steps, channels)] if skip else []
    return moved(tuple(torch.randn(shape, requires_grad=True) for shape in shapes), device, dtype)


def run(backend, h, weight, wide_gate, *skip, activation="silu", eps=1e-5):
    # A half of wider rows, as layers have it.
    gate = wide_gate.chunk(2, -1)[1]
    return backend.gated_norm(h, weight, gate, skip=skip or None, activation=activation, eps=eps)


def output_and_gradients(backend, tensors, **options):
    """The output, and the gradients of a mixture of its entries that bfloat16 does not round."""
    out = run(backend, *tensors, **options)
    generator = torch.Generator().manual_seed(7)
    mixture = torch.randn(out.shape, generator=generator).bfloat16().to(out)
    return [out, *torch.autograd.grad(out, tensors, mixture)]


def exact(tensors):
    return moved(tuple(tensors), torch.device("cpu"), torch.float64)


def agree(tensors, tolerance, **options):
    """Assert that kernels and reference do, and that results have the dtypes of what they are of."""
    found = output_and_gradients(kernels, tensors, **options)
    assert [x.dtype for x in found] == [x.dtype for x in (tensors[0], *tensors)]
    assert_close(exact(found), output_and_gradients(reference, exact(tensors), **options), tolerance)


@pytest.mark.parametrize("time", [1, 7])
@pytest.mark.parametrize("width", [5, 16, 33])
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_output_and_gradients_equal_the_reference(device, time, width, activation, skip):
    agree(draw(device, torch.float32, time=time, width=width, skip=skip), SINGLE, activation=activation)


@pytest.mark.parametrize(("batch", "heads", "width"), [(1, 1, 1), (1, 3, 17), (5, 1, 32)])
def test_any_batch_and_number_of_heads(device, batch, heads, width):
    agree(draw(device, torch.float32, batch=batch, time=3, heads=heads, width=width), SINGLE)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("parts", [1, 4, 256])
def test_rows_of_many_tiles_in_any_number_of_parts(device, skip, parts, monkeypatch):
    monkeypatch.setattr(kernels, "ELEMENTS", 64)  # of 4 rows, so that there are 19 tiles
    monkeypatch.setattr(kernels, "MOST_PARTS", parts)
    agree(draw(device, torch.float32, time=25, skip=skip), SINGLE)


@pytest.mark.parametrize(("dtype", "tolerance"), HALF)
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_half_precision_rounds_its_results_only(device, dtype, tolerance, activation, skip):
    agree(draw(device, dtype, width=33, skip=skip), tolerance, activation=activation)


@pytest.mark.parametrize(("dtype", "tolerance"), HALF)
@pytest.mark.parametrize("low", [(0,), (0, 2, 4), (1, 3), (2,)], ids=["h", "steps", "weights", "gate"])
def test_every_argument_may_have_its_own_precision(device, dtype, tolerance, low):
    tensors = draw(device, torch.float32)
    agree(tuple(moved(x, device, dtype) if place in low else x for place, x in enumerate(tensors)), tolerance)


def test_tensors_are_read_wherever_they_lie(device):
    h, weight, gate, skip, c = (x.detach() for x in draw(device, torch.float32, time=1))
    gate = gate[..., :10]
    expected = kernels.gated_norm(h, weight, gate, skip=(skip, c), activation="silu", eps=1e-5)
    turned = gate.transpose(0, 1).contiguous().transpose(0, 1)  # contiguous, though no stride is that of the steps
    spread = c.repeat_interleave(3, -1)[..., ::3]
    actual = kernels.gated_norm(h.mT.contiguous().mT, weight, turned, skip=(skip, spread), activation="silu", eps=1e-5)
    assert torch.equal(actual, expected)
    same = c[:1, :1].expand_as(c)
    expected, actual = (
        kernels.gated_norm(h, weight, gate, skip=(skip, x), activation="silu", eps=1e-5)
        for x in (same.contiguous(), same)
    )
    assert torch.equal(actual, expected)


def test_heads_far_from_zero_lose_only_what_rounding_their_mean_costs(device):
    h, *rest = draw(device, torch.float32, width=33)
    h = (h.detach() + 1000).requires_grad_()
    agree((h, *rest), 1000 * SINGLE)  # squares less the square of the mean would lose a million times as much


def test_no_eps_leaves_rows_beyond_the_last_without_effect(device):
    agree(draw(device, torch.float32, width=33), SINGLE, eps=0.0)


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("z", [-100.0, 100.0])
def test_gates_shut_or_open_equal_the_reference(device, activation, z):
    h, weight, gate, *skip = draw(device, torch.float32)
    gate = torch.full_like(gate, z, requires_grad=True)
    agree((h, weight, gate, *skip), SINGLE, activation=activation)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float64, 5), (torch.float32, 4097)])
def test_float64_and_heads_too_wide_run_in_torch(device, dtype, width):
    tensors = draw(device, dtype, time=1, width=width)
    found, expected = (output_and_gradients(backend, tensors) for backend in (kernels, reference))
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_one_argument_in_float64_makes_all_of_it_float64(device):
    h, weight, *rest = draw(device, torch.float32)
    tensors = (h, weight.detach().double().requires_grad_(), *rest)
    found, expected = (output_and_gradients(backend, tensors) for backend in (kernels, reference))
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_two_runs_give_the_same_bits(device, skip):
    tensors = draw(device, torch.float16, width=33, skip=skip)
    for x, y in zip(*(output_and_gradients(kernels, tensors) for _ in range(2)), strict=True):
        assert torch.equal(x, y)


def test_the_registered_operators_say_what_they_return(device):
    h, weight, wide_gate, *skip = draw(device, torch.bfloat16)
    for with_skip in (skip, (None, None)):
        arguments = (h, wide_gate[..., 10:], weight, *with_skip, False, 1e-5)
        torch.library.opcheck(kernels._forward.overload, arguments, test_utils=("test_schema", "test_faketensor"))
        inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
        arguments = (*inputs, torch.randn_like(inputs[0]).flatten(-2))
        torch.library.opcheck(kernels._backward.overload, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # which Dynamo itself does
def test_it_is_one_graph_with_the_same_results(device, skip):
    torch._dynamo.reset()
    tensors = draw(device, torch.float32, skip=skip)

    def call(*x):
        return run(kernels, *x)

    expected, actual = call(*tensors), torch.compile(call, fullgraph=True, backend="aot_eager")(*tensors)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(*(torch.autograd.grad(x.square().sum(), tensors) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(a, e)
