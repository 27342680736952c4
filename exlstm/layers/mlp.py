"""Gated feed-forward layer."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.layers.init import small_init_, wang_init_, zero_biases_

Activation = Literal["silu", "gelu"]


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)): SwiGLU with "silu", GEGLU with "gelu" (arXiv 2002.05202).

    Args:
        width: of inputs and outputs [..., width].
        hidden: channels between.
        activation: "silu" or "gelu" (exact).
        bias: both linear maps have biases.
        depth: blocks in the model, by which the output projection is scaled at first.
    """

    def __init__(
        self, width: int, hidden: int, *, activation: Activation = "silu", bias: bool = False, depth: int = 1
    ) -> None:
        super().__init__()
        if activation not in ("silu", "gelu"):
            raise ValueError(f"activation must be 'silu' or 'gelu', got {activation!r}")
        self.activation, self.depth = activation, depth
        self.gate_up = nn.Linear(width, 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        small_init_(self.gate_up.weight, self.gate_up.in_features)
        wang_init_(self.down.weight, self.down.out_features, self.depth)
        zero_biases_(self.gate_up, self.down)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        activate = F.silu if self.activation == "silu" else F.gelu
        return self.down(activate(gate) * up)
