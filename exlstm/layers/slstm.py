"""The sLSTM layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.layers.conv import CausalConv1d
from exlstm.layers.init import power_law_forget_bias_, small_init_
from exlstm.layers.linear import head_width
from exlstm.layers.norm import MultiHeadNorm
from exlstm.layers.state import LayerState, check_state
from exlstm.ops import SLSTMState, slstm


class SLSTM(nn.Module):
    """The sLSTM layer of the xLSTM paper (arXiv 2405.04517, figure 10): cells see each other's last outputs.

    `y, state = layer(x, state, mask=, reset=)` with x, y [B, T, width]. Masked steps output 0.

    Args:
        width: of inputs and outputs; a multiple of `heads`.
        heads: groups of cells; memory mixes within a head.
        kernel: steps the convolution before input and forget gates spans; 0 for none.
        dense: gates see all channels of the input, as an LSTM's do; else those of their head, as in the paper.
        forget_cap: bound of the forget gates' pre-activations from above; None for none.
        index: which block of the model this is; later ones begin with longer memories.
        depth: blocks in the model.
        eps: of the norm.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kernel: int = 4,
        dense: bool = False,
        forget_cap: float | None = None,
        index: int = 0,
        depth: int = 1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        d = head_width(width, heads)
        self.index, self.depth, self.forget_cap = index, depth, forget_cap
        self.conv = CausalConv1d(width, kernel) if kernel else None
        # Gates in the order i, f, z, o; weights map their third axis to their last.
        self.dense = dense
        self.input_weight = nn.Parameter(torch.empty(4, heads, width if dense else d, d))
        self.recurrent_weight = nn.Parameter(torch.empty(4, heads, d, d))
        self.bias = nn.Parameter(torch.empty(4, heads, d))
        self.norm = MultiHeadNorm(width, eps=eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No memory mixing at first; the forget gates' biases follow a power law within each head."""
        small_init_(self.input_weight, self.norm.weight.numel())
        nn.init.zeros_(self.recurrent_weight)
        nn.init.zeros_(self.bias)
        power_law_forget_bias_(self.bias[1], self.index, self.depth)

    def forward(
        self,
        x: Tensor,
        state: LayerState[SLSTMState] | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, LayerState[SLSTMState] | None]:
        conv_state, cell = (None, None) if state is None else check_state(state, LayerState)
        if self.conv is None:
            gates = self._gates(x, self.input_weight)
        else:
            c, conv_state = self.conv(x, conv_state, mask=mask, reset=reset)
            first, last = self.input_weight.split(2)
            gates = torch.cat([self._gates(F.silu(c), first), self._gates(x, last)], 2)
        gates = gates + self.bias.to(gates.dtype)  # under autocast a bias in float32 would make all of them so
        h, cell = slstm(gates, self.recurrent_weight, cell, forget_cap=self.forget_cap, mask=mask, reset=reset)
        return self.norm(h), LayerState(conv_state, cell) if return_state else None

    def _gates(self, x: Tensor, weight: Tensor) -> Tensor:
        """Pre-activations [B, T, gates, H, D] from `x` [B, T, width], without bias."""
        if self.dense:
            return torch.einsum("btc,ghcd->btghd", x, weight)
        return torch.einsum("bthc,ghcd->btghd", x.unflatten(-1, weight.shape[1:3]), weight)
