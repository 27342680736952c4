"""What a contestant does in one call, and the random inputs that contestants share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Work(NamedTuple):
    """A call to be timed.

    `units` is how many units of work, such as tokens, one call does: times are per unit. `facts` are numbers that
    go into the results: "operations" (floating-point, per unit), "parameters", "state_bytes".
    """

    call: Callable[[], Any]
    facts: Mapping[str, float] = {}
    units: int = 1


def operator_work(
    run: Callable[[], Tensor], inputs: Sequence[Tensor], shape: Sequence[int] | None, **facts: float
) -> Work:
    """`run` alone; or, where the `shape` of its output is given, `run` and the gradients of all `inputs`."""
    if shape is None:
        return Work(torch.no_grad()(run), facts)
    for x in inputs:
        x.requires_grad_()
    gradient = torch.randn(*shape)
    return Work(lambda: torch.autograd.grad(run(), inputs, gradient), facts)


def mlstm_inputs(batch: int, time: int, heads: int, dk: int, dv: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random q, k [B, T, H, DK], v [B, T, H, DV] and gate pre-activations i, f [B, T, H], mostly remembering."""
    q, k = torch.randn(2, batch, time, heads, dk).unbind()
    v = torch.randn(batch, time, heads, dv)
    i, f = torch.randn(2, batch, time, heads).unbind()
    return q, k, v, i, f + 3
