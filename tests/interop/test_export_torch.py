"""Exported graphs in torch alone: what `torch.export` makes of models computes what they compute, states included."""

import json
import math

import pytest
import torch
from export_cases import language_model, tokens

from exlstm import Seq2Seq
from exlstm.data.text import Tokenizer
from exlstm.interop.export import BOUND, Difference, export, stream
from exlstm.interop.export.check import difference, named
from exlstm.interop.export.states import leaves, names
from exlstm.interop.export.trials import try_language
from exlstm.interop.export.writing import facts_of
from exlstm.models import Forecaster

OURS = {"begin": 1, "end": [1, 2], "first_byte": 3}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return language_model("mhsa")


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("export"), "torch-export")


def test_steps_and_pieces_of_odd_lengths_are_the_model_for_one_row_and_three(exported, model):
    for name, found in try_language(exported, tokens(model, 3, 60)).items():
        assert found.largest <= BOUND, f"{name}: {found}"
        assert found.pieces >= 10


def test_pieces_and_steps_give_the_models_own_logits_and_state(exported, model):
    x = tokens(model, 2, 21)
    with torch.no_grad():
        logits, after = model(x)
    expected = dict(zip(names(after, "next"), leaves(after), strict=True))
    step, chunk = (exported.graphs[name] for name in ("step", "chunk"))
    empty = named(chunk.inputs[1:], chunk.empty_state(2))
    pieces = exported.session("chunk")({"tokens": x.numpy()} | empty)
    assert difference(torch.from_numpy(pieces["logits"]), logits) <= BOUND
    run, found = exported.session("step"), {name.replace("state", "next", 1): array for name, array in empty.items()}
    for place, token in enumerate(x.unbind(1)):
        state = {port.name: found[port.name.replace("state", "next", 1)] for port in step.inputs[1:]}
        found = run({"tokens": token.numpy()} | state)
        assert difference(torch.from_numpy(found["logits"]), logits[:, place]) <= BOUND
    for name, tensor in expected.items():
        assert difference(torch.from_numpy(pieces[name]), tensor) <= BOUND, name
        assert difference(torch.from_numpy(found[name]), tensor) <= BOUND, name


def test_graph_json_says_all_that_goes_in_and_comes_out(exported):
    about = json.loads((exported.folder / "graph.json").read_text())
    assert (about["format"], about["weights"], about["model_type"]) == ("torch-export", "full", "language_model")
    assert about["model"] == {"vocabulary": 23}
    step, chunk = about["graphs"]["step"], about["graphs"]["chunk"]
    assert step["inputs"] == [{"name": "tokens", "dtype": "int64", "shape": ["batch"]}]
    assert chunk["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", "time", 23]}]
    assert step["state"] == chunk["state"]
    states = {each["input"]: each for each in step["state"]}
    assert states["state.0.cell.C"] == {
        "input": "state.0.cell.C",
        "output": "next.0.cell.C",
        "dtype": "float32",
        "shape": ["batch", 2, 32, 32],
        "initial": 0,
    }
    assert (states["state.1.cell.position"]["dtype"], states["state.3.held"]["dtype"]) == ("int64", "bool")
    for graph in (step, chunk):
        assert (exported.folder / graph["file"]).stat().st_size > 0


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"tokenizer.json": {"kind": "bytes"}}, OURS),
        ({"tokenizer.json": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}}, {}),
        ({"tokenizer.json": []}, {}),
        ({"generation_config.json": {"bos_token_id": 0, "eos_token_id": 2}}, {"begin": 0, "end": [2]}),
        ({"generation_config.json": {"bos_token_id": None, "eos_token_id": [5, 22, 23]}}, {"end": [5, 22]}),
        ({"generation_config.json": {"bos_token_id": True, "eos_token_id": "2"}}, {}),
        ({"generation_config.json": [1]}, {}),
        ({"tokenizer.json": {}, "generation_config.json": {"bos_token_id": 7}}, {"begin": 7}),
        ({"tokenizer.json": {"kind": "bytes"}, "generation_config.json": {"bos_token_id": 7}}, OURS),
    ],
)
def test_of_tokens_no_more_is_said_than_files_tell(model, tmp_path, files, told):
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    assert facts_of(model, [tmp_path / name for name in files]) == {"vocabulary": 23} | told


def test_our_subwords_have_no_first_byte(model, tmp_path):
    pytest.importorskip("tokenizers")
    Tokenizer.train(["of subwords"], vocabulary=259).save(tmp_path)
    assert facts_of(model, [tmp_path / "tokenizer.json"]) == {"vocabulary": 23, "begin": 1, "end": [1, 2]}


def test_a_difference_in_an_output_or_in_a_state_is_found(exported, model):
    graph, run = exported.graphs["step"], exported.session("step")
    for name, part in (("logits", "outputs"), ("next.2.cell.n", "state"), ("next.1.cell.position", "state")):

        def spoilt(inputs, name=name):
            found = run(inputs)
            found[name] = found[name] + found[name].dtype.type(1)
            return found

        apart = stream(graph, spoilt, ([token] for token in tokens(model, 2, 3).unbind(1)))
        assert getattr(apart, part) > 0.05


def test_nan_is_no_agreement():
    assert not difference(torch.tensor([1.0, torch.nan]), torch.ones(2)) <= BOUND
    assert not Difference(1e-6, math.nan, 1).largest <= BOUND
    assert not Difference(math.nan, 1e-6, 1).largest <= BOUND


def test_a_model_stays_in_training_and_an_export_replaces_another(tmp_path):
    model = language_model("m", dropout=0.5).train()
    model.head.eval()
    (tmp_path / "graph.json").write_text("old")
    exported = export(model, tmp_path, "torch-export")
    x = tokens(model, 2, 3)
    assert stream(exported.graphs["chunk"], exported.session("chunk"), [[x]]).largest <= BOUND  # without dropout
    assert model.training
    assert model.dropout.training
    assert not model.head.training
    assert json.loads((tmp_path / "graph.json").read_text())["weights"] == "full"


@pytest.mark.parametrize(
    ("make", "to", "weights", "sentence"),
    [
        (
            lambda: language_model("m"),
            "tflite",
            "full",
            "expected to= one of 'onnx', 'openvino', 'torch-export', received",
        ),
        (lambda: language_model("m"), "onnx", "int4", "expected weights= 'full' or 'int8', received 'int4'"),
        (lambda: language_model("m"), "torch-export", "int8", "needs to='onnx' or to='openvino'"),
        (lambda: language_model("m").bfloat16(), "torch-export", "full", "expected a model in float32 on the CPU"),
        (
            lambda: Seq2Seq(vocabulary=9, bos=1, eos=2, encoder="m", decoder="m", width=32),
            "torch-export",
            "full",
            "received a Seq2Seq",
        ),
        (lambda: language_model("ml"), "torch-export", "full", "blocks of LSTM or GRU cannot be exported"),
        (lambda: Forecaster(), "torch-export", "full", "not trained yet"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_sentence(make, to, weights, sentence, tmp_path):
    (tmp_path / "graph.json").write_text("of an export before")
    with pytest.raises(ValueError, match=sentence):
        export(make(), tmp_path, to, weights=weights)
    assert (tmp_path / "graph.json").read_text() == "of an export before"
