"""A step program on a GPU: a few kernels for each layer, replayed as one CUDA graph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.hmlstm import HMLSTMState
from exlstm.ops.mlstm import MLSTMState
from exlstm.ops.program import Activation, Program, Ring, Weights
from exlstm.ops.slstm import SLSTMState
from exlstm.ops.triton import program_nodes as nodes
from exlstm.ops.triton.program_nodes import Call, Conv, Linear, Node, Vector
from exlstm.ops.triton.program_plan import planned

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class TritonProgram(Program):
    """A `Program` in Triton. Weights in full are the caller's own, not copied; the memories of cells are float32.

    Instructions that follow one another are run as one where they can be (`program_plan`); a register that only such
    an instruction would read is then not written. The first run compiles, the second is captured in a CUDA graph, and
    later ones replay it.

    Args:
        batch: rows B.
        dtype: of registers and weights: float32, float16 or bfloat16.
        device: a GPU; with TRITON_INTERPRET=1 also a CPU.
        weights: how the matrices of `linear` are kept: "full", "bfloat16", or "int8" with one scale for each output,
            where there is but one row; products of several rows take them in full.
    """

    state_dtype = torch.float32
    guarded = True

    def __init__(self, batch: int, dtype: torch.dtype, *, device: torch.device, weights: Weights = "full") -> None:
        self.batch, self.dtype, self.device = batch, dtype, device
        self.weights: Weights = "full" if weights == "int8" and batch > 1 else weights
        self._embeds: list[Node] = []  # before all others, which read the mask that these leave
        self._nodes: list[Node] = []
        self._plan: list[Node] = []
        # By type, states and what they are to be at the end of a run: one launch for all.
        self._copies: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        self._mask = torch.ones(batch, dtype=torch.bool, device=device)
        self._present = self._mask.view(torch.uint8)
        self._masked = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, mask: Tensor | None = None) -> None:
        if mask is not None:
            self._mask.copy_(mask)
        elif self._masked:
            self._mask.fill_(True)
        self._masked = mask is not None
        if self._graph is not None:
            self._graph.replay()
        elif self._plan and self.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(self.device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._execute()
            self._graph = graph
            graph.replay()
        else:
            self._plan = self._plan or planned([*self._embeds, *self._nodes], one_row=self.batch == 1)
            self._execute()

    def _execute(self) -> None:
        for node in self._plan:
            node.run(self._present)
        for states, after in self._copies.values():
            torch._foreach_copy_(states, after)

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        y, given = self.register(table.shape[1]), self._present
        self._present = torch.empty_like(given)
        function = partial(nodes.embed, tokens, _own(table), y, given, self._present)
        self._embeds.append(Call(function, [tokens, given], [y, self._present]))
        return y

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        add: Tensor | None = None,
        out: Tensor | None = None,
        stride: int | None = None,
        exact: bool = False,
    ) -> Tensor:
        matrix, scale = _own(weight if weight.dim() == 3 else weight[None]), None
        blocks, outputs, _ = matrix.shape
        if self.weights == "bfloat16" and not exact:
            matrix = matrix.bfloat16()
        elif self.weights == "int8" and not exact:
            matrix, scale = _in_bytes(matrix)
        y = self.register(blocks * outputs) if out is None else out
        bias = None if bias is None else _own(bias).view(blocks, outputs)
        return self._append(Linear(x, matrix, y, scale=scale, bias=bias, add=add, stride=stride or outputs))

    def headwise(self, x: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
        return self._call(partial(nodes.headwise, x, _own(weight), out), [x], [out])

    def norm(self, x: Tensor, weight: Tensor, eps: float, *, heads: int = 1, centred: bool = True) -> Tensor:
        y = self.register(x.shape[1])
        return self._append(Vector(x, y, weight=_own(weight), eps=eps, heads=heads, centred=centred))

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> Tensor:
        (after,) = self._copied_after(past)
        return self._append(Conv(x, _own(weight), _own(bias), past, after, self.register(x.shape[1])))

    def gate(self, kind: Activation, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self._append(Vector(other, self.register(x.shape[1]), gate=x, kind=kind))

    def multiply_add(self, x: Tensor, other: Tensor, weight: Tensor | None = None) -> Tensor:
        factor = None if weight is None else _own(weight)
        return self._append(Vector(x, self.register(x.shape[1]), other=other, factor=factor))

    def shift(self, x: Tensor, bias: Tensor) -> Tensor:
        return self._append(Vector(x, self.register(x.shape[1]), other=_own(bias).expand(x.shape)))

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return self._append(Vector(x, self.register(x.shape[1]), cap=cap))

    def mlstm(self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState) -> Tensor:
        y, inputs = self.register(v.shape[1]), [q, k, v, i, f]
        after = self._copied_after(state.n, state.m)
        return self._call(partial(nodes.mlstm, inputs, state, y, after), inputs, [y])

    def hmlstm(
        self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, level: Tensor, state: HMLSTMState
    ) -> Tensor:
        y, inputs = self.register(v.shape[1]), [q, k, v, i, f, level]
        after = self._copied_after(*state[1:])
        return self._call(partial(nodes.hmlstm, inputs, state, y, after), inputs, [y])

    def slstm(self, gates: Tensor, state: SLSTMState, *, forget_cap: float | None = None) -> Tensor:
        y = state.h.flatten(1)
        return self._call(partial(nodes.slstm, gates, state, forget_cap), [gates], [y])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ring: Ring, base: float = 10_000.0) -> Tensor:
        _, _, slots, width = ring.k.shape
        half, place = width // 2, dict[str, Any](dtype=torch.float64, device=self.device)
        angle = torch.arange(1, slots + 1, **place)[:, None] * base ** (-torch.arange(half, **place) / half)
        turns, y = (angle.cos().float(), angle.sin().float()), self.register(q.shape[1])
        return self._call(partial(nodes.attend, q, k, v, ring, turns, y), [q, k, v], [y])

    def _append(self, node: Vector | Linear | Conv) -> Tensor:
        self._nodes.append(node)
        return node.y

    def _call(self, function: Callable[[Tensor], None], reads: list[Tensor], writes: list[Tensor]) -> Tensor:
        self._nodes.append(Call(function, reads, writes))
        return writes[0]

    def _copied_after(self, *states: Tensor) -> list[Tensor]:
        """Where a run writes what these are to be after it: within it, all programs of a head read them."""
        copies = [torch.empty_like(state) for state in states]
        for state, copy in zip(states, copies, strict=True):
            before, after = self._copies.setdefault(state.dtype, ([], []))
            before.append(state)
            after.append(copy)
        return copies


def _own(weight: Tensor) -> Tensor:
    return weight.detach().contiguous()


def _in_bytes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """[blocks, outputs, inputs] as int8, and what each row of it is scaled by [blocks, outputs], in float32."""
    largest = matrix.abs().amax(-1).float()
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (matrix / scale[..., None]).round().to(torch.int8), scale
