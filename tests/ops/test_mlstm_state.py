"""`mlstm_state` is the second of what `mlstm` returns, with its gradients."""

import pytest
import torch
from torch import Tensor

from exlstm.ops import MLSTMState, mlstm, mlstm_state
from tests.ops.cases import Case, assert_same, draw, leaves

TOLERANCE = 1e-9  # see test_backends_agree


def state_and_gradients(case: Case, run, **options) -> tuple[list[Tensor], list[Tensor]]:
    """The memory that `run` returns, and the gradients, in all but q, of a random mixture of it."""
    _, *inputs = case.inputs
    found = leaves(run(*inputs, case.state, mask=case.mask, reset=case.reset, **options))
    generator = torch.Generator().manual_seed(7)
    total = sum((torch.randn(x.shape, generator=generator, dtype=torch.float64) * x.cpu()).sum() for x in found)
    sources = leaves(inputs, *([case.state] if case.state is not None else []))
    gradients = torch.autograd.grad(total, sources, allow_unused=True)
    return found, [torch.zeros_like(s) if g is None else g for s, g in zip(sources, gradients, strict=True)]


def by_mlstm(k: Tensor, *inputs, **options) -> MLSTMState:
    return mlstm(torch.ones_like(k), k, *inputs, backend="reference", **options)[1]


@pytest.mark.parametrize("time", [1, 2, 65, 500])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("steps", [False, True], ids=["plain", "mask+reset"])
@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_it_is_the_memory_that_mlstm_returns(backend, time, state, steps, input_gate):
    case = draw("mlstm", time, state=state, steps=steps)
    expected = state_and_gradients(case, by_mlstm, input_gate=input_gate)
    actual = state_and_gradients(case, mlstm_state, input_gate=input_gate, backend=backend)
    for found, exact in zip(actual, expected, strict=True):
        assert_same(found, exact, TOLERANCE)


@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_extreme_gates_stay_finite_and_equal(scale):
    case = draw("mlstm", 65, gates=scale)
    expected, actual = (state_and_gradients(case, run) for run in (by_mlstm, mlstm_state))
    for found, exact in zip(actual, expected, strict=True):
        assert_same(found, exact, TOLERANCE)


def test_a_sequence_in_two_parts_is_the_second_from_the_memory_of_the_first():
    q, k, v, i, f = draw("mlstm", 90, steps=False).inputs
    whole, _ = mlstm(q, k, v, i, f)
    memory = mlstm_state(*(x[:, :50] for x in (k, v, i, f)))
    second, _ = mlstm(*(x[:, 50:] for x in (q, k, v, i, f)), memory)
    assert_same([second], [whole[:, 50:]], TOLERANCE)


def test_what_does_not_fit_is_said():
    k, v, i, f = (torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3), torch.randn(2, 5, 2))
    with pytest.raises(ValueError, match=r"f must have shape \[B, T, H\] = \(2, 5, 3\), got \(2, 5, 2\)"):
        mlstm_state(k, v, i, f)
