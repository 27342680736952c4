"""Graphs as OpenVINO's intermediate representation, by way of ONNX."""

import contextlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exlstm.interop.export import to_onnx
from exlstm.interop.export.graph import Graph
from exlstm.interop.export.packages import nncf, package, quiet

SUFFIX = ".xml"


def write(graph: Graph, path: Path, *, int8: bool = False) -> None:
    """Write a graph as .xml and, beside it, its weights as .bin; with `int8`, matrices are compressed by nncf."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "graph.onnx"
        to_onnx.write(graph, source)
        convert(source, path, int8=int8)


def convert(source: Path, path: Path, *, int8: bool = False) -> None:
    """Write what `to_onnx.write` wrote, with full weights, as `write` does."""
    openvino = package("openvino")
    model = openvino.Core().read_model(source)
    if int8:
        model = _compress(model, nncf())
    openvino.save_model(model, path, compress_to_fp16=False)


def _compress(model: Any, compressor: Any) -> Any:
    """The model with the weights of its matrices as int8, and a scale for each output."""
    thin = [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == "MatMul" and _outputs(node) < to_onnx.THIN
    ]
    scope = compressor.IgnoredScope(names=thin, validate=False)
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        return compressor.compress_weights(model, mode=compressor.CompressWeightsMode.INT8_SYM, ignored_scope=scope)


def _outputs(product: Any) -> int:
    """The number of outputs of a product with a constant matrix; of another, which has no weights, as if wide."""
    source = product.input_value(1).get_node()
    if source.get_type_name() != "Constant":
        return to_onnx.THIN
    return source.get_output_shape(0)[-2 if product.get_attributes()["transpose_b"] else -1]


class Session:
    """A graph in OpenVINO, on the CPU in float32: `outputs = session(inputs)`, arrays by name."""

    def __init__(self, path: Path, graph: Graph, *, threads: int | None = None) -> None:
        openvino = package("openvino")
        # Processors with bfloat16 instructions would use them unasked.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._model = openvino.Core().compile_model(path, "CPU", settings)
        self._names = [port.name for port in graph.outputs]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._model(dict(inputs), share_inputs=True)
        return {name: np.array(found[name]) for name in self._names}
