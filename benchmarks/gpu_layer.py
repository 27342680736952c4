"""What surrounds the memory in an mLSTM layer of the xLSTM paper, on a GPU: is it right, and how fast is it?

`exlstm.ops.qkv_gates` and `gated_norm` by Triton and by PyTorch's operations, and the layer with either.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_checks import judged, rounded
from exlstm.layers import MLSTM
from exlstm.ops import gated_norm, qkv_gates, reference
from exlstm.ops.backends import stand_ins

PARTS = ("qkv_gates", "gated_norm")
TAPS, BLOCK, GATES, HEADS = 4, 4, 8, 4
BATCH = 2
DTYPE = torch.bfloat16

#         channels, T, documents
CHECKED = ((1024, 2048, False), (96, 257, True), (64, 1, True))
TIMED = ((16, 4096, 2048), (4, 1024, 1024))  # B, T, channels


def cases(part: str, seed: int) -> list[dict[str, Any]]:
    """The checks of an operator, in the terms of `gpu_checks`."""
    dtypes = ("bfloat16", "float16", "float32")
    return [_case(part, dtype, *sizes, seed) for sizes, dtype in product(CHECKED, dtypes)]


def small_cases(part: str, seed: int) -> list[dict[str, Any]]:
    """Few and tiny ones, for Triton's interpreter."""
    return [_case(part, dtype, 16, 17, True, seed) for dtype in ("float32", "float16")]


def _case(part: str, dtype: str, channels: int, time: int, documents: bool, seed: int) -> dict[str, Any]:
    return {
        "operator": part, "gate": "", "dtype": dtype, "dk": channels, "dv": 0, "time": time, "state": False,
        "steps": documents, "gates": "random", "seed": seed,
    }  # fmt: skip


def check(seed: int, **case: Any) -> dict[str, Any]:
    """The outcome of a check, as `gpu_checks.check` has it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device=device).manual_seed(seed)
    channels, time = case["dk"], case["time"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.float64, generator=generator)

    reach = torch.randint(TAPS + 1, (BATCH, time), device=device, generator=generator) if case["steps"] else None
    names, draw, run = _PARTS[case["operator"]]
    inputs = dict(zip(names, draw(normal, BATCH, time, channels), strict=True))
    low = rounded(tuple(inputs.values()), _dtype(case))

    def results(dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
        sources = [x.detach().to(dtype).clone().requires_grad_() for x in low]
        outputs = run(*sources, reach=reach, backend=backend)
        mixed = torch.Generator(device=device).manual_seed(seed + 1000)
        weights = [torch.randn(y.shape, device=device, generator=mixed).to(_dtype(case)).to(y) for y in outputs]
        gradients = torch.autograd.grad(outputs, sources, weights)
        found = {f"output {place}": y.detach() for place, y in enumerate(outputs)}
        return found | {f"gradient of {name}": g for name, g in zip(names, gradients, strict=True)}

    return judged(case["dtype"], results)


def _dtype(case: dict[str, Any]) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[case["dtype"]]


def _qkv_inputs(normal: Callable[..., Tensor], batch: int, time: int, channels: int) -> Iterator[Tensor]:
    yield from (normal(batch, time, channels), normal(batch, TAPS - 1, channels))
    yield from (normal(channels, TAPS) / TAPS**0.5, normal(channels))
    yield from (normal(channels // BLOCK, BLOCK, BLOCK) / BLOCK**0.5 for _ in range(3))
    yield from (normal(GATES, 3 * channels) / channels**0.5, normal(GATES))


def _qkv(*x: Tensor, reach: Tensor | None = None, backend: str) -> tuple[Tensor, ...]:
    return tuple(qkv_gates(x[0], x[1], (x[2], x[3]), (x[4], x[5], x[6]), (x[7], x[8]), reach=reach, backend=backend))


def _norm_inputs(normal: Callable[..., Tensor], batch: int, time: int, channels: int) -> Iterator[Tensor]:
    yield from (normal(batch, time, HEADS, channels // HEADS), normal(channels), normal(batch, time, channels))
    yield from (normal(channels), normal(batch, time, channels))


def _norm(*x: Tensor, reach: Tensor | None = None, backend: str) -> tuple[Tensor]:
    return (gated_norm(x[0], x[1], x[2], skip=(x[3], x[4]), backend=backend),)


_PARTS: dict[str, tuple[tuple[str, ...], Callable[..., Iterator[Tensor]], Callable[..., tuple[Tensor, ...]]]] = {
    "qkv_gates": (
        ("x", "past", "filters", "their bias", "Wq", "Wk", "Wv", "gate weights", "gate bias"),
        _qkv_inputs,
        _qkv,
    ),
    "gated_norm": (("h", "weight", "gate", "skip weight", "skip"), _norm_inputs, _norm),
}


def timed_part(*, part: str, backend: str, batch: int, time: int, channels: int) -> tuple[Any, list[Tensor], str]:
    """A contestant of `gpu_work`: one of the operators, all of whose outputs are read."""
    _, draw, run = _PARTS[part]
    inputs = [x.to(DTYPE) for x in draw(torch.randn, batch, time, channels)]
    return lambda *x: torch.cat([y.flatten() for y in run(*x, backend=backend)]), inputs, ""


def timed_layer(*, around: str, batch: int, time: int, channels: int) -> tuple[Any, list[Tensor], str]:
    """A layer with so many inner channels; `around` "auto" or "torch", what serves what surrounds its memory."""
    layer = MLSTM(channels // 2, HEADS, inner=channels).to(DTYPE)
    others = {"qkv_gates": reference.qkv.qkv_gates, "gated_norm": reference.gated_norm.gated_norm}

    def run(x: Tensor, *_: Tensor) -> Tensor:
        with stand_ins(others if around == "torch" else {}):
            y: Tensor = layer(x)[0]
        return y

    x = torch.randn(batch, time, channels // 2).to(DTYPE)
    return run, [x, *layer.parameters()], ""


CONTESTANTS: dict[str, tuple[Callable[..., tuple[Any, list[Tensor], str]], dict[str, Any]]] = {
    **{part: (timed_part, {"part": part, "backend": "triton"}) for part in PARTS},
    **{f"{part} torch": (timed_part, {"part": part, "backend": "torch"}) for part in PARTS},
    "mLSTM layer": (timed_layer, {"around": "auto"}),
    "mLSTM layer, torch around it": (timed_layer, {"around": "torch"}),
}


def timed_cases(who: str) -> Iterator[dict[str, Any]]:
    """The sizes at which a contestant is timed."""
    for (batch, time, channels), mode in product(TIMED, ("forward", "both")):
        yield {"who": who, "mode": mode, "batch": batch, "time": time, "channels": channels}
