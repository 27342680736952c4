"""Which implementation of an operator runs.

Every operator has one public signature and several implementations of it, named by backend. An implementation is
imported when it is first used, so a backend that needs a compiler or a GPU costs nothing to those who have neither.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

BACKENDS = ("reference", "torch", "cpu", "triton")

# From the fastest to the slowest: "auto" takes the first that is usable for the call.
_IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "mlstm": {"torch": "exlstm.ops.chunkwise.mlstm", "reference": "exlstm.ops.reference.mlstm"},
    "hmlstm": {"torch": "exlstm.ops.chunkwise.hmlstm", "reference": "exlstm.ops.reference.hmlstm"},
    "slstm": {"torch": "exlstm.ops.chunkwise.slstm", "reference": "exlstm.ops.reference.slstm"},
}


def why_unusable(operator: str, backend: str, device: torch.device | None = None) -> str | None:
    """The reason why `backend` cannot run `operator` on `device` (any device if None), or None if it can."""
    if backend not in _IMPLEMENTATIONS[operator]:
        return f"{operator} has no {backend} backend in this version"
    return None


def resolve(operator: str, backend: str, device: torch.device) -> Callable[..., Any]:
    """The implementation of `operator` that `backend` names; the environment's EXLSTM_BACKEND stands in for "auto".

    Raises:
        ValueError: the backend is unknown, or cannot run here; the message says why.
    """
    if backend == "auto":
        backend = os.environ.get("EXLSTM_BACKEND", "auto")
    if backend == "auto":
        backend = next(b for b in _IMPLEMENTATIONS[operator] if why_unusable(operator, b, device) is None)
    elif backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}")
    elif reason := why_unusable(operator, backend, device):
        raise ValueError(f"backend {backend!r} cannot run here: {reason}; backend='auto' picks one that can")
    return getattr(importlib.import_module(_IMPLEMENTATIONS[operator][backend]), operator)


def describe() -> dict[str, dict[str, str | None]]:
    """For every operator and backend: None where it is usable on this machine, else the reason why it is not."""
    return {op: {b: why_unusable(op, b) for b in BACKENDS} for op in _IMPLEMENTATIONS}
