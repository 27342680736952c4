"""mLSTM layers: what surrounds the matrix memory in the xLSTM paper, and in xLSTM-7B."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.layers.cell import MatrixMemoryCell
from exlstm.layers.conv import CausalConv1d
from exlstm.layers.init import small_init_, wang_init_, zero_biases_
from exlstm.layers.linear import HeadwiseLinear, head_width, round_up
from exlstm.layers.state import LayerState, MemoryState, check_state
from exlstm.layers.steps import Lookback, silence
from exlstm.ops import qkv_gates


class MLSTM(nn.Module):
    """The mLSTM layer of the xLSTM paper (arXiv 2405.04517, figure 11): the memory works in a wider space.

    `y, state = layer(x, state, mask=, reset=)` with x, y [B, T, width]. Masked steps output 0.

    Args:
        width: of inputs and outputs.
        heads: matrix memories side by side.
        levels: 0 for flat memories, else the levels of hierarchical ones (as `HMLSTM`).
        factor: inner width over `width`; it is rounded up to a multiple of 64 that the heads can share.
        inner: the inner width itself, a multiple of `heads` and `block`; None follows from `factor`.
        kernel: steps the convolution before queries and keys spans.
        block: channels that the maps to queries, keys and values mix.
        bias: all linear maps have biases (those of the gates do anyway).
        norm_bias: the norm of the reads has a bias.
        eps: of that norm.
        depth: blocks in the model, by which the output projection is scaled at first.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        levels: int = 0,
        factor: float = 2.0,
        inner: int | None = None,
        kernel: int = 4,
        block: int = 4,
        bias: bool = False,
        norm_bias: bool = False,
        eps: float = 1e-5,
        depth: int = 1,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads must be at least 1, got {heads}")
        if inner is None:
            inner = round_up(factor * width, math.lcm(64, heads))
        head_width(inner, heads)
        self.depth, self.biased = depth, bias or norm_bias
        self.up = nn.Linear(width, 2 * inner, bias=bias)
        self.conv = CausalConv1d(inner, kernel)
        self.q, self.k, self.v = (HeadwiseLinear(inner, block, bias=bias) for _ in range(3))
        self.cell = MatrixMemoryCell(3 * inner, inner, heads, levels=levels, eps=eps, norm_bias=norm_bias)
        self.skip = nn.Parameter(torch.empty(inner))
        self.down = nn.Linear(inner, width, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections and skip; convolution and cell have begun their own."""
        for projection in (self.up, self.q, self.k, self.v):
            small_init_(projection.weight, self.up.in_features)
        nn.init.ones_(self.skip)
        wang_init_(self.down.weight, self.down.out_features, self.depth)
        zero_biases_(self.up, self.q, self.k, self.v, self.down)

    def forward(
        self,
        x: Tensor,
        state: LayerState[MemoryState] | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, LayerState[MemoryState] | None]:
        conv_state, memory = (None, None) if state is None else check_state(state, LayerState)
        x, z = self.up(x).chunk(2, -1)
        steps = Lookback(self.conv.kernel - 1, x.shape[1], mask=mask, reset=reset)
        x, past = steps.align(x), self.conv.past(x, conv_state)
        projections = self.q.weight, self.k.weight, self.v.weight
        gate_weight, gate_bias = self.cell.gate_parameters()
        if (biases := self.qkv_bias()) is not None:
            gate_bias = gate_bias + (gate_weight * biases).sum(-1)
        convolution = self.conv.weight, self.conv.bias
        made = qkv_gates(x, past, convolution, projections, (gate_weight, gate_bias), reach=steps.visible)
        conv_state = steps.tail(torch.cat([past, x], 1))
        c, q, k, v, gates = map(steps.spread, made)
        if biases is not None:
            q, k, v = (y + bias for y, bias in zip((q, k, v), biases.to(q.dtype).chunk(3), strict=True))
        h, memory = self.cell(q, k, v, gates, memory, mask=mask, reset=reset, return_state=return_state)
        y = self.down(self.cell.output(h, z, "silu", skip=(self.skip, c)))
        return silence(y, mask) if self.biased else y, None if memory is None else LayerState(conv_state, memory)

    def qkv_bias(self) -> Tensor | None:
        """The biases of queries, keys and values [3 inner]; None if there are none."""
        biases: list[Tensor] = [bias for bias in (self.q.bias, self.k.bias, self.v.bias) if bias is not None]
        return torch.cat(biases) if biases else None


class MLSTMLarge(nn.Module):
    """The mLSTM layer of xLSTM-7B (arXiv 2503.13427): no convolution, queries and keys of half the width.

    `y, state = layer(x, state, mask=, reset=)` with x, y [B, T, width]. Masked steps output 0.

    Args:
        width: of inputs, values and outputs.
        heads: matrix memories side by side.
        levels: 0 for flat memories, else the levels of hierarchical ones (as `HMLSTM`).
        keys: width of queries and keys, a multiple of `heads`; None: half of `width`, rounded up to one.
        values: width of values, a multiple of `heads`; None: `width`.
        soft_cap: bound of the gate pre-activations; None for none.
        input_bias: initial bias of the input gates.
        bias: all linear maps have biases (those of the gates do anyway).
        norm_bias: the norm of the reads has a bias.
        eps: of that norm.
        depth: blocks in the model, by which the output projection is scaled at first.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        levels: int = 0,
        keys: int | None = None,
        values: int | None = None,
        soft_cap: float | None = 15.0,
        input_bias: float = -10.0,
        bias: bool = False,
        norm_bias: bool = False,
        eps: float = 1e-6,
        depth: int = 1,
    ) -> None:
        super().__init__()
        values = width if values is None else values
        keys = round_up(width / 2, heads) if keys is None else keys
        for total in (values, keys):
            head_width(total, heads)
        self.depth, self.biased, self.sizes = depth, bias or norm_bias, (keys, keys, values, values)
        self.qkvo = nn.Linear(width, sum(self.sizes), bias=bias)
        self.cell = MatrixMemoryCell(
            width,
            values,
            heads,
            levels=levels,
            soft_cap=soft_cap,
            input_bias=input_bias,
            eps=eps,
            norm_bias=norm_bias,
        )
        self.out = nn.Linear(values, width, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections; the cell has begun its own."""
        small_init_(self.qkvo.weight, self.qkvo.in_features)
        wang_init_(self.out.weight, self.out.out_features, self.depth)
        zero_biases_(self.qkvo, self.out)

    def forward(
        self,
        x: Tensor,
        state: MemoryState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, MemoryState | None]:
        q, k, v, o = self.qkvo(x).split(self.sizes, -1)
        gates = F.linear(x, *self.cell.gate_parameters())
        h, memory = self.cell(q, k, v, gates, state, mask=mask, reset=reset, return_state=return_state)
        y = self.out(self.cell.output(h, o, "sigmoid"))
        return silence(y, mask) if self.biased else y, memory
