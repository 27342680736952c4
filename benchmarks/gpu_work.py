"""What is timed on a GPU, ours and others', and how.

A contestant is a function from the sizes of a case to a call that works on the n-th of several sets of random inputs,
and to the bytes of a set. Times are between two CUDA events around a call, in a row of calls that take turns with the
sets, so that none finds its inputs in the cache.
"""

import time as clocks
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize, scaled_dot_product_attention

from benchmarks import gpu_layer
from exlstm.ops import hmlstm, mlstm, slstm

HEADS = 8
LEVELS = 17
SETS = 3
SECONDS = 0.2  # of calls that are timed
LEAST, MOST = 3, 100  # calls
FASTEST = 3e9  # cycles a second that no card exceeds
QUEUED = 0.05  # seconds of a call whose kernels fit into the queue of the device
DTYPE = torch.bfloat16


class Clock(Protocol):
    """Seconds that each of some calls takes."""

    def __call__(self, calls: Sequence[Callable[[], Any]]) -> list[float]: ...


def event_clock(calls: Sequence[Callable[[], Any]], ahead: float = 0.0) -> list[float]:
    """On a GPU: calls are queued one after the other, and the device's own clock read before and after each.

    `ahead` seconds, at the least, the device waits before each call, which the host may meanwhile queue as a whole.
    """
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls]
    torch.cuda.synchronize()
    for (begin, end), call in zip(marks, calls, strict=True):
        if ahead:
            torch.cuda._sleep(round(ahead * FASTEST))
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in marks]


def host_clock(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """On a CPU."""
    times = []
    for call in calls:
        begin = clocks.perf_counter()
        call()
        times.append(clocks.perf_counter() - begin)
    return times


def measure(calls: Sequence[Callable[[], Any]], clock: Clock, seconds: float = SECONDS) -> dict[str, Any]:
    """Median and extremes over about `seconds` of calls, which take turns after each has run once."""
    for call in calls:
        call()
    estimate = max(min(clock(calls)), 1e-6)
    number = min(max(round(seconds / estimate), LEAST), MOST)
    times = clock([calls[n % len(calls)] for n in range(number)])
    return {"seconds": median(times), "lowest": min(times), "highest": max(times), "calls": number}


def timed(who: str, mode: str, *, clock: Clock = event_clock, **sizes: Any) -> dict[str, Any]:
    """Time a contestant; mode "forward", or "both" for forward and backward.

    On a GPU "device_seconds" are those of short calls which the host has launched before the device begins them.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.manual_seed(20260101)
    build, options = CONTESTANTS[who]
    sets = []
    if on_gpu:
        torch.cuda.empty_cache()
    with torch.device(device):
        while len(sets) < SETS:
            run, inputs, note = build(**options, **sizes)
            sets.append(call_of(run, inputs, mode))
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    found = measure(sets, clock)
    if on_gpu:
        found["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        if found["seconds"] < QUEUED:  # not by torch.profiler: once used, it slows down what its process launches later
            found["device_seconds"] = median(event_clock(sets, ahead=2 * found["seconds"]))
    return found | {"note": note}


def compiled(who: str, **sizes: Any) -> dict[str, Any]:
    """Call a contestant once, and so compile what it compiles, on disk, for whoever times it later."""
    build, options = CONTESTANTS[who]
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        run, inputs, _ = build(**options, **sizes)
        call_of(run, inputs, "both")()
    return {"compiled": True}


def call_of(run: Callable[..., Tensor], inputs: list[Tensor], mode: str) -> Callable[[], Any]:
    if mode == "forward":
        return partial(torch.no_grad()(run), *inputs)
    sources = [x.requires_grad_() for x in inputs]
    with torch.no_grad():
        gradient = torch.randn_like(run(*inputs))
    return lambda: torch.autograd.grad(run(*sources), sources, gradient)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DTYPE)


def _sequences(batch: int, time: int, dk: int, dv: int) -> list[Tensor]:
    """q, k, v, i, f in [B, T, H, ...], with gates as trained models have them."""
    steps = (batch, time, HEADS)
    gates = 1.5 * torch.randn(*steps), 3 + 1.5 * torch.randn(*steps)
    return [_normal(*steps, dk), _normal(*steps, dk), _normal(*steps, dv), *(x.to(DTYPE) for x in gates)]


def ours(*, gate: str, backend: str, batch: int, time: int, dk: int, dv: int) -> tuple[Any, list[Tensor], str]:
    """Our mLSTM."""
    inputs = _sequences(batch, time, dk, dv)
    return lambda *x: mlstm(*x, input_gate=gate, backend=backend)[0], inputs, ""  # type: ignore[arg-type]


def ours_hierarchical(*, batch: int, time: int, dk: int, dv: int) -> tuple[Any, list[Tensor], str]:
    """Our hierarchical mLSTM."""
    inputs = [*_sequences(batch, time, dk, dv), _normal(batch, time, HEADS, LEVELS)]
    return lambda *x: hmlstm(*x, backend="triton")[0], inputs, f"{LEVELS} levels"


def mlstm_kernels(
    *, gate: str, chunk: int, warps: int | None = None, batch: int, time: int, dk: int, dv: int
) -> tuple[Any, list[Tensor], str]:
    """TFLA of the package mlstm_kernels, in its own layout [B, H, T, D].

    `warps` of its products inside chunks: with its own choice, 4, it crashes the compiler of triton 3.6 on an H100.
    """
    if gate == "exp":
        from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk as kernel
    else:
        from mlstm_kernels.torch.chunkwise.triton_xl_chunk_siging import mlstm_siging_chunkwise__xl_chunk as kernel
    options: dict[str, Any] = {"chunk_size": chunk, "autocast_kernel_dtype": DTYPE}
    if warps:
        options["num_warps_intra"] = warps
    if gate == "sigmoid":
        options["normalize"] = False
    inputs = [x.transpose(1, 2).contiguous() for x in _sequences(batch, time, dk, dv)]
    return lambda *x: kernel(*x, **options), inputs, f"chunks of {chunk}" + (f", {warps} warps" if warps else "")


def simple_gla(*, batch: int, time: int, dk: int, dv: int) -> tuple[Any, list[Tensor], str]:
    """Gated linear attention with a scalar gate: an mLSTM without input gate, normaliser and stabiliser."""
    from fla.ops.simple_gla import chunk_simple_gla

    q, k, v, _, f = _sequences(batch, time, dk, dv)
    return lambda *x: chunk_simple_gla(*x)[0], [q, k, v, logsigmoid(f.float())], "flash-linear-attention"


def gated_delta_rule(*, batch: int, time: int, dk: int, dv: int) -> tuple[Any, list[Tensor], str]:
    """The gated delta rule, keys normalised beforehand."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    q, k, v, i, f = _sequences(batch, time, dk, dv)
    inputs = [q, normalize(k.float(), dim=-1).to(DTYPE), v, logsigmoid(f.float()), i.sigmoid()]
    return lambda *x: chunk_gated_delta_rule(*x)[0], inputs, "flash-linear-attention"


def log_linear_attention(*, batch: int, time: int, dk: int, dv: int) -> tuple[Any, list[Tensor], str]:
    """Log-linear attention: hmlstm without input gate, normaliser and stabiliser."""
    from fla.ops.log_linear_attn import chunk_log_linear_attn

    q, k, v, _, f = _sequences(batch, time, dk, dv)
    levels = torch.rand(batch, time, HEADS, LEVELS)
    run = partial(chunk_log_linear_attn, scale=dk**-0.5)
    return lambda *x: run(*x)[0], [q, k, v, logsigmoid(f.float()), levels], "flash-linear-attention"


def attention(*, batch: int, time: int, dk: int, dv: int) -> tuple[Any, list[Tensor], str]:
    """Causal softmax attention of equal model width, in heads of 128."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads = HEADS * dv // 128
    inputs = [_normal(batch, heads, time, 128) for _ in range(3)]

    def run(*x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(*x, is_causal=True)

    return run, inputs, f"{heads} heads of 128"


def ours_scalar(
    *, backend: str, project: bool, batch: int, time: int, heads: int, width: int
) -> tuple[Any, list[Tensor], str]:
    """Our sLSTM; with `project`, the linear map that makes its pre-activations of inputs as wide as its outputs."""
    r = (torch.randn(4, heads, width, width) / width**0.5).to(DTYPE)
    if not project:
        x = _normal(batch, time, 4, heads, width)
        return lambda x, r: slstm(x, r, backend=backend)[0], [x, r], ""
    layer = nn.Linear(heads * width, 4 * heads * width).to(DTYPE)

    def run(x: Tensor, r: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        gates = nn.functional.linear(x, weight, bias).unflatten(-1, (4, heads, width))
        return slstm(gates, r, backend=backend)[0]

    inputs = [_normal(batch, time, heads * width), r, *(p.detach() for p in layer.parameters())]
    return run, inputs, "with the product of inputs and weights"


def lstm(*, dtype: torch.dtype, batch: int, time: int, heads: int, width: int) -> tuple[Any, list[Tensor], str]:
    """cuDNN's LSTM of equal hidden size; it multiplies its inputs by weights, too, and is one dense recurrence."""
    layer = nn.LSTM(heads * width, heads * width, batch_first=True).to(dtype)
    x = torch.randn(batch, time, heads * width, dtype=dtype)
    return lambda x, *_: layer(x)[0], [x, *layer.parameters()], f"{dtype}".removeprefix("torch.")


CONTESTANTS: dict[str, tuple[Callable[..., tuple[Any, list[Tensor], str]], dict[str, Any]]] = {
    "mlstm": (ours, {"gate": "exp", "backend": "triton"}),
    "mlstm sigmoid": (ours, {"gate": "sigmoid", "backend": "triton"}),
    "mlstm torch": (ours, {"gate": "exp", "backend": "torch"}),
    "hmlstm": (ours_hierarchical, {}),
    "xl_chunk 128": (mlstm_kernels, {"gate": "exp", "chunk": 128}),
    "xl_chunk 256": (mlstm_kernels, {"gate": "exp", "chunk": 256}),
    "xl_chunk 128, 8 warps": (mlstm_kernels, {"gate": "exp", "chunk": 128, "warps": 8}),
    "xl_chunk 256, 8 warps": (mlstm_kernels, {"gate": "exp", "chunk": 256, "warps": 8}),
    "xl_chunk sigmoid 128": (mlstm_kernels, {"gate": "sigmoid", "chunk": 128}),
    "simple GLA": (simple_gla, {}),
    "gated delta rule": (gated_delta_rule, {}),
    "log-linear attention": (log_linear_attention, {}),
    "flash attention": (attention, {}),
    "slstm": (ours_scalar, {"backend": "triton", "project": False}),
    "slstm + Linear": (ours_scalar, {"backend": "triton", "project": True}),
    "slstm torch": (ours_scalar, {"backend": "torch", "project": False}),
    "nn.LSTM": (lstm, {"dtype": torch.bfloat16}),
    "nn.LSTM float16": (lstm, {"dtype": torch.float16}),
    **gpu_layer.CONTESTANTS,
}
