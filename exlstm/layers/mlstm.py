"""mLSTM layers: what surrounds the matrix memory in the xLSTM paper, and in xLSTM-7B."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.layers.cell import MatrixMemoryCell
from exlstm.layers.conv import CausalConv1d
from exlstm.layers.init import small_init_, wang_init_
from exlstm.layers.linear import HeadwiseLinear, head_width, round_up
from exlstm.layers.state import LayerState, MemoryState, check_state
from exlstm.layers.steps import Lookback
from exlstm.ops import qkv_gates


class MLSTM(nn.Module):
    """The mLSTM layer of the xLSTM paper (arXiv 2405.04517, figure 11): the memory works in a wider space.

    `y, state = layer(x, state, mask=, reset=)` with x, y [B, T, width]. Masked steps output 0.

    Args:
        width: of inputs and outputs.
        heads: matrix memories side by side.
        levels: 0 for flat memories, else the levels of hierarchical ones (as `HMLSTM`).
        factor: inner width over `width`; it is rounded up to a multiple of 64 that the heads can share.
        kernel: steps the convolution before queries and keys spans.
        depth: blocks in the model, by which the output projection is scaled at first.
    """

    def __init__(
        self, width: int, heads: int, *, levels: int = 0, factor: float = 2.0, kernel: int = 4, depth: int = 1
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads must be at least 1, got {heads}")
        inner = round_up(factor * width, math.lcm(64, heads))
        self.depth = depth
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.conv = CausalConv1d(inner, kernel)
        self.q, self.k, self.v = (HeadwiseLinear(inner, 4) for _ in range(3))
        self.cell = MatrixMemoryCell(3 * inner, inner, heads, levels=levels)
        self.skip = nn.Parameter(torch.empty(inner))
        self.down = nn.Linear(inner, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections and skip; convolution and cell have begun their own."""
        for projection in (self.up, self.q, self.k, self.v):
            small_init_(projection.weight, self.up.in_features)
        nn.init.ones_(self.skip)
        wang_init_(self.down.weight, self.down.out_features, self.depth)

    def forward(
        self,
        x: Tensor,
        state: LayerState[MemoryState] | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, LayerState[MemoryState]]:
        conv_state, memory = (None, None) if state is None else check_state(state, LayerState)
        x, z = self.up(x).chunk(2, -1)
        steps = Lookback(self.conv.kernel - 1, x.shape[1], mask=mask, reset=reset)
        x, past = steps.align(x), self.conv.past(x, conv_state)
        projections = self.q.weight, self.k.weight, self.v.weight
        made = qkv_gates(
            x, past, (self.conv.weight, self.conv.bias), projections, self.cell.gate_parameters(), reach=steps.visible
        )
        conv_state = steps.tail(torch.cat([past, x], 1))
        c, q, k, v, gates = map(steps.spread, made)
        h, memory = self.cell(q, k, v, gates, memory, mask=mask, reset=reset)
        y = self.down(self.cell.output(h, z, "silu", skip=(self.skip, c)))
        return y, LayerState(conv_state, memory)


class MLSTMLarge(nn.Module):
    """The mLSTM layer of xLSTM-7B (arXiv 2503.13427): no convolution, queries and keys of half the width.

    `y, state = layer(x, state, mask=, reset=)` with x, y [B, T, width]. Masked steps output 0.

    Args:
        width: of inputs, values and outputs.
        heads: matrix memories side by side.
        levels: 0 for flat memories, else the levels of hierarchical ones (as `HMLSTM`).
        soft_cap: bound of the gate pre-activations.
        input_bias: initial bias of the input gates.
        depth: blocks in the model, by which the output projection is scaled at first.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        levels: int = 0,
        soft_cap: float = 15.0,
        input_bias: float = -10.0,
        depth: int = 1,
    ) -> None:
        super().__init__()
        values = head_width(width, heads) * heads
        keys = round_up(width / 2, heads)
        self.depth, self.sizes = depth, (keys, keys, values, values)
        self.qkvo = nn.Linear(width, sum(self.sizes), bias=False)
        self.cell = MatrixMemoryCell(
            width, values, heads, levels=levels, soft_cap=soft_cap, input_bias=input_bias, eps=1e-6
        )
        self.out = nn.Linear(values, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections; the cell has begun its own."""
        small_init_(self.qkvo.weight, self.qkvo.in_features)
        wang_init_(self.out.weight, self.out.out_features, self.depth)

    def forward(
        self,
        x: Tensor,
        state: MemoryState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, MemoryState]:
        q, k, v, o = self.qkvo(x).split(self.sizes, -1)
        gates = F.linear(x, *self.cell.gate_parameters())
        h, memory = self.cell(q, k, v, gates, state, mask=mask, reset=reset)
        return self.out(self.cell.output(h, o, "sigmoid")), memory
