"""Convolution, projections and gates: the C++ kernel computes what the tensor operations compute."""

import pytest
import torch

from exlstm.ops import qkv_gates
from tests.ops.cases import assert_same, normal

TOLERANCE = 1e-12  # sums of at most 600 products in float64, and gradients that sum over 600 steps of them


@pytest.fixture(autouse=True)
def poisoned():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(time, *, width=32, taps=4, block=4, gates=3, batch=2, steps=True):
    reset = torch.rand(batch, time) < 0.2
    since = torch.arange(time).expand(batch, time) - torch.where(reset, torch.arange(time), -taps).cummax(1).values
    return (
        (
            normal(batch, time, width),
            normal(batch, taps - 1, width),
            (normal(width, taps), normal(width)),
            tuple(normal(width // block, block, block) for _ in range(3)),
            (normal(gates, 3 * width), normal(gates)),
        ),
        since if steps else None,
    )


def flat(tree):
    return [tree] if isinstance(tree, torch.Tensor) else [x for part in tree for x in flat(part)]


def outputs_and_gradients(inputs, reach, backend, weights):
    out = qkv_gates(*inputs, reach=reach, backend=backend)
    total = sum((w * y).sum() for w, y in zip(weights, out, strict=True))
    return list(out), list(torch.autograd.grad(total, flat(inputs)))


@pytest.mark.parametrize("time", [1, 2, 3, 31, 32, 33, 65, 511, 513, 600])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "documents"])
def test_outputs_and_gradients_equal_the_reference(time, steps):
    inputs, reach = arguments(time, steps=steps)
    weights = [torch.randn_like(y) for y in qkv_gates(*inputs, backend="reference")]
    actual = outputs_and_gradients(inputs, reach, "cpu", weights)
    expected = outputs_and_gradients(inputs, reach, "reference", weights)
    for a, e in zip(actual, expected, strict=True):
        assert_same(a, e, TOLERANCE)


@pytest.mark.parametrize(
    ("width", "taps", "block", "gates"), [(64, 2, 4, 8), (32, 8, 4, 1), (36, 4, 4, 2), (32, 9, 8, 2)]
)
def test_other_sizes_equal_the_reference(width, taps, block, gates):
    inputs, reach = arguments(50, width=width, taps=taps, block=block, gates=gates)
    weights = [torch.randn_like(y) for y in qkv_gates(*inputs, backend="reference")]
    actual = outputs_and_gradients(inputs, reach, "cpu", weights)
    expected = outputs_and_gradients(inputs, reach, "reference", weights)
    for a, e in zip(actual, expected, strict=True):
        assert_same(a, e, TOLERANCE)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 2**-24), (torch.bfloat16, 2**-8)])
def test_lower_precision_rounds_as_often_as_its_results_are_written(dtype, size):
    # Relative to the largest entry: a rounding of inputs and results each, and float32 sums of up to 96 products.
    inputs, reach = arguments(100)
    weights = [torch.randn_like(y) for y in qkv_gates(*inputs, backend="reference")]
    x, past, *rest = inputs
    low = [t.detach().to(dtype).requires_grad_() for t in (x, past)] + [
        tuple(w.detach().float().requires_grad_() for w in part) for part in rest
    ]
    exact = [t.detach().double().requires_grad_() for t in low[:2]] + [
        tuple(w.detach().double().requires_grad_() for w in part) for part in low[2:]
    ]
    actual = outputs_and_gradients(low, reach, "cpu", weights)
    expected = outputs_and_gradients(exact, reach, "reference", weights)
    assert [y.dtype for y in actual[0]] == [dtype] * 4 + [torch.float32]
    for a, e in zip(actual, expected, strict=True):
        assert_same([y.double() for y in a], e, 4 * size + 100 * 2**-24)


def test_a_convolution_of_one_tap_needs_no_past():
    inputs, _ = arguments(40, taps=1)
    for a, e in zip(qkv_gates(*inputs, backend="cpu"), qkv_gates(*inputs, backend="reference"), strict=True):
        assert_same([a], [e], TOLERANCE)


def test_gradcheck():
    inputs, reach = arguments(5, width=16, taps=3, gates=2)

    def run(x, past, *weights):
        return qkv_gates(x, past, weights[:2], weights[2:5], weights[5:], reach=reach, backend="cpu")

    assert torch.autograd.gradcheck(run, flat(inputs), fast_mode=True)


def test_wrong_shapes_are_named():
    inputs, _ = arguments(5)
    x, past, *rest = inputs
    with pytest.raises(ValueError, match=r"past must have shape \[B, K - 1, N\]"):
        qkv_gates(x, past[:, 1:], *rest)
    with pytest.raises(ValueError, match="reach must have shape"):
        qkv_gates(*inputs, reach=torch.zeros(2, 4, dtype=torch.int64))
