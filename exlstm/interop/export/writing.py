"""A model as a folder: a file for each of its graphs, and graph.json, which says all that a consumer needs."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exlstm import __version__
from exlstm.interop.export.classify import classifier_facts, classifier_graphs
from exlstm.interop.export.forecast import forecast_facts, forecast_graphs
from exlstm.interop.export.formats import Session, To, Weights, load, require, write
from exlstm.interop.export.graph import Graph, evaluating
from exlstm.interop.export.language import language_facts, language_graphs
from exlstm.layers import Classic
from exlstm.models import Classifier, Forecaster, LanguageModel, Pretrained

ABOUT = "graph.json"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    to: To
    files: dict[str, Path]
    """By the name of the graph."""
    graphs: dict[str, Graph]

    def session(self, name: str, *, threads: int | None = None) -> Session:
        """A graph in the program that runs such files."""
        return load(self.files[name], self.graphs[name], self.to, threads=threads)


def export(
    model: Pretrained, folder: str | Path, to: To = "onnx", *, weights: Weights = "full", copy: Sequence[Path] = ()
) -> Exported:
    """Write the graphs of a model, with the states of its layers as inputs and outputs, and graph.json.

    Args:
        model: a `LanguageModel`, `Forecaster` or `Classifier` in float32 on the CPU.
        folder: made if it is missing; files of the same names in it are replaced.
        to: "onnx", "openvino" or "torch-export".
        weights: "full", or "int8" for matrices in 8 bits; "torch-export" has none.
        copy: files that a consumer needs besides. Which tokens begin and end a text, graph.json says as far as a
            tokenizer.json of ours among them tells, or a generation_config.json.

    Raises:
        ValueError: the model or an argument is none of these, a package is not installed, or a file is damaged.
    """
    require(to, weights)
    graphs, facts = graphs_of(model), facts_of(model, copy)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)  # without it the folder is no export: it comes last
    files = {graph.name: write(graph, folder, to, weights=weights) for graph in graphs}
    for file in copy:
        shutil.copyfile(file, folder / file.name)
    about = {
        "format": to,
        "weights": weights,
        "exlstm_version": __version__,
        "model_type": model.model_type,
        "files": [file.name for file in copy],
        "model": facts,
        "graphs": {graph.name: {"file": files[graph.name].name} | graph.describe() for graph in graphs},
    }
    text = json.dumps(about, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / ABOUT).write_text(text, encoding="utf-8")
    return Exported(folder, to, files, {graph.name: graph for graph in graphs})


def graphs_of(model: Pretrained) -> list[Graph]:
    """The graphs of a model, each a function of tensors.

    Raises:
        ValueError: there are none for this kind of model or of block, or it is not in float32 on the CPU.
    """
    found = {(p.dtype, p.device.type) for p in model.parameters()}
    if found - {(torch.float32, "cpu")}:
        listed = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in found))
        raise ValueError(f"expected a model in float32 on the CPU, received weights in {listed}; use .float().cpu()")
    if any(isinstance(layer, Classic) for layer in model.modules()):
        raise ValueError(
            "models with blocks of LSTM or GRU cannot be exported, as torch traces them for pieces of one length; "
            "use patterns of m, s, h and a"
        )
    with evaluating(model):
        match model:
            case LanguageModel():
                return language_graphs(model)
            case Forecaster():
                return forecast_graphs(model)
            case Classifier():
                return classifier_graphs(model)
    raise ValueError(f"language models, forecasters and classifiers can be exported, received a {type(model).__name__}")


def facts_of(model: Pretrained, files: Sequence[Path] = ()) -> dict[str, Any]:
    """What graph.json says of the model itself, with the files that come along."""
    match model:
        case LanguageModel():
            return language_facts(model, files)
        case Forecaster():
            return forecast_facts(model)
        case Classifier():
            return classifier_facts(model)
    raise AssertionError(model)
