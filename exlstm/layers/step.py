"""How layers are written into a `Program`, which runs one step of a whole model.

`y, state = emit(layer, program, x)`: x and y are registers [B, width], and the state is the one that the layer's own
forward returns, of tensors that every run of the program changes in place; only attention keeps its own as a `Ring`.
Layers are emitted as in evaluation, without dropout.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.layers.attention import AttentionState, SlidingWindowAttention
from exlstm.layers.block import Block
from exlstm.layers.cell import MatrixMemoryCell
from exlstm.layers.classic import Classic
from exlstm.layers.conv import CausalConv1d
from exlstm.layers.mlp import GatedMLP
from exlstm.layers.mlstm import MLSTM, MLSTMLarge
from exlstm.layers.norm import LayerNorm, MultiHeadNorm, RMSNorm
from exlstm.layers.slstm import SLSTM
from exlstm.layers.state import LayerState
from exlstm.ops import HMLSTMState, MLSTMState, SLSTMState
from exlstm.ops.program import Program, Ring


@functools.singledispatch
def emit(layer: nn.Module, program: Program, x: Tensor) -> tuple[Tensor, Any]:
    """Append `layer` on the register `x` [B, width] to `program`; its output and its state.

    Raises:
        ValueError: there is no rule for this kind of layer.
    """
    raise ValueError(f"layers that can be decoded step by step are those of exlstm.layers, got {type(layer).__name__}")


def can_emit(model: nn.Module) -> bool:
    """Whether there are rules for all layers of `model`."""
    return not any(isinstance(layer, Classic) for layer in model.modules())


@emit.register
def _(layer: Block, program: Program, x: Tensor) -> tuple[Tensor, Any]:
    normed, _ = emit(layer.mixer_norm, program, x)
    y, state = emit(layer.mixer, program, normed)
    x = program.multiply_add(x, y)
    if layer.mlp is not None and layer.mlp_norm is not None:
        normed, _ = emit(layer.mlp_norm, program, x)
        y, _ = emit(layer.mlp, program, normed)
        x = program.multiply_add(x, y)
    return x, state


@emit.register
def _(layer: MLSTM, program: Program, x: Tensor) -> tuple[Tensor, LayerState[Any]]:
    inner, z = program.linear(x, layer.up.weight, layer.up.bias).chunk(2, 1)
    c, conv_state = emit(layer.conv, program, inner)
    c = program.gate("silu", c)
    qkv = program.register(3 * c.shape[1])
    q, k, v = qkv.chunk(3, 1)
    for projection, source, out in ((layer.q, c, q), (layer.k, c, k), (layer.v, inner, v)):
        program.headwise(source, projection.weight, out=out)
    if (biases := layer.qkv_bias()) is not None:
        qkv = program.shift(qkv, biases)
        q, k, v = qkv.chunk(3, 1)
    h, memory = _cell(layer.cell, program, q, k, v, qkv)
    h = program.gate("silu", z, program.multiply_add(h, c, layer.skip))
    return program.linear(h, layer.down.weight, layer.down.bias), LayerState(conv_state, memory)


@emit.register
def _(layer: MLSTMLarge, program: Program, x: Tensor) -> tuple[Tensor, Any]:
    q, k, v, o = program.linear(x, layer.qkvo.weight, layer.qkvo.bias).split(layer.sizes, 1)
    h, memory = _cell(layer.cell, program, q, k, v, x)
    return program.linear(program.gate("sigmoid", o, h), layer.out.weight, layer.out.bias), memory


def _cell(
    cell: MatrixMemoryCell, program: Program, q: Tensor, k: Tensor, v: Tensor, gate_input: Tensor
) -> tuple[Tensor, Any]:
    # Gates decide over many steps and are thin: their weights stay exact.
    gates = program.linear(gate_input, *cell.gate_parameters(), exact=True)
    if cell.soft_cap is not None:
        gates = program.soft_cap(gates, cell.soft_cap)
    i, f, level = gates.split([cell.heads, cell.heads, cell.heads * cell.levels], 1)
    dk, dv = q.shape[1] // cell.heads, v.shape[1] // cell.heads
    place: dict[str, Any] = {"dtype": program.state_dtype, "device": program.device}
    memory: MLSTMState | HMLSTMState
    if not cell.levels:
        memory = MLSTMState.empty(program.batch, cell.heads, dk, dv, **place)
        h = program.mlstm(q, k, v, i, f, memory)
    else:
        memory = HMLSTMState.empty(program.batch, cell.heads, cell.levels, dk, dv, **place)
        h = program.hmlstm(q, k, v, i, f, level, memory)
    return emit_norm(cell.norm, program, h, heads=cell.heads), memory


@emit.register
def _(layer: SLSTM, program: Program, x: Tensor) -> tuple[Tensor, LayerState[SLSTMState]]:
    _, heads, width, _ = layer.recurrent_weight.shape
    c, conv_state = x, None
    if layer.conv is not None:
        c, conv_state = emit(layer.conv, program, x)
        c = program.gate("silu", c)
    cell = SLSTMState.empty(program.batch, heads, width, dtype=program.state_dtype, device=program.device)

    def matrices(weight: Tensor) -> Tensor:
        """[gates, H, in, out] as [H, gates * out, in]."""
        return weight.permute(1, 0, 3, 2).flatten(1, 2)

    gates = program.register(heads * 4 * width)  # [H, 4, D]
    stride = 4 * width
    first, last = layer.input_weight.split(2)
    for source, weight, out in ((c, first, gates), (x, last, gates[:, 2 * width :])):
        if layer.dense:
            for head, matrix in enumerate(matrices(weight)):
                program.linear(source, matrix, out=out[:, head * stride : head * stride + 2 * width])
        else:
            program.linear(source, matrices(weight), out=out, stride=stride)
    program.linear(
        cell.h.flatten(1), matrices(layer.recurrent_weight), layer.bias.transpose(0, 1), add=gates, out=gates
    )
    h = program.slstm(gates, cell, forget_cap=layer.forget_cap)
    return emit_norm(layer.norm, program, h, heads=heads), LayerState(conv_state, cell)


@emit.register
def _(layer: SlidingWindowAttention, program: Program, x: Tensor) -> tuple[Tensor, Ring]:
    q, k, v = program.linear(x, layer.qkv.weight).chunk(3, 1)
    slots, width = layer.window - 1, x.shape[1] // layer.heads
    ring = Ring(
        k=program.register(layer.heads, slots, width),
        v=program.register(layer.heads, slots, width),
        held=program.register(slots, dtype=torch.bool),
        first=program.register(dtype=torch.int64),
    )
    return program.linear(program.attend(q, k, v, ring), layer.out.weight), ring


@emit.register
def _(layer: CausalConv1d, program: Program, x: Tensor) -> tuple[Tensor, Tensor]:
    width, kernel = layer.weight.shape
    past = program.register(kernel - 1, width)
    return program.conv(x, layer.weight, layer.bias, past), past


@emit.register
def _(layer: GatedMLP, program: Program, x: Tensor) -> tuple[Tensor, None]:
    gate, up = program.linear(x, layer.gate_up.weight, layer.gate_up.bias).chunk(2, 1)
    return program.linear(program.gate(layer.activation, gate, up), layer.down.weight, layer.down.bias), None


@emit.register
def _(layer: LayerNorm, program: Program, x: Tensor) -> tuple[Tensor, None]:
    return emit_norm(layer, program, x), None


@emit.register
def _(layer: RMSNorm, program: Program, x: Tensor) -> tuple[Tensor, None]:
    return emit_norm(layer, program, x, centred=False), None


@emit.register
def _(layer: nn.Identity, program: Program, x: Tensor) -> tuple[Tensor, None]:
    return x, None


def emit_norm(norm: LayerNorm | RMSNorm | MultiHeadNorm, program: Program, x: Tensor, **how: Any) -> Tensor:
    """Append a norm; `how` says of what, as in `Program.norm`."""
    y = program.norm(x, norm.weight, norm.eps, **how)
    return y if norm.bias is None else program.shift(y, norm.bias)


def read_state(state: Any) -> Any:
    """A copy of a program's state in the form of the layers' own."""
    if isinstance(state, Ring):
        slots = state.held.shape[1]
        order = (state.first[:, None] + torch.arange(slots, device=state.first.device)) % max(
            slots, 1
        )  # the oldest first
        rows = torch.arange(len(order), device=order.device)[:, None]
        k, v = state.k.transpose(1, 2), state.v.transpose(1, 2)
        return AttentionState(*(part[rows, order] for part in (k, v, state.held)))
    if isinstance(state, tuple):
        parts = [read_state(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return None if state is None else state.clone()


def write_state(state: Any, source: Any) -> None:
    """Copy a state of the layers' own, of the shapes that `read_state` returns, into a program's."""
    if isinstance(state, Ring):
        state.first.zero_()
        state = (state.k.transpose(1, 2), state.v.transpose(1, 2), state.held)
    if isinstance(state, tuple):
        for part, value in zip(state, source, strict=True):
            write_state(part, value)
    elif state is not None:
        state.copy_(source)
