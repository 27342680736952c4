"""Every backend computes what the reference computes: outputs, final state and all gradients.

The bound is 1e-9 of the largest entry in float64: the rounding of sums over 500 steps (500 x 1e-16), and two orders of
magnitude for the cancellation in the quotient of numerator and normaliser.
"""

import pytest
import torch

from tests.ops.cases import LENGTHS, assert_same, draw, leaves

TOLERANCE = 1e-9


@pytest.fixture(autouse=True)
def poisoned():
    """torch.empty gives NaN, so that reading what was never written shows."""
    torch.use_deterministic_algorithms(True)
    assert bool(torch.empty(3).isnan().all())
    yield
    torch.use_deterministic_algorithms(False)


FAST_BACKENDS = [
    ("mlstm", "torch"),
    ("hmlstm", "torch"),
    ("slstm", "torch"),
    ("slstm", "cpu"),
    ("mlstm", "cpu"),
    ("hmlstm", "cpu"),
]


@pytest.mark.parametrize(("operator", "backend"), FAST_BACKENDS)
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_outputs_states_and_gradients_equal_the_reference(operator, backend, time, state, steps):
    case = draw(operator, time, state=state, steps=steps)
    for actual, expected in zip(
        case.outputs_and_gradients(backend), case.outputs_and_gradients("reference"), strict=True
    ):
        assert_same(actual, expected, TOLERANCE)


@pytest.mark.parametrize(("operator", "backend"), FAST_BACKENDS)
@pytest.mark.parametrize("read", [slice(1), slice(1, None)], ids=["output", "memory"])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
def test_gradients_are_right_where_only_the_output_or_only_the_memory_is_read(operator, backend, read, state):
    options = {} if operator == "slstm" else {"chunk_size": 4}  # several groups of chunks
    case = draw(operator, 75, state=state)
    actual = case.outputs_and_gradients(backend, read, **options)
    for found, expected in zip(actual, case.outputs_and_gradients("reference", read), strict=True):
        assert_same(found, expected, TOLERANCE)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_sigmoid_input_gate_equals_the_reference(backend, steps):
    case = draw("mlstm", 150, steps=steps, input_gate="sigmoid")
    for actual, expected in zip(
        case.outputs_and_gradients(backend), case.outputs_and_gradients("reference"), strict=True
    ):
        assert_same(actual, expected, TOLERANCE)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_capped_forget_gates_equal_the_reference(backend, steps):
    case = draw("slstm", 150, steps=steps, forget_cap=0.5)
    for actual, expected in zip(
        case.outputs_and_gradients(backend), case.outputs_and_gradients("reference"), strict=True
    ):
        assert_same(actual, expected, TOLERANCE)


@pytest.mark.parametrize(
    ("operator", "backend"), [("mlstm", "torch"), ("mlstm", "cpu"), ("hmlstm", "torch"), ("hmlstm", "cpu")]
)
def test_chunk_size_changes_nothing(operator, backend):
    case = draw(operator, 65)
    expected = leaves(case.whole(backend))
    for size in (1, 2, 16, 128):
        assert_same(leaves(case.whole(backend, chunk_size=size)), expected, TOLERANCE)


@pytest.mark.parametrize(("operator", "backend"), FAST_BACKENDS)
@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_extreme_random_gates_stay_finite_and_equal(operator, backend, scale):
    case = draw(operator, 65, gates=scale)
    for actual, expected in zip(
        case.outputs_and_gradients(backend), case.outputs_and_gradients("reference"), strict=True
    ):
        assert_same(actual, expected, TOLERANCE)


@pytest.mark.parametrize(("operator", "backend"), FAST_BACKENDS)
@pytest.mark.parametrize("i", [-100.0, -30.0, 30.0, 100.0])
@pytest.mark.parametrize("f", [-100.0, -30.0, 30.0, 100.0])
def test_whole_sequences_of_extreme_gates_stay_finite_and_equal(operator, backend, i, f):
    case = draw(operator, 130, state=False, steps=False)
    if operator == "slstm":
        (x,) = (x.detach().clone() for x in case.inputs)
        x[:, :, 0], x[:, :, 1] = i, f
        case = case._replace(inputs=(x,))
    else:
        q, k, v, gate, _, *level = case.inputs
        case = case._replace(inputs=(q, k, v, torch.full_like(gate, i), torch.full_like(gate, f), *level))
    assert_same(leaves(case.whole(backend)), leaves(case.whole("reference")), TOLERANCE)


@pytest.mark.parametrize(("operator", "backend"), FAST_BACKENDS)
@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_float32_stays_finite_with_gradients_under_extreme_gates(operator, backend, scale):
    case = draw(operator, 130, gates=scale, state=False)
    single = case._replace(
        inputs=tuple(x.detach().float().requires_grad_() for x in case.inputs),
        shared=tuple(x.detach().float().requires_grad_() for x in case.shared),
    )
    for tensors in single.outputs_and_gradients(backend):
        assert all(bool(x.isfinite().all()) for x in tensors)


@pytest.mark.parametrize(("operator", "backend"), FAST_BACKENDS)
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-4), (torch.bfloat16, 6e-2)])
def test_lower_precision_keeps_float32_states_and_stays_close(operator, backend, dtype, size):
    # Rounding of inputs and products (2^-24, 2^-8) grown by the conditioning of the quotient; gates of moderate size.
    case = draw(operator, 100, gates=1.0, state=False)
    low = case._replace(
        inputs=tuple(x.detach().to(dtype) for x in case.inputs), shared=tuple(x.detach() for x in case.shared)
    )
    exact = low._replace(inputs=tuple(x.double() for x in low.inputs))
    low = low._replace(shared=tuple(x.to(dtype) for x in low.shared))
    exact = exact._replace(shared=tuple(x.double() for x in low.shared))
    h, state = low.whole(backend)
    expected, _ = exact.whole("reference")
    assert h.dtype == dtype
    assert all(x.dtype == torch.float32 for x in leaves(state))
    error = (h.double() - expected).abs()
    assert float(error.mean() / expected.abs().mean()) < size


@pytest.mark.parametrize(("operator", "backend"), [*FAST_BACKENDS, ("mlstm", "reference"), ("hmlstm", "reference")])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_gradcheck(operator, backend, steps):
    case = draw(operator, 7, steps=steps, gates=1.0)
    # Sources in the order that `run` takes them; the position of a hierarchical state is an integer.
    count = len(case.inputs) + len(case.shared)

    def run(*flat):
        fields = list(flat[count:])
        if operator == "hmlstm":
            fields.append(case.state.position)
        return tuple(leaves(case.run(backend, *flat[:count], type(case.state)(*fields))))

    sources = [x.detach().requires_grad_() for x in leaves(case.inputs, case.shared, case.state)]
    if operator == "slstm":  # n = 0 marks an empty element; its neighbours in n are no states
        sources[-3] = case.state.n.detach()
    # Random projections of the Jacobian (fast_mode): the whole one of a hierarchical state takes a minute.
    assert torch.autograd.gradcheck(run, sources, atol=1e-6, rtol=1e-5, fast_mode=True)
