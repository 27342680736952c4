"""A case of `tests.ops.cases` in low precision on the kernels' device, beside the float64 reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.cases import Case, leaves


def needs_a_gpu(device: torch.device, dtype: torch.dtype) -> None:
    """Skip what Triton's interpreter (3.6 to 3.9) gets wrong: it multiplies bfloat16 matrices as integers."""
    if device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("bfloat16 products need a GPU: `python benchmarks/gpu.py` checks them")


def moved(tree: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Nested tuples of tensors as new leaves, floating-point ones in `dtype`."""
    if isinstance(tree, Tensor):
        if not tree.is_floating_point():
            return tree.to(device)
        return tree.detach().to(device, dtype).requires_grad_(tree.requires_grad)
    if isinstance(tree, tuple):
        parts = [moved(x, device, dtype) for x in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def on(case: Case, device: torch.device, dtype: torch.dtype, *, states: torch.dtype = torch.float32) -> Case:
    """`case` on `device` in `dtype`."""
    sequences = {name: moved(getattr(case, name), device, dtype) for name in ("inputs", "shared")}
    marks = {name: moved(getattr(case, name), device, dtype) for name in ("mask", "reset")}
    return case._replace(**sequences, **marks, state=moved(case.state, device, states))


def compared(
    case: Case, device: torch.device, dtype: torch.dtype, read: slice = slice(None), **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, states and gradients by Triton in `dtype`, and those of the same numbers by the float64 reference."""
    low = on(case, device, dtype)
    exact = on(low, torch.device("cpu"), torch.float64, states=torch.float64)
    found, expected = (
        [x.double().cpu() for part in of.outputs_and_gradients(backend, read, **chosen) for x in part]
        for of, backend, chosen in ((low, "triton", options), (exact, "reference", {}))
    )
    return found, expected


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Every tensor is finite and, in its norm, within `tolerance` of the expected one."""
    assert len(found) == len(expected)
    for position, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert x.shape == y.shape
        assert bool(x.isfinite().all()), f"tensor {position} is not finite"
        error, size = float((x - y).detach().norm()), float(y.detach().norm())
        assert error <= tolerance * max(size, 1e-3), f"tensor {position}: error {error:.3g}, size {size:.3g}"


def bits(case: Case, device: torch.device, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Outputs, states and gradients by Triton."""
    return leaves(*on(case, device, dtype).outputs_and_gradients("triton", **options))
