"""The formats that graphs are written in."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from exlstm.interop.export.graph import Graph
from exlstm.interop.export.packages import check_packages

To = Literal["onnx", "openvino", "torch-export"]
Weights = Literal["full", "int8"]


class Session(Protocol):
    """A graph that runs: arrays by name in, arrays by name out."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


def require(to: To, weights: Weights) -> None:
    """Find the format and its packages, before the work of an export.

    Raises:
        ValueError: format or weights are none of those there are, do not go together, or a package is not installed.
    """
    _module(to)
    if weights not in get_args(Weights):
        raise ValueError(f"expected weights= 'full' or 'int8', received {weights!r}")
    if to == "torch-export" and weights == "int8":
        raise ValueError(
            "weights='int8' needs to='onnx' or to='openvino'; a torch.export program holds weights as the model does"
        )
    check_packages(to, weights)


def write(graph: Graph, folder: Path, to: To, *, weights: Weights = "full") -> Path:
    """Write a graph into a folder; the file, named after the graph.

    Raises:
        ValueError: as `require`.
    """
    require(to, weights)
    module = _module(to)
    path = folder / f"{graph.name}{module.SUFFIX}"
    module.write(graph, path, int8=weights == "int8")
    return path


def load(path: Path, graph: Graph, to: To, *, threads: int | None = None) -> Session:
    """Open what `write` wrote in the program that runs such files, on the CPU.

    Raises:
        ValueError: its package is not installed.
    """
    return _module(to).Session(path, graph, threads=threads)


def _module(to: str) -> Any:
    modules = {"onnx": "to_onnx", "openvino": "to_openvino", "torch-export": "to_torch"}
    if to not in modules:
        raise ValueError(f"expected to= one of {', '.join(map(repr, modules))}, received {to!r}")
    return import_module(f"exlstm.interop.export.{modules[to]}")
