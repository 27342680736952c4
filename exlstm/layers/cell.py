"""The cell of the mLSTM layers: gates, matrix memory, and what becomes of its reads."""

from typing import cast

import torch
from torch import Tensor, nn

from exlstm.layers.init import spread_forget_bias_
from exlstm.layers.norm import MultiHeadNorm
from exlstm.layers.state import MemoryState
from exlstm.ops import HMLSTMState, MLSTMState, gated_norm, hmlstm, mlstm
from exlstm.ops.gated_norm import OutputGate


class MatrixMemoryCell(nn.Module):
    """Flat (`levels=0`) or hierarchical matrix memories of several heads: from queries to reads, and to outputs.

    Args:
        gate_inputs: channels the gates are computed from, by `linear(x, *cell.gate_parameters())`.
        width: of values and outputs, all heads together.
        heads: number of memories.
        levels: levels a hierarchical memory tells apart; all their log weights are 0 at first.
        soft_cap: bounds gate pre-activations and level weights x to soft_cap * tanh(x / soft_cap).
        input_bias: initial bias of the input gates; None draws it from a normal of deviation 0.1.
        eps: of the norm.
        norm_bias: the norm has a bias.
    """

    def __init__(
        self,
        gate_inputs: int,
        width: int,
        heads: int,
        *,
        levels: int = 0,
        soft_cap: float | None = None,
        input_bias: float | None = None,
        eps: float = 1e-5,
        norm_bias: bool = False,
    ) -> None:
        super().__init__()
        if levels < 0:
            raise ValueError(f"levels must be 0 (a flat memory) or more, got {levels}")
        self.heads, self.levels, self.soft_cap, self.input_bias = heads, levels, soft_cap, input_bias
        self.input_gate = nn.Linear(gate_inputs, heads)
        self.forget_gate = nn.Linear(gate_inputs, heads)
        self.level_gate = nn.Linear(gate_inputs, heads * levels) if levels else None
        self.norm = MultiHeadNorm(width, eps=eps, bias=norm_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gates that do not depend on the input yet."""
        for gate in (self.input_gate, self.forget_gate, self.level_gate):
            if gate is not None:
                nn.init.zeros_(gate.weight)
                nn.init.zeros_(gate.bias)
        if self.input_bias is None:
            nn.init.normal_(self.input_gate.bias, std=0.1)
        else:
            nn.init.constant_(self.input_gate.bias, self.input_bias)
        spread_forget_bias_(self.forget_gate.bias)

    def gate_parameters(self) -> tuple[Tensor, Tensor]:
        """Weight [G, gate_inputs] and bias [G] of all gates: input, forget and, hierarchical, levels of each head."""
        gates = [g for g in (self.input_gate, self.forget_gate, self.level_gate) if g is not None]
        return torch.cat([g.weight for g in gates]), torch.cat([g.bias for g in gates])

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor,
        state: MemoryState | None,
        *,
        mask: Tensor | None,
        reset: Tensor | None,
        return_state: bool,
    ) -> tuple[Tensor, MemoryState | None]:
        """q, k [B, T, any], v [B, T, width], gate pre-activations [B, T, G] to reads [B, T, H, D] and memory."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (q, k, v))
        if self.soft_cap is not None:
            gates = self.soft_cap * torch.tanh(gates / self.soft_cap)
        i, f, level = gates.split([self.heads, self.heads, self.heads * self.levels], -1)
        if not self.levels:
            h, after = mlstm(q, k, v, i, f, cast(MLSTMState | None, state), mask=mask, reset=reset)
            return h, after if return_state else None
        level, memory = level.unflatten(-1, (self.heads, self.levels)), cast(HMLSTMState | None, state)
        return hmlstm(q, k, v, i, f, level, memory, mask=mask, reset=reset, return_state=return_state)

    def output(
        self, h: Tensor, gate: Tensor, activation: OutputGate, *, skip: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """(norm(h) + skip) activation(gate): reads [B, T, H, D] and gate [B, T, width] to [B, T, width]."""
        if self.norm.bias is not None:  # the operator knows but one thing to add
            added = self.norm.bias if skip is None else self.norm.bias + skip[0] * skip[1]
            skip = torch.ones_like(self.norm.weight), added.expand(gate.shape)
        return gated_norm(h, self.norm.weight, gate, skip=skip, activation=activation, eps=self.norm.eps)
