"""Which implementation of an operator runs.

Every operator has one public signature and several implementations of it, named by backend and registered by
`exlstm.ops`, from the fastest to the slowest: "auto" takes the first that can run the call. What a backend needs (a
compiler, a GPU) it looks for when it is first asked, so importing costs nothing to those who have neither.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch

Result = TypeVar("Result")
BACKENDS = ("reference", "torch", "cpu", "triton")


class Implementation(NamedTuple):
    """A function with the operator's arguments, the state given; what keeps it from running, if anything; a remark."""

    run: Callable[..., Any]
    obstacle: Callable[[torch.device | None], str | None]
    remark: str


_OPERATORS = ("mlstm", "mlstm_state", "hmlstm", "slstm", "qkv_gates", "gated_norm")
_IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {operator: {} for operator in _OPERATORS}
_STAND_IN = "stand-in"
_stand_ins: ContextVar[Mapping[str, Callable[..., Any]]] = ContextVar("stand_ins", default=MappingProxyType({}))


def register(
    operator: str,
    backend: str,
    run: Callable[..., Any],
    obstacle: Callable[[torch.device | None], str | None] = lambda device: None,
    *,
    remark: str = "",
) -> None:
    """Make `run` the implementation of `operator` by `backend`; those registered first are preferred.

    `remark` says in a clause which calls it leaves to another backend.
    """
    assert backend in BACKENDS
    _IMPLEMENTATIONS[operator][backend] = Implementation(run, obstacle, remark)


def why_unusable(operator: str, backend: str, device: torch.device | None = None) -> str | None:
    """Why `backend` cannot run `operator` on `device` (on any device of this machine if None); None if it can."""
    implementation = _IMPLEMENTATIONS[operator].get(backend)
    if implementation is None:
        return f"{operator} has no {backend} backend in this version"
    return implementation.obstacle(device)


@contextmanager
def stand_ins(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within it, `functions` serve their operators in this thread, whatever backend is asked for.

    So a model can be traced in forms that other formats can express, and its layers need not know of it.
    """
    before = _stand_ins.set(functions)
    try:
        yield
    finally:
        _stand_ins.reset(before)


def constant_when_compiled(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let torch.compile call `function` once instead of looking into it.

    This is torch.compiler.assume_constant_result without its import of the compiler, which takes over a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def uncompiled(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let torch.compile leave a function to Python, whole: it is a loop over time, or its shapes depend on data.

    This is torch.compiler.disable, whose import of the compiler waits until something is compiled.
    """
    left_out = torch._disable_dynamo(function)

    @functools.wraps(function)
    def either(*inputs: Any, **options: Any) -> Result:
        return (left_out if torch.compiler.is_compiling() else function)(*inputs, **options)

    return either


def resolve(operator: str, backend: str, device: torch.device) -> Callable[..., Any]:
    """The implementation of `operator` that `backend` names; the environment's EXLSTM_BACKEND stands in for "auto".

    Raises:
        ValueError: the backend is unknown, or cannot run here; the message says why.
    """
    chosen = _choose(operator, backend, device)
    return _stand_ins.get()[operator] if chosen == _STAND_IN else _IMPLEMENTATIONS[operator][chosen].run


@constant_when_compiled
def _choose(operator: str, backend: str, device: torch.device) -> str:
    """Which backend serves a call. torch.compile does not look into it: it may build libraries."""
    if operator in _stand_ins.get():
        return _STAND_IN
    if backend == "auto":
        backend = os.environ.get("EXLSTM_BACKEND") or "auto"
    if backend == "auto":
        return next(b for b in _IMPLEMENTATIONS[operator] if why_unusable(operator, b, device) is None)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}")
    if reason := why_unusable(operator, backend, device):
        raise ValueError(f"backend {backend!r} cannot run here: {reason}; backend='auto' picks one that can")
    return backend


def describe() -> dict[str, dict[str, str | None]]:
    """For every operator and backend: None where it is usable on this machine, else the reason why it is not."""
    return {op: {b: why_unusable(op, b) for b in BACKENDS} for op in _IMPLEMENTATIONS}


def remark_on(operator: str, backend: str) -> str:
    """Which calls a backend leaves to another; empty if none, or if there is no such backend."""
    implementation = _IMPLEMENTATIONS[operator].get(backend)
    return "" if implementation is None else implementation.remark
