"""Checks of operator arguments: one sentence that says what was expected, what came, and what to do."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_shape(name: str, x: Tensor, expected: Sequence[int | None], layout: str) -> None:
    """Raise ValueError unless `x` has the `expected` shape (None: any length); `layout` names its axes."""
    if x.dim() != len(expected) or any(e is not None and e != n for e, n in zip(expected, x.shape, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{name} must have shape {layout} = ({wanted}), got {tuple(x.shape)}")


def check_float(**tensors: Tensor) -> None:
    """Raise ValueError unless every tensor is of floating point and all lie on one device."""
    devices = {str(x.device) for x in tensors.values()}
    if len(devices) > 1:
        raise ValueError(f"{', '.join(tensors)} must be on one device, got {', '.join(sorted(devices))}")
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise ValueError(f"{name} must be of floating point, got {x.dtype}; convert it with .float()")


def check_steps(name: str, x: Tensor | None, batch: int, time: int) -> None:
    """Raise ValueError unless `x` is None or a bool tensor [B, T]."""
    if x is None:
        return
    check_shape(name, x, (batch, time), "[B, T]")
    if x.dtype != torch.bool:
        raise ValueError(f"{name} must be bool, got {x.dtype}; compare first, for instance {name} != 0")


def check_time(time: int) -> None:
    """Raise ValueError for an empty sequence."""
    if time < 1:
        raise ValueError("the sequence must have at least one time step, got T = 0")


def state_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of gate sums, normalisers and states: float64 for float64 inputs, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
