"""A model as a function of tensors, with a name for everything that goes in and comes out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.interop.export.forms import FORMS
from exlstm.interop.export.states import leaves, names
from exlstm.ops.backends import stand_ins

STATE, NEXT = "state", "next"
"""What the names of a state's tensors begin with, before a graph has run and after."""


@dataclass(frozen=True)
class Axis:
    """An axis of any length: `each * n + before`, where n >= 1 is the same for all axes of this name."""

    name: str
    each: int = 1
    before: int = 0

    def length(self, n: int) -> int:
        return self.each * n + self.before

    def __str__(self) -> str:
        name = self.name if self.each == 1 else f"{self.each} {self.name}"
        return f"{name} + {self.before}" if self.before else name


BATCH = Axis("batch")
Size = int | Axis


@dataclass(frozen=True)
class Port:
    """A tensor that goes into a graph, or comes out of it."""

    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype = torch.float32

    def about(self) -> dict[str, Any]:
        """For graph.json."""
        shape = [size if isinstance(size, int) else str(size) for size in self.shape]
        return {"name": self.name, "dtype": str(self.dtype).removeprefix("torch."), "shape": shape}


@dataclass(frozen=True)
class Graph:
    """A function of tensors to be written in another format.

    `outputs = module(*inputs)`, all of them tensors in the order of the ports. The state, if there is one, is the last
    of the inputs and the last of the outputs.
    """

    name: str
    about: str
    """What it does, in a sentence."""
    module: nn.Module
    given: tuple[Port, ...]
    """The inputs before the state."""
    made: tuple[Port, ...]
    """The outputs before the state."""
    state: Any = None
    """A state of a batch of any size, for its structure."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        return (*self.given, *self._state_ports(STATE))

    @property
    def outputs(self) -> tuple[Port, ...]:
        return (*self.made, *self._state_ports(NEXT))

    def _state_ports(self, path: str) -> list[Port]:
        tensors = zip(names(self.state, path), leaves(self.state), strict=True)
        return [Port(name, (BATCH, *tensor.shape[1:]), tensor.dtype) for name, tensor in tensors]

    def empty_state(self, batch: int) -> list[Tensor]:
        """The tensors of a state that holds nothing: zeros, in every kind of layer."""
        return [tensor.new_zeros(batch, *tensor.shape[1:]) for tensor in leaves(self.state)]

    @property
    def axes(self) -> list[str]:
        """The names of all axes of any length."""
        return [*dict.fromkeys(axis.name for port in self.inputs for axis in port.shape if isinstance(axis, Axis))]

    def example(self) -> list[Tensor]:
        """Inputs for a trace, to which it does not matter what they hold.

        No axis is 1 long, which torch would take for a constant, and each has a number of its own.
        """
        of = {name: 3 + 2 * place for place, name in enumerate(self.axes)}
        shapes = [[s.length(of[s.name]) if isinstance(s, Axis) else s for s in port.shape] for port in self.inputs]
        return [torch.zeros(shape, dtype=port.dtype) for shape, port in zip(shapes, self.inputs, strict=True)]

    def describe(self) -> dict[str, Any]:
        """For graph.json."""
        kept = zip(self._state_ports(STATE), self._state_ports(NEXT), strict=True)
        return {
            "about": self.about,
            "inputs": [port.about() for port in self.given],
            "outputs": [port.about() for port in self.made],
            "state": [{"input": a.name, "output": b.name} | _without_name(a) | {"initial": 0} for a, b in kept],
        }


def trace(graph: Graph) -> torch.export.ExportedProgram:
    """The graph as torch sees it, for a batch of any size and axes of any length."""
    dims = {name: torch.export.Dim(name, min=1) for name in graph.axes}

    def of(axis: Axis) -> Any:
        dim = dims[axis.name]
        dim = dim if axis.each == 1 else axis.each * dim
        return dim + axis.before if axis.before else dim

    shapes = tuple({n: of(a) for n, a in enumerate(port.shape) if isinstance(a, Axis)} for port in graph.inputs)
    with torch.no_grad(), evaluating(graph.module), stand_ins(FORMS):
        program = torch.export.export(
            graph.module, tuple(graph.example()), dynamic_shapes={"inputs": shapes}, strict=False
        )
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # which would tell the paths of this machine
    return program


def piece(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the model itself makes of a graph's inputs, by the fastest backends there are."""
    with torch.no_grad(), evaluating(module):
        return [*module(*inputs)]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation within, and afterwards every part as it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _without_name(port: Port) -> dict[str, Any]:
    return {key: value for key, value in port.about().items() if key != "name"}
