"""Is what will be timed right? Our operators against the float64 reference, on small random cases."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from exlstm.ops import hmlstm, mlstm, slstm

BATCH, TIME, HEADS, DK, DV, LEVELS = 2, 150, 2, 5, 3, 6
SINGLE_STEPS = 3

# Rounding of sums over TIME steps, and two orders of magnitude for the cancellation in numerator over normaliser.
TOLERANCE = {dtype: 100 * TIME * torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32)}


class DisagreementError(Exception):
    """An operator does not compute what the reference computes."""


def check(operator: str) -> None:
    """Compare output, final state and all gradients with the reference: float64 and float32, whole and step by step.

    Raises:
        DisagreementError: a tensor differs by more than rounding explains.
    """
    run, inputs, shared = _draw(operator)
    weights: list[Tensor] = []
    expected = _outputs_and_gradients(partial(run, backend="reference"), inputs, shared, weights)
    ways: dict[str, Callable[..., Any]] = {"whole": run, "step by step": partial(_in_steps, run)}
    for dtype, tolerance in TOLERANCE.items():
        for way, call in ways.items():
            with _poison():
                actual = _outputs_and_gradients(call, _to(inputs, dtype), _to(shared, dtype), _to(weights, dtype))
            for place, (a, e) in enumerate(zip(actual, expected, strict=True)):
                error = float((a.double() - e).abs().amax()) / max(1.0, float(e.abs().amax()))
                if not error <= tolerance:
                    raise DisagreementError(
                        f"{operator} ({dtype}, {way}) differs from the reference by {error:.1e} in tensor {place}"
                    )


@contextmanager
def _poison() -> Iterator[None]:
    """Let memory that torch allocates hold NaN, so that what is read before it is written shows every time."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _draw(operator: str) -> tuple[Callable[..., Any], list[Tensor], list[Tensor]]:
    """The operator, its inputs [B, T, ...], and those without a time axis, all float64."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    steps = (BATCH, TIME, HEADS)
    if operator == "slstm":
        return slstm, [normal(BATCH, TIME, 4, HEADS, DK)], [normal(4, HEADS, DK, DK)]
    inputs = [normal(*steps, DK), normal(*steps, DK), normal(*steps, DV), normal(*steps), normal(*steps)]
    if operator == "mlstm":
        return mlstm, inputs, []
    assert operator == "hmlstm", operator
    return hmlstm, [*inputs, normal(*steps, LEVELS)], []


def _to(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.detach().to(dtype) for x in tensors]


def _in_steps(run: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, Any]:
    """The last steps one by one, the state carried over."""
    first = TIME - SINGLE_STEPS
    outputs, state = [], None
    for piece in (slice(first), *(slice(t, t + 1) for t in range(first, TIME))):
        h, state = run(*(x[:, piece] if x.shape[:2] == (BATCH, TIME) else x for x in tensors), state)
        outputs.append(h)
    return torch.cat(outputs, 1), state


def _outputs_and_gradients(
    call: Callable[..., Any], inputs: list[Tensor], shared: list[Tensor], weights: list[Tensor]
) -> list[Tensor]:
    """All floating-point results, and the gradients of their sum weighted with `weights`, drawn if there are none."""
    sources = [x.requires_grad_() for x in (*inputs, *shared)]
    h, state = call(*sources)
    results = [x for x in (h, *state) if x.is_floating_point()]
    if not weights:
        weights += [torch.randn_like(x) for x in results]
    total = sum((w * x).sum() for w, x in zip(weights, results, strict=True))
    gradients = torch.autograd.grad(total, sources)
    return [x.detach() for x in (*results, *gradients)]
