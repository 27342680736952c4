"""Graphs as ONNX, for ONNX Runtime."""

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exlstm.interop.export.decompositions import decompositions
from exlstm.interop.export.graph import Axis, Graph, trace
from exlstm.interop.export.packages import package, quiet

SUFFIX = ".onnx"
OPSET = 20
_PRODUCTS = ("MatMul", "Gemm")
_SYMBOL = re.compile(r"\bs\d+\b")  # how torch names lengths that are not known
_MOST_IN_A_FILE = 400_000_000  # weights; four bytes each, and a file of ONNX holds two gigabytes at most
THIN = 64
"""Matrices with fewer outputs keep their weights in full: gates, which decide over many steps, and cost little."""


def write(graph: Graph, path: Path, *, int8: bool = False) -> None:
    """Write a graph; with `int8`, matrices are quantised, and what they multiply is, as it comes (dynamically)."""
    with quiet(), torch.no_grad():
        program = convert(graph)
        if not int8:
            program.save(path)
            return
        with tempfile.TemporaryDirectory() as folder:
            full = Path(folder) / path.name
            program.save(full)
            quantise(full, path)


def convert(graph: Graph) -> Any:
    """The graph as a `torch.onnx.ONNXProgram` whose constants are computed."""
    optimizer = package("onnxscript.optimizer")
    program = torch.onnx.export(
        trace(graph).run_decompositions(decompositions()),
        input_names=[port.name for port in graph.inputs],
        output_names=[port.name for port in graph.outputs],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    # Whatever is made of weights alone, such as the gates' matrix put together, is made here once.
    optimizer.fold_constants(program.model, input_size_limit=1 << 60, output_size_limit=1 << 60)
    _name_axes(program.model, graph)
    return program


def _name_axes(model: Any, graph: Graph) -> None:
    """Give axes the names that the ports have, and leave out what tells of this machine: stack traces."""
    ir, axes = package("onnx_ir"), dict[str, str]()
    ports = [*zip(graph.inputs, model.graph.inputs, strict=True), *zip(graph.outputs, model.graph.outputs, strict=True)]
    for port, value in ports:
        for size, found in zip(port.shape, value.shape, strict=True):
            if isinstance(size, Axis):
                axes |= dict.fromkeys(_SYMBOL.findall(str(found)), size.name)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        bodies = [
            attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH
        ]
        for value in (*node.outputs, *(value for body in bodies for value in body.inputs)):
            value.metadata_props.clear()
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(dim, axes) for dim in value.shape])
    for port, value in ports:
        value.shape = ir.Shape([size if isinstance(size, int) else str(size) for size in port.shape])


def _renamed(dim: Any, axes: Mapping[str, str]) -> int | str:
    return dim if isinstance(dim, int) else _SYMBOL.sub(lambda found: axes.get(found[0], found[0]), str(dim))


def quantise(full: Path, path: Path) -> None:
    """Write a graph of full weights with its matrices as int8; one that has none is as it was.

    A matrix has a scale for each output; a stack of them has one for all, for ONNX Runtime's product takes no more.
    """
    onnx, quantization = package("onnx"), package("onnxruntime.quantization")
    model = onnx.load(full, load_external_data=False)
    sizes = {weight.name: weight.dims for weight in model.graph.initializer}
    products = [(node.name, sizes.get(node.input[1], ())) for node in model.graph.node if node.op_type in _PRODUCTS]
    flat = [name for name, size in products if len(size) == 2 and size[-1] >= THIN]
    stacks = [name for name, size in products if len(size) > 2 and size[-1] >= THIN]
    large = sum(math.prod(size) for size in sizes.values()) > _MOST_IN_A_FILE
    with tempfile.TemporaryDirectory() as folder:
        for names in (flat, stacks):
            if not names:  # which would mean all of them
                continue
            after = path if names is stacks or not stacks else Path(folder) / path.name
            quantization.quantize_dynamic(
                full,
                after,
                op_types_to_quantize=[*_PRODUCTS],
                weight_type=quantization.QuantType.QInt8,
                nodes_to_quantize=names,
                per_channel=names is flat,
                use_external_data_format=large,
            )
            full = after
        if not flat and not stacks:
            onnx.save(onnx.load(full), path, save_as_external_data=large)


class Session:
    """A graph in ONNX Runtime, on the CPU: `outputs = session(inputs)`, arrays by name."""

    def __init__(self, path: Path, graph: Graph, *, threads: int | None = None) -> None:
        runtime = package("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [port.name for port in graph.outputs]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))
