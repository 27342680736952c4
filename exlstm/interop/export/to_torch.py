"""Graphs as torch.export programs, which run in torch without exlstm."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from exlstm.interop.export.graph import Graph, trace
from exlstm.interop.export.packages import quiet

SUFFIX = ".pt2"


def write(graph: Graph, path: Path, *, int8: bool = False) -> None:
    """Write a graph, with full weights."""
    assert not int8, "`formats.require` refuses it"
    with quiet():
        torch.export.save(trace(graph), path)


class Session:
    """A program of torch.export: `outputs = session(inputs)`, arrays by name."""

    def __init__(self, path: Path, graph: Graph, *, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)  # of the whole process: torch has no other number
        with quiet():
            self._run = torch.export.load(path).module()
        self._inputs, self._outputs = ([port.name for port in ports] for ports in (graph.inputs, graph.outputs))

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = self._run(*(torch.from_numpy(inputs[name]) for name in self._inputs))
        return {name: tensor.numpy() for name, tensor in zip(self._outputs, found, strict=True)}
