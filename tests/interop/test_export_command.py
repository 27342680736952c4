"""`exlstm export` as a person types it, and the examples that use what it writes without exlstm."""

import csv
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from exlstm.arguments import flags
from exlstm.cli import main
from exlstm.data.text import BOS, EOS, Tokenizer
from exlstm.interop import Target, save_pretrained
from exlstm.interop.export import command
from exlstm.interop.export.check import Difference
from exlstm.interop.export.command import Export
from exlstm.models import Forecaster, LanguageModel
from tests.interop.weight_cases import LARGE, model_of
from tests.models.forecaster_cases import hourly

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = "the memory of a long sequence is written and read again in pieces of any length é\n"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n\n".join(WORDS * 3 for _ in range(40)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lm(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("lm") / "run"
    small = ["--steps", "3", "--model.pattern", "m", "--model.width", "32", "--length", "16", "--batch", "2"]
    assert main(["train", "lm", "--data", str(texts), "--out", str(out), *small]) == 0
    return out


@pytest.fixture(scope="module")
def demand(tmp_path_factory):
    path = tmp_path_factory.mktemp("demand") / "demand.csv"
    hourly(10)[["ds", "y"]].to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def forecast(demand, tmp_path_factory):
    out = tmp_path_factory.mktemp("forecast") / "run"
    words = ["--data", str(demand), "--horizon", "30", "--test-windows", "1", "--steps", "3", "--model.width", "16"]
    assert main(["train", "forecast", "--out", str(out), *words]) == 0
    return out


def without_exlstm(script: Path, *words: str) -> str:
    """What a script prints where neither exlstm nor torch can be imported."""
    code = "import sys, runpy; sys.modules['exlstm'] = sys.modules['torch'] = None; sys.argv = sys.argv[1:]"
    code += "; runpy.run_path(sys.argv[0], run_name='__main__')"
    run = subprocess.run(
        [sys.executable, "-c", code, str(script), *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_run_becomes_graphs_that_are_compared_on_its_text(lm, tmp_path, capsys):
    assert main(["export", str(lm), "--to", "torch-export", "--out", str(tmp_path / "e"), "--check", "20"]) == 0
    printed = capsys.readouterr()
    rows = {line.split()[0]: line.split() for line in printed.out.splitlines() if line.startswith(("step", "chunk"))}
    assert (rows["step"][-1], rows["chunk"][-1]) == ("40", "8")  # 20 tokens, 4 pieces, for one row and for three
    assert all(float(row[column]) < 1e-4 for row in rows.values() for column in (-3, -2))
    about = json.loads((tmp_path / "e" / "graph.json").read_text())
    assert about["files"] == ["tokenizer.json"]
    assert about["model"] == {"vocabulary": 259, "begin": BOS, "end": [BOS, EOS], "first_byte": 3}
    assert json.loads((tmp_path / "e" / "tokenizer.json").read_text()) == {"kind": "bytes"}
    assert "compared" not in printed.err


def test_a_language_model_without_a_run_is_compared_on_random_tokens(lm, tmp_path, capsys):
    words = ["--to", "torch-export", "--out", str(tmp_path / "e"), "--check", "3"]
    assert main(["export", str(lm / "model"), *words]) == 0
    assert "compared on random tokens" in capsys.readouterr().err
    assert (tmp_path / "e" / "tokenizer.json").is_file()


def test_a_converted_model_keeps_what_its_source_says_of_tokens(tmp_path, capsys):
    theirs = save_pretrained(
        model_of("large", LARGE["plain"]), tmp_path / "theirs", Target(to="transformers", dtype="bfloat16")
    )
    (theirs / "generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": 2}')
    (theirs / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    assert main(["convert", str(theirs), str(tmp_path / "ours")]) == 0
    assert main(["export", str(tmp_path / "ours"), "--to", "torch-export", "--check", "0"]) == 0
    assert "note: weights in bfloat16 are exported in float32\n" in capsys.readouterr().err
    out = tmp_path / "ours" / "export" / "torch-export"
    about = json.loads((out / "graph.json").read_text())
    assert about["model"] == {"vocabulary": 31, "begin": 0, "end": [2]}
    assert about["files"] == ["tokenizer.json", "generation_config.json"]
    assert all((out / name).is_file() for name in about["files"])


def test_the_example_asks_for_a_beginning_that_is_not_known(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    (tmp_path / "graph.json").write_text('{"model": {"vocabulary": 31}}')
    monkeypatch.setattr(sys, "argv", ["stream_text.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(EXAMPLES / "stream_text.py"), run_name="__main__")
    assert "does not say which token a text begins with; give its number with --begin" in capsys.readouterr().err


def test_graphs_that_differ_are_an_error(lm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "exlstm.interop.export.trials.stream", lambda *arguments: Difference(0.0, 2e-4, 1), raising=True
    )
    assert main(["export", str(lm), "--to", "torch-export", "--out", str(tmp_path)]) == 2
    assert "step by 2.0e-04, chunk by 2.0e-04; do not use them" in capsys.readouterr().err


def test_options_stay_what_they_are():
    assert flags(Export) == ["--to", "--out", "--weights", "--check"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("nowhere", "expected the folder of a run, got nowhere, which does not exist"),
        ("empty", "expected the folder of a run, got empty, which has no config.json"),
        (
            "translation",
            "models of the tasks lm, forecast and classify-text can be exported; translation is of translate",
        ),
        (
            "unfinished",
            "the run in unfinished was not finished; exlstm train lm --resume --out unfinished goes on with it",
        ),
        ("strange", "strange/config.json describes a model of type 'seq2seq', expected 'language_model'"),
        ("unfinished --check -1", "expected --check of at least 0, got -1"),
        ("unfinished --to tflite", "exlstm export: --to: expected 'onnx', 'openvino', 'torch-export', got 'tflite'"),
    ],
)
def test_a_mistake_gets_one_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "check_packages", lambda *asked: None)
    for name in ("empty", "translation", "unfinished", "strange"):
        (tmp_path / name).mkdir()
    for name, task in (("translation", "translate"), ("unfinished", "lm")):
        config = {"task": task, "options": {}, "resumed": []}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "strange" / "config.json").write_text(json.dumps({"model_type": "seq2seq"}))
    assert main(["export", *words.split()]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_missing_package_is_named_with_what_installs_it(lm, monkeypatch, capsys):
    for name, remedy in (("onnxscript", "pip install 'exlstm[export]'"), ("openvino", "pip install 'exlstm[export]'")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            patch.setitem(sys.modules, "onnx", sys)
            patch.setitem(sys.modules, "onnxruntime", sys)
            if name == "openvino":
                patch.setitem(sys.modules, "onnxscript", sys)
            assert main(["export", str(lm), "--to", "openvino" if name == "openvino" else "onnx"]) == 2
        error = capsys.readouterr().err
        assert f"needs the package {name} (" in error
        assert error.endswith(f": {remedy}\n")


def test_help_needs_no_torch():
    code = """
import sys
from exlstm.cli import main
try:
    main(["export", "--help"])
except SystemExit:
    pass
print(sorted({"torch", "numpy", "onnx"} & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"
    assert all(flag in result.stdout for flag in ("RUN", "--to", "--weights", "--check"))


@pytest.mark.slow
def test_a_text_is_written_without_exlstm(lm, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    assert main(["export", str(lm), "--out", str(tmp_path)]) == 0
    written = without_exlstm(
        EXAMPLES / "stream_text.py", str(tmp_path), "the mé", "--length", "30", "--temperature", "0"
    )
    model, tokenizer = LanguageModel.from_pretrained(lm / "model"), Tokenizer.load(lm / "model")
    tokens = model.generate([[BOS, *tokenizer.encode("the mé")]], most=30, stop=[BOS, EOS]).tokens[0]
    ours = tokenizer.decode(tokens)
    assert len(tokens) > 2  # a model of three steps may soon end its text
    assert written.rstrip("\n").startswith("the mé" + ours.rstrip("\ufffd\n"))


@pytest.mark.slow
def test_a_series_is_forecast_without_exlstm(forecast, demand, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    assert main(["export", str(forecast), "--out", str(tmp_path), "--check", "10"]) == 0
    forecaster = Forecaster.from_pretrained(forecast / "model")
    for horizon in (5, 30, 61):
        printed = without_exlstm(EXAMPLES / "stream_forecast.py", str(tmp_path), str(demand), "--horizon", str(horizon))
        rows = [*csv.DictReader(io.StringIO(printed))]
        expected = forecaster.predict(pd.read_csv(demand, parse_dates=["ds"]), horizon)
        assert [row["ds"] for row in rows] == [str(time) for time in expected["ds"]]
        levels = [name for name in expected if name.startswith("q")]
        found = np.array([[float(row[level]) for level in levels] for row in rows])
        np.testing.assert_allclose(found, expected[levels].to_numpy(), rtol=1e-4)


@pytest.mark.slow
def test_a_forecaster_and_a_classifier_are_compared_on_their_data(forecast, texts, tmp_path, capsys):
    assert main(["export", str(forecast), "--to", "torch-export", "--out", str(tmp_path / "f"), "--check", "12"]) == 0
    printed = capsys.readouterr().out
    assert all(any(line.startswith(name) for line in printed.splitlines()) for name in ("prepare", "forecast"))
    table, rows = tmp_path / "texts.tsv", ["text\tlabel"]
    rows += [f"{'good' if n % 2 else 'bad'} text number {n}\t{'yes' if n % 2 else 'no'}" for n in range(120)]
    table.write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    small = ["--steps", "2", "--tokenizer", "bytes", "--model.width", "16", "--model.pattern", "m", "--batch", "8"]
    assert main(["train", "classify-text", "--data", str(table), "--out", str(run), *small]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--to", "torch-export", "--out", str(tmp_path / "c")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][1:2] == ["classify"]
