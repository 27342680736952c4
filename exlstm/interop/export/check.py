"""Whether an exported graph computes what the model computes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exlstm.interop.export.formats import Session
from exlstm.interop.export.graph import Graph, Port, piece

BOUND = 1e-4
"""What full weights may differ by at most."""


class Difference(NamedTuple):
    """The largest differences between a graph and the model, and after how many pieces.

    Of every tensor, in units of its largest entry where that is above 1.
    """

    outputs: float
    state: float
    pieces: int

    @property
    def largest(self) -> float:
        return _worst([self.outputs, self.state])

    def __str__(self) -> str:
        calls = f"{self.pieces} call{'s' if self.pieces != 1 else ''}"
        return f"{self.outputs:.1e} in outputs, {self.state:.1e} in states, {calls}"


def stream(graph: Graph, session: Session, pieces: Iterable[Sequence[Tensor]]) -> Difference:
    """Run a graph and the model itself over the same pieces, each carrying a state of its own, empty at first.

    Args:
        pieces: the inputs of every call but the state; the batch of all of them is the same.

    Returns:
        the differences; NaN where either gave one.
    """
    outputs = states = 0.0
    calls, made = 0, len(graph.made)
    ours = theirs = list[Tensor]()
    for given in pieces:
        if not calls:
            ours = theirs = graph.empty_state(len(given[0]))
        expected = piece(graph.module, [*given, *ours])
        found = session(named(graph.inputs, [*given, *theirs]))
        got = [torch.from_numpy(np.ascontiguousarray(found[port.name])) for port in graph.outputs]
        apart = [difference(a, b) for a, b in zip(got, expected, strict=True)]
        outputs, states = _worst([outputs, *apart[:made]]), _worst([states, *apart[made:]])
        ours, theirs, calls = expected[made:], got[made:], calls + 1
    return Difference(outputs, states, calls)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, in units of the largest expected entry where that is above 1."""
    assert found.shape == expected.shape, f"a graph gave {tuple(found.shape)} where {tuple(expected.shape)} was due"
    if not expected.numel():
        return 0.0
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def named(ports: Sequence[Port], tensors: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Tensors as a session takes them."""
    return {port.name: tensor.numpy() for port, tensor in zip(ports, tensors, strict=True)}


def worst(differences: Sequence[Difference]) -> Difference:
    """The largest of each, over all pieces."""
    outputs, states, pieces = zip(*differences, strict=True)
    return Difference(_worst([*outputs]), _worst([*states]), sum(pieces))


def _worst(numbers: list[float]) -> float:
    """The largest number, or NaN if any is."""
    return float(torch.tensor(numbers, dtype=torch.float64).max())
