"""Small layers of every kind, in float64 with no parameter left at its initial value, and inputs for them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.layers import (
    HMLSTM,
    MLSTM,
    SLSTM,
    Block,
    BlockOptions,
    CausalConv1d,
    Classic,
    MLSTMLarge,
    SlidingWindowAttention,
)

WIDTH, HEADS = 16, 2

# These output 0 at masked steps; a block's output there means nothing.
MIXERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: CausalConv1d(WIDTH, 4),
    "conv of one step": lambda: CausalConv1d(WIDTH, 1),
    "mlstm": lambda: MLSTM(WIDTH, HEADS),
    "hmlstm": lambda: HMLSTM(WIDTH, HEADS, levels=4),
    "mlstm with biases": lambda: MLSTM(WIDTH, HEADS, bias=True, norm_bias=True),
    "mlstm of other sizes": lambda: MLSTM(WIDTH, HEADS, inner=40, kernel=3, block=5, eps=1e-3),
    "hmlstm with biases": lambda: HMLSTM(WIDTH, HEADS, levels=4, bias=True),
    "mlstm large": lambda: MLSTMLarge(WIDTH, HEADS),
    "hmlstm large": lambda: MLSTMLarge(WIDTH, HEADS, levels=4),
    "mlstm large with biases": lambda: MLSTMLarge(WIDTH, HEADS, bias=True, norm_bias=True),
    "mlstm large of other sizes": lambda: MLSTMLarge(WIDTH, HEADS, keys=6, values=20, soft_cap=None),
    "slstm": lambda: SLSTM(WIDTH, HEADS),
    "slstm without conv": lambda: SLSTM(WIDTH, HEADS, kernel=0),
    "slstm with dense gates": lambda: SLSTM(WIDTH, HEADS, dense=True),
    "slstm with dense gates without conv": lambda: SLSTM(WIDTH, HEADS, kernel=0, dense=True),
    "slstm with capped forget gates": lambda: SLSTM(WIDTH, HEADS, forget_cap=0.2),
    "attention": lambda: SlidingWindowAttention(WIDTH, HEADS, window=5),
    "attention to itself": lambda: SlidingWindowAttention(WIDTH, HEADS, window=1),
    "lstm": lambda: Classic(WIDTH, "lstm"),
    "gru": lambda: Classic(WIDTH, "gru"),
    "attention to all": lambda: SlidingWindowAttention(WIDTH, HEADS, window=64),
}


def _block(kind: str, style: Any) -> Callable[[], nn.Module]:
    return lambda: Block(WIDTH, HEADS, kind=kind, style=style, levels=4, window=5)


BIASED = BlockOptions(bias=True, mlp_bias=True, norm_bias=True, eps=1e-4, hidden=20, slstm_eps=1e-3, forget_cap=0.2)
OPTIONS = {
    "paper": replace(BIASED, inner=48, qkv_block=3, kernel=2, slstm_heads=4, slstm_kernel=0, activation="silu"),
    "large": replace(BIASED, keys=4, values=24, gate_soft_cap=5.0, slstm_kernel=2, slstm_dense=True, activation="gelu"),
}


def _optional_block(kind: str, style: Any) -> Callable[[], nn.Module]:
    return lambda: Block(WIDTH, HEADS, kind=kind, style=style, levels=4, options=OPTIONS[style])


LAYERS = MIXERS | {f"block {kind} {style}": _block(kind, style) for kind in "mshalg" for style in ("paper", "large")}
LAYERS |= {
    f"block {kind} {style} with options": _optional_block(kind, style) for kind in "ms" for style in ("paper", "large")
}


def stirred(layer: nn.Module) -> nn.Module:
    """`layer` in float64, with noise on every parameter."""
    layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def inputs(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)


def steps(batch: int, time: int, share: float) -> Tensor:
    """bool [B, T], about `share` of it True."""
    return torch.rand(batch, time) < share


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [t for part in tree or () for t in tensors(part)]


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Equal up to the rounding of float64 sums taken in another order."""
    actual, expected = tensors(actual), tensors(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)
