"""How weights begin, as the xLSTM papers set them."""

import math

import torch
from torch import Tensor, nn


def small_init_(weight: Tensor, inputs: int) -> None:
    """Normal with variance 2 / (5 inputs), `inputs` being what one output sees (arXiv 1910.05895)."""
    nn.init.normal_(weight, std=math.sqrt(2 / (5 * inputs)))


def zero_biases_(*maps: nn.Module) -> None:
    """The biases of linear maps, where they have one."""
    for bias in (linear.bias for linear in maps):
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)


def wang_init_(weight: Tensor, width: int, depth: int) -> None:
    """Normal of deviation 2 / (depth sqrt(width)), for projections into the stream of `depth` blocks."""
    nn.init.normal_(weight, std=2 / (depth * math.sqrt(width)))


def spread_forget_bias_(bias: Tensor) -> None:
    """Forget gates from 3 to 6 across heads [H]: memories of about 20 to 400 steps."""
    if bias.is_meta:  # which has no numbers
        return
    with torch.no_grad():
        bias.copy_(torch.linspace(3.0, 6.0, bias.numel()))


def power_law_forget_bias_(bias: Tensor, index: int, depth: int) -> None:
    """Forget gates [H, D] from 5 down to -7 within a head; later blocks, `index` of `depth`, hold longer."""
    if bias.is_meta:
        return
    ratio = index / max(depth - 1, 1)
    place = torch.linspace(0.0, 1.0, bias.shape[-1])
    with torch.no_grad():
        bias.copy_((5.0 - 12.0 * place ** (0.3 + 1.3 * ratio)).expand_as(bias))
