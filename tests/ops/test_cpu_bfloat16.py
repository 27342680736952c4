"""In bfloat16 the kernels are at most twice as far from the float64 reference as the torch backend in bfloat16 is.

The torch form of sLSTM is its steps under autocast. The reference takes the same bfloat16 inputs, so that what is
compared is the rounding of the products alone. The error is the largest over outputs, final states and all gradients,
relative to each tensor's largest entry, of draws of several widths: a single one depends on how close to 0 its
normalisers happen to come.
"""

from contextlib import nullcontext

import pytest
import torch

from exlstm.ops import slstm
from tests.ops import cases
from tests.ops.cases import LENGTHS, Case, draw


def held_as(case: Case, sequence: torch.dtype, other: torch.dtype) -> Case:
    """The case rounded to bfloat16 (q, k, v; x) and float32 (all else), and then held in these dtypes."""

    def held(x, rounded, dtype):
        return x.detach().to(rounded).to(dtype).requires_grad_() if x.is_floating_point() else x

    inputs = [held(x, torch.bfloat16, sequence) for x in case.inputs[:3]]
    inputs += (held(x, torch.float32, other) for x in case.inputs[3:])
    shared = tuple(held(x, torch.float32, other) for x in case.shared)
    state = case.state and type(case.state)(*(held(x, torch.float32, other) for x in case.state))
    return case._replace(inputs=tuple(inputs), shared=shared, state=state)


def largest_error(drawn: list[Case], backend: str, **options: int) -> float:
    return max(error for case in drawn for error in errors(case, backend, **options))


def errors(case: Case, backend: str, **options: int) -> list[float]:
    low, exact = held_as(case, torch.bfloat16, torch.float32), held_as(case, torch.float64, torch.float64)
    # What of an sLSTM's state is read would see its stabiliser, the gradient of which jumps where gates change order.
    read = slice(1) if case.operator.func is slstm else slice(None)
    expected = exact.outputs_and_gradients("reference", read)
    with torch.autocast("cpu", torch.bfloat16) if backend == "reference" else nullcontext():
        actual = low.outputs_and_gradients(backend, read, **options)
    return [
        float((a.double() - e).detach().abs().amax() / e.detach().abs().amax())
        for a, e in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True)
        if e.detach().abs().amax() > 0
    ]


@pytest.fixture
def draws(monkeypatch):
    def of(operator: str, time: int, **options: bool) -> list[Case]:
        drawn = []
        for dk, dv in ((5, 3), (33, 20), (32, 64)):
            monkeypatch.setattr(cases, "DK", dk)
            monkeypatch.setattr(cases, "DV", dv)
            drawn.append(draw(operator, time, gates=1.0, **options))
        return drawn

    return of


# A hierarchical mLSTM that goes on from a state is chunkwise's.
@pytest.mark.parametrize(("operator", "state"), [("mlstm", False), ("mlstm", True), ("hmlstm", False)])
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_error_is_at_most_twice_that_of_torch(operator, state, time, steps, draws):
    drawn = draws(operator, time, state=state, steps=steps)
    assert largest_error(drawn, "cpu") <= 2 * largest_error(drawn, "torch")


@pytest.mark.parametrize("operator", ["mlstm", "hmlstm"])
@pytest.mark.parametrize("size", [1, 2, 16, 128])
def test_it_holds_for_every_chunk_size(operator, size, draws):
    drawn = draws(operator, 65, state=operator == "mlstm")
    assert largest_error(drawn, "cpu", chunk_size=size) <= 2 * largest_error(drawn, "torch", chunk_size=size)


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
def test_error_of_slstm_is_at_most_twice_that_of_steps_under_autocast(time, steps, draws):
    # Recurrent weights of a size that neither forgets at once nor makes chaos of any rounding.
    drawn = [
        case._replace(shared=(case.shared[0] * case.shared[0].shape[-1] ** -0.5,))
        for case in draws("slstm", time, steps=steps)
    ]
    assert largest_error(drawn, "cpu") <= 2 * largest_error(drawn, "reference")
