"""Causal convolution over time, one filter a channel, with its tail as state."""

import torch
from torch import Tensor, nn

from exlstm.layers.steps import Lookback
from exlstm.ops.checks import check_shape


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
    ) -> tuple[Tensor, Tensor]:
        (batch, time, width), kernel = x.shape, self.weight.shape[1]
        if state is None:
            past = x.new_zeros(batch, kernel - 1, width)
        else:
            check_shape("the conv state", state, (batch, kernel - 1, width), "[B, kernel - 1, width]")
            past = state.to(x.dtype)
        steps = Lookback(kernel - 1, time, mask=mask, reset=reset)
        inputs = torch.cat([past, steps.align(x)], 1)
        y: Tensor = self.bias
        for j in range(kernel):
            tap = inputs[:, j : j + time]
            if steps.document is not None:
                same = steps.document[:, j : j + time] == steps.document[:, kernel - 1 :]
                tap = tap.masked_fill(~same[..., None], 0)
            y = torch.addcmul(y, tap, self.weight[:, j])
        return steps.spread(y), steps.tail(inputs)
