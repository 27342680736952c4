"""Causal convolution over time, one filter a channel, with its tail as state."""

import torch
from torch import Tensor, nn

from exlstm.layers.steps import Lookback
from exlstm.ops.checks import check_shape
from exlstm.ops.linear import causal_conv


class CausalConv1d(nn.Module):
    """y_t = bias + sum_j weight[:, j] x_{t - kernel + 1 + j}, one filter a channel.

    `y, state = conv(x, state, mask=, reset=)` with x, y [B, T, width] and the state [B, kernel - 1, width],
    the last inputs (zeros stand for none). Masked steps count as absent and output 0; a reset hides all
    inputs before it.
    """

    def __init__(self, width: int, kernel: int = 4) -> None:
        super().__init__()
        if kernel < 1:
            raise ValueError(f"kernel must be at least 1, got {kernel}")
        self.weight = nn.Parameter(torch.empty(width, kernel))  # [:, -1] meets the current step
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within kernel^-1/2, as torch.nn.Conv1d."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        past = self.past(x, state)
        steps = Lookback(self.kernel - 1, x.shape[1], mask=mask, reset=reset)
        x = steps.align(x)
        y = causal_conv(x, past, self.weight, self.bias, reach=steps.visible)
        return steps.spread(y), steps.tail(torch.cat([past, x], 1)) if return_state else None

    @property
    def kernel(self) -> int:
        """Steps that an output sees."""
        return self.weight.shape[1]

    def past(self, x: Tensor, state: Tensor | None) -> Tensor:
        """The inputs before `x` [B, T, width]: the state, or zeros."""
        shape = (x.shape[0], self.kernel - 1, x.shape[2])
        if state is None:
            return x.new_zeros(shape)
        check_shape("the conv state", state, shape, "[B, kernel - 1, width]")
        return state.to(x.dtype)
