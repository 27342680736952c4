"""What all Triton kernels share: where they can run, and how they take products."""

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOAT64 = "float64 runs in torch"
WIDEST = 512  # columns of a head's keys or values in the matrix memories
MATRICES = f"{FLOAT64}, and so do heads of more than {WIDEST} columns"
PROCESSORS = 132  # of an H100: with fewer programs some would have nothing to do
OLDEST = (8, 0)  # compute capability: bfloat16 on tensor cores


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(device: torch.device | None) -> str | None:
    """What keeps Triton kernels from running on `device` (on every device of this machine if None)."""
    if not _installed():
        return "the package triton is not installed (pip install 'exlstm[gpu]')"
    if interpreted():
        return None
    if device is not None and device.type != "cuda":
        return "it runs on GPUs, or with TRITON_INTERPRET=1, slowly, on a CPU"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    if torch.version.hip is not None:
        return "its kernels compile for AMD GPUs, but their tiles are for the shared memory of NVIDIA's"
    return _too_old(torch.cuda.current_device() if device is None or device.index is None else device.index)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _too_old(index: int) -> str | None:
    if (capability := torch.cuda.get_device_capability(index)) >= OLDEST:
        return None
    return f"the GPU has compute capability {capability[0]}.{capability[1]}; {OLDEST[0]}.{OLDEST[1]} or newer is needed"


def precision(dtype: torch.dtype) -> str:
    """How tl.dot takes products of float32 tiles in a call of `dtype`.

    Those of float32 exactly enough, unless PyTorch is told that tf32 will do. In half precision such tiles are memories
    of float16, all of whose bits tf32 keeps.
    """
    return "tf32x3" if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest" else "tf32"


def padded(width: int) -> int:
    """The tile that holds `width` entries: a power of two, and at least the 16 that tl.dot needs."""
    return max(16, 1 << (width - 1).bit_length())


def as_bytes(steps: Tensor | None) -> Tensor | None:
    """A mask or reset as kernels read it."""
    return None if steps is None else steps.contiguous().view(torch.uint8)


def contiguous(*tensors: Tensor | None) -> list[Any]:
    """Each as kernels address it."""
    return [None if x is None else x.contiguous() for x in tensors]


class Launch(NamedTuple):
    """One launch of a kernel, as `launch` was asked for it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int


_record: ContextVar[list[Launch] | None] = ContextVar("record", default=None)
_compiled: dict[tuple[Any, ...], Any] = {}
MOST_COMPILED = 4096  # of which a change of lengths makes ever more


def launch(kernel: Any, grid: tuple[int, ...], *, warps: int, stages: int, **arguments: Any) -> None:
    """Run `kernel` over `grid` with its arguments by name, on the device of its tensors.

    What Triton compiled for a call is kept by all that it may depend on: looking for it in Triton takes longer than a
    small kernel runs.
    """
    if (record := _record.get()) is not None:
        record.append(Launch(kernel, grid, arguments, warps, stages))
        return
    device = next(x.device for x in arguments.values() if isinstance(x, Tensor))
    values = [arguments[name] for name in kernel.arg_names]
    key = (id(kernel), warps, stages, device, *[_kind(x) if isinstance(x, Tensor) else x for x in values])
    compiled = _compiled.get(key)
    with _current(device):
        if compiled is not None:
            compiled[(*grid, 1, 1)[:3]](*values)
            return
        compiled = kernel[grid](*values, num_warps=warps, num_stages=stages)
    if compiled is not None:  # the interpreter compiles nothing
        if len(_compiled) >= MOST_COMPILED:
            _compiled.clear()
        _compiled[key] = compiled


def _kind(x: Tensor) -> tuple[torch.dtype, bool]:
    """What compiled code depends on: type and alignment."""
    return x.dtype, x.data_ptr() % 16 == 0


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Within it `device` is the current GPU."""
    is_current = device.type != "cuda" or device.index == torch.cuda.current_device()
    return nullcontext() if is_current else torch.cuda.device(device)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within it nothing runs: the launches are listed instead, for instance to compile them for an absent GPU."""
    launches: list[Launch] = []
    before = _record.set(launches)
    try:
        yield launches
    finally:
        _record.reset(before)
