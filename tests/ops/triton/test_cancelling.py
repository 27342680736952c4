"""Where one step outweighs all others, what gates receive by way of the final memory and by its m nearly cancels."""

import pytest
import torch
from torch import Tensor

from exlstm.ops import hmlstm, mlstm

B, T, H, D, LEVELS = 2, 64, 2, 64, 5
ROUNDING = 2.0**-12  # of a result in float16


def _gradients_of_gates(
    operator, inputs: list[Tensor], weight: Tensor, dtype: torch.dtype, backend: str
) -> list[Tensor]:
    """Of i and f, from the final memory alone."""
    leaves = [x.to(dtype).clone().requires_grad_() for x in inputs]
    C = operator(*leaves, None, backend=backend)[1].C
    return list(torch.autograd.grad(C, leaves[3:5], weight.to(C)))


@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize("operator", [mlstm, hmlstm])
def test_gates_gradients_are_not_rounded_before_they_cancel(operator, seed, device):
    generator = torch.Generator().manual_seed(seed)

    def half(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).half().to(device)

    inputs = [half(B, T, H, D), half(B, T, H, D), half(B, T, H, D), 10 * half(B, T, H), 10 * half(B, T, H)]
    inputs += [half(B, T, H, LEVELS)] if operator is hmlstm else []
    weight = 2.0**-10 * half(B, H, *([LEVELS] if operator is hmlstm else []), D, D)
    exact = _gradients_of_gates(operator, inputs, weight, torch.float64, "torch")
    theirs = _gradients_of_gates(operator, inputs, weight, torch.float16, "torch")
    ours = _gradients_of_gates(operator, inputs, weight, torch.float16, "triton")
    for x, other, found in zip(exact, theirs, ours, strict=True):
        error, allowed = ((y.double() - x).norm() / x.norm() for y in (found, other))
        assert error <= 2 * max(allowed, ROUNDING)
