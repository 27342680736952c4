"""Exported graphs in ONNX Runtime and OpenVINO compute what the model computes, states included."""

import json
from dataclasses import replace

import pytest
import torch
from export_cases import language_model, tokens

from exlstm.interop.export import BOUND, export, stream, to_onnx, to_openvino
from exlstm.interop.export.formats import load
from exlstm.interop.export.trials import try_language
from exlstm.interop.export.writing import Exported

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

STEPS = 1000


def as_openvino(exported: Exported) -> Exported:
    """The same graphs in OpenVINO, without another trace."""
    pytest.importorskip("openvino")
    files = {name: path.with_suffix(".xml") for name, path in exported.files.items()}
    for name, path in files.items():
        to_openvino.convert(exported.files[name], path)
    return replace(exported, to="openvino", files=files)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    return language_model("hs")


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("export"), "onnx")


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_steps_and_pieces_of_odd_lengths_are_the_model_for_one_row_and_three(to, exported, model):
    there = exported if to == "onnx" else as_openvino(exported)
    for name, found in try_language(there, tokens(model, 3, 180)).items():
        assert found.largest <= BOUND, f"{name}: {found}"
        assert found.pieces >= 10


def test_ports_have_the_names_and_axes_that_graph_json_says(exported):
    import onnx

    about = json.loads((exported.folder / "graph.json").read_text())
    for name, each in about["graphs"].items():
        graph = onnx.load(exported.files[name]).graph
        for ports, outer, inner in ((graph.input, "inputs", "input"), (graph.output, "outputs", "output")):
            found = {p.name: [d.dim_param or d.dim_value for d in p.type.tensor_type.shape.dim] for p in ports}
            said = {p["name"]: p["shape"] for p in each[outer]} | {p[inner]: p["shape"] for p in each["state"]}
            assert [*found] == [*said]
            assert found == said


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_int8_is_smaller_and_near(to, exported, model, tmp_path):
    full, step = exported.files["step"], exported.graphs["step"]
    path = tmp_path / ("step.onnx" if to == "onnx" else "step.xml")
    if to == "onnx":
        to_onnx.quantise(full, path)
    else:
        pytest.importorskip("nncf")
        to_openvino.convert(full, path, int8=True)
    apart = stream(step, load(path, step, to), ([token] for token in tokens(model, 2, 30).unbind(1)))
    assert 1e-5 < apart.largest < 0.2
    kept = path if to == "onnx" else path.with_suffix(".bin")
    wide = [p for p in model.parameters() if p.dim() > 1 and p.shape[-1] >= 64]
    assert kept.stat().st_size < full.stat().st_size - 2 * sum(p.numel() for p in wide)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["paper", "large"])
@pytest.mark.parametrize("pattern", ["m", "s", "h", "mhsa"])
def test_a_thousand_steps_stay_with_the_model(pattern, style, tmp_path):
    model = language_model(pattern, style=style, levels=12, window=64)
    exported = export(model, tmp_path, "onnx")
    x = tokens(model, 3, STEPS)
    for there in (exported, as_openvino(exported)):
        for name, found in try_language(there, x).items():
            assert found.largest <= BOUND, f"{there.to} {name}: {found}"
