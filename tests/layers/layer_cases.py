"""Small layers of every kind, in float64 with no parameter left at its initial value, and inputs for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.layers import HMLSTM, MLSTM, SLSTM, Block, CausalConv1d, Classic, MLSTMLarge, SlidingWindowAttention

WIDTH, HEADS = 16, 2

# These output 0 at masked steps; a block's output there means nothing.
MIXERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: CausalConv1d(WIDTH, 4),
    "conv of one step": lambda: CausalConv1d(WIDTH, 1),
    "mlstm": lambda: MLSTM(WIDTH, HEADS),
    "hmlstm": lambda: HMLSTM(WIDTH, HEADS, levels=4),
    "mlstm large": lambda: MLSTMLarge(WIDTH, HEADS),
    "hmlstm large": lambda: MLSTMLarge(WIDTH, HEADS, levels=4),
    "slstm": lambda: SLSTM(WIDTH, HEADS),
    "slstm without conv": lambda: SLSTM(WIDTH, HEADS, kernel=0),
    "attention": lambda: SlidingWindowAttention(WIDTH, HEADS, window=5),
    "attention to itself": lambda: SlidingWindowAttention(WIDTH, HEADS, window=1),
    "lstm": lambda: Classic(WIDTH, "lstm"),
    "gru": lambda: Classic(WIDTH, "gru"),
    "attention to all": lambda: SlidingWindowAttention(WIDTH, HEADS, window=64),
}


def _block(kind: str, style: Any) -> Callable[[], nn.Module]:
    return lambda: Block(WIDTH, HEADS, kind=kind, style=style, levels=4, window=5)


LAYERS = MIXERS | {f"block {kind} {style}": _block(kind, style) for kind in "mshalg" for style in ("paper", "large")}


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
