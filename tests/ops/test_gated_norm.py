"""Norm, skip and output gate: the C++ kernel computes what the tensor operations compute."""

import pytest
import torch

from exlstm.ops import gated_norm
from tests.ops.cases import assert_same, normal

TOLERANCE = 1e-12  # float64: moments over at most 64 channels, gradients summed over at most 900 steps


@pytest.fixture(autouse=True)
def poisoned():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(time, *, heads=3, width=5, skip=True, batch=3):
    gate = normal(batch, time, 2 * heads * width)
    tensors = [normal(batch, time, heads, width), normal(heads * width), gate]
    return tensors + ([normal(heads * width), normal(batch, time, heads * width)] if skip else [])


def run(h, weight, wide_gate, *skip, activation="silu", backend):
    # A half of wider rows, as layers have it.
    gate = wide_gate.chunk(2, -1)[1]
    return gated_norm(h, weight, gate, skip=skip or None, activation=activation, backend=backend)


def output_and_gradients(tensors, weight, **options):
    out = run(*tensors, **options)
    return [out, *torch.autograd.grad((weight * out).sum(), tensors)]


@pytest.mark.parametrize("time", [1, 2, 85, 86, 300])
@pytest.mark.parametrize("width", [1, 5, 16, 33, 64])
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("skip", [False, True])
def test_output_and_gradients_equal_the_reference(time, width, activation, skip):
    tensors = arguments(time, width=width, skip=skip)
    weight = torch.randn(3, time, 3 * width, dtype=torch.float64)
    actual = output_and_gradients(tensors, weight, activation=activation, backend="cpu")
    expected = output_and_gradients(tensors, weight, activation=activation, backend="reference")
    for a, e in zip(actual, expected, strict=True):
        assert_same([a], [e], TOLERANCE)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 2**-24), (torch.bfloat16, 2**-8)])
def test_lower_precision_rounds_once_for_its_results(dtype, size):
    # Relative to the largest entry: the results' rounding, and float32 arithmetic on up to 33 channels, 600 steps.
    h, weight, gate, skip, c = (x.detach() for x in arguments(200, width=33))
    low = [x.requires_grad_() for x in (h.to(dtype), weight.float(), gate.to(dtype), skip.float(), c.to(dtype))]
    exact = [x.detach().double().requires_grad_() for x in low]
    mixture = torch.randn(3, 200, 99).to(dtype)
    actual = output_and_gradients(low, mixture, backend="cpu")
    expected = output_and_gradients(exact, mixture.double(), backend="reference")
    assert [x.dtype for x in actual] == [dtype, dtype, torch.float32, dtype, torch.float32, dtype]
    for a, e in zip(actual, expected, strict=True):
        assert_same([a.double()], [e], size + 600 * 2**-24)


def test_a_gate_is_read_wherever_it_lies():
    h, weight, gate, _, _ = (x.detach() for x in arguments(1))
    gate = gate[..., :15]
    turned = gate.transpose(0, 1).contiguous().transpose(0, 1)  # contiguous, though no stride is that of the rows
    actual, expected = (gated_norm(h, weight, x, backend="cpu") for x in (turned, gate))
    assert torch.equal(actual, expected)


def test_gradcheck():
    tensors = arguments(4, width=5)
    assert torch.autograd.gradcheck(lambda *x: run(*x, backend="cpu"), tensors, fast_mode=True)


def test_wrong_arguments_are_named():
    h, weight, gate = (x.detach() for x in arguments(4, skip=False))
    with pytest.raises(ValueError, match=r"gate must have shape \[B, T, H D\]"):
        gated_norm(h, weight, gate)
    with pytest.raises(ValueError, match="activation must be 'silu' or 'sigmoid', got 'relu'"):
        gated_norm(h, weight, gate.chunk(2, -1)[0], activation="relu")
