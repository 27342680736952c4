"""Models in formats that other programs run, with the states of their layers as inputs and outputs.

    exported = export(model, "folder", "onnx")            # step.onnx, chunk.onnx, graph.json
    outputs = exported.session("step")(inputs)            # in ONNX Runtime, arrays by name

`exlstm export RUN` does this for the model of a run, and compares the graphs with it on the run's data.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exlstm.interop.export.check import BOUND, Difference, stream
    from exlstm.interop.export.graph import Axis, Graph, Port, trace
    from exlstm.interop.export.writing import Exported, export, graphs_of

_WHERE = {
    "check": ("BOUND", "Difference", "stream"),
    "graph": ("Axis", "Graph", "Port", "trace"),
    "writing": ("Exported", "export", "graphs_of"),
}
__all__ = ["BOUND", "Axis", "Difference", "Exported", "Graph", "Port", "export", "graphs_of", "stream", "trace"]


def __getattr__(name: str) -> Any:
    """Imported when first named: the options of `exlstm export` are here too, and need no torch."""
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
