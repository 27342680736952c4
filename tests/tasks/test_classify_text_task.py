"""The task `classify-text` as a person types it: train, evaluate, predict, resume, folds."""

import csv
import io
import json
import os
import random
import signal
import sys

import pandas as pd
import pytest

from exlstm.cli import main
from exlstm.models import classifier_training
from exlstm.tasks.classify_text_evaluation import LINEAR, MAJORITY, by_class, label_scores

SMALL = ["--steps", "3", "--tokenizer", "bytes", "--model.width", "16", "--model.pattern", "m", "--batch", "8"]
SMALL += ["--longest", "40"]
WORDS = {"good": ["fine", "lovely", "great"], "bad": ["poor", "dull", "awful"], "so so": ["plain", "usual"]}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    choose, lines = random.Random(0), ["text\tlabel"]
    for n in range(240):
        label = choose.choice(["good", "good", "bad", "so so"])
        words = [
            choose.choice(WORDS[label]),
            *choose.choices(["the", "film", "is", "a"], k=choose.randint(1, 9)),
            str(n),
        ]
        lines.append(f"{' '.join(words)}\t{label}")
    path = tmp_path_factory.mktemp("texts") / "texts.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    assert main(["train", "classify-text", "--data", str(texts), "--out", str(out), *SMALL]) == 0
    return out


def scores_of(run):
    return json.loads((run / "scores.json").read_text())


def test_a_run_holds_all_that_it_promises(run):
    for name in ("config.json", "metrics.jsonl", "predictions.csv", "model/model.safetensors", "model/tokenizer.json"):
        assert (run / name).stat().st_size > 0
    scores = scores_of(run)
    assert set(scores["model"]) == {"accuracy", "macro_f1", "loss"}
    assert set(scores["data"]["alone"]) == {"networks", "linear"}
    assert set(scores["baselines"]) >= {MAJORITY}
    assert sum(map(sum, scores["data"]["confusion"])) == scores["data"]["test"]
    report = (run / "report.html").read_text()
    assert "What share of the texts of a label" in report
    assert "Its surest mistakes" in report


def test_the_linear_member_knows_the_words_after_any_number_of_steps(run):
    assert scores_of(run)["data"]["alone"]["linear"]["accuracy"] == 1


def test_the_table_is_what_was_scored(run):
    table, scores = pd.read_csv(run / "predictions.csv"), scores_of(run)
    assert label_scores(list(table["label"]), list(table["predicted"])) == pytest.approx(
        {name: scores["model"][name] for name in ("accuracy", "macro_f1")}
    )
    right = sum(scores["data"]["confusion"][n][n] for n in range(3))
    assert right / len(table) == pytest.approx(scores["model"]["accuracy"])


def test_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    choose = random.Random(1)
    truths, found = (choose.choices("abcd"[: 3 + n], k=60) for n in (0, 1))
    scores = label_scores(truths, found)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(truths, found))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truths, found, average="macro", zero_division=0))
    precision, recall, _, support = metrics.precision_recall_fscore_support(truths, found, zero_division=0)
    table = by_class(truths, found)
    assert table["precision"].tolist() == pytest.approx(precision.tolist())
    assert table["recall"].tolist() == pytest.approx(recall.tolist())
    assert table["texts"].tolist() == support.tolist()


def test_evaluate_gives_the_same_scores_and_says_if_the_linear_baseline_is_left_out(run, monkeypatch, capsys):
    before = scores_of(run)
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    assert main(["evaluate", str(run)]) == 0
    assert scores_of(run)["model"] == before["model"]
    assert LINEAR not in scores_of(run)["baselines"]
    assert "the linear baseline is left out, for it needs scikit-learn" in capsys.readouterr().err


def test_predict_labels_files_and_a_text_and_each_by_itself(run, texts, tmp_path, capsys):
    lines = ["lovely film", "", "poor, dull and much longer than the others " * 3]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "in.txt")]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["text"] for row in rows] == lines
    for line, row in zip(lines, rows, strict=True):
        shares = {name: float(row[f"P({name})"]) for name in WORDS}
        assert sum(shares.values()) == pytest.approx(1)
        assert row["label"] == max(shares, key=shares.get)
        if not line:
            continue
        assert main(["predict", str(run), "--text", line]) == 0
        (alone,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert float(alone["P(good)"]) == pytest.approx(shares["good"], rel=1e-5)
    assert main(["predict", str(run), str(texts), "--out", str(tmp_path / "out.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "out.csv")) == 240


@pytest.mark.parametrize("folds", [None, 3])
def test_an_interrupted_run_that_is_resumed_ends_as_an_uninterrupted_one(texts, run, folds, tmp_path, monkeypatch):
    words = ["train", "classify-text", "--data", str(texts), *SMALL, *(["--folds", str(folds)] if folds else [])]
    whole = run
    if folds:
        whole = tmp_path / "whole"
        assert main([*words, "--out", str(whole)]) == 0
    calls, make = [], classifier_training.training_loss

    def interrupting(weights):
        def loss(model, batch):
            calls.append(batch)
            if len(calls) == (5 if folds else 2):
                os.kill(os.getpid(), signal.SIGINT)
            return make(weights)(model, batch)

        return loss

    monkeypatch.setattr(classifier_training, "training_loss", interrupting)
    out = tmp_path / "run"
    assert main([*words, "--out", str(out)]) == 130
    assert main(["train", "classify-text", "--resume", "--out", str(out)]) == 0
    assert len(calls) == 3 * (folds or 1)
    assert scores_of(out)["model"] == scores_of(whole)["model"]
    for name in [f"folds/{k}/" for k in range(1, folds + 1)] if folds else [""]:
        name = f"{name}model/model.safetensors"
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    if folds:
        assert scores_of(out)["data"]["test"] == 240
        assert main(["predict", str(out), "--text", "fine"]) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "classify-text"], "needs --data FILE with labelled texts"),
        (["train", "classify-text", "--data", "nowhere.tsv"], "there is no file or folder"),
        (["train", "classify-text", "--data", "TEXTS", "--grams", "-1"], "expected --grams of at least 0, got -1"),
        (["train", "classify-text", "--data", "TEXTS", "--folds", "1"], "expected --folds of at least 2, got 1"),
        (["train", "classify-text", "--data", "SPLIT", "--folds", "3"], "in its column split; leave out --folds"),
        (["train", "classify-txt"], "did you mean exlstm train classify-text?"),
        (["predict", "RUN"], "needs a file of texts, or a text by --text, and not both"),
        (["predict", "RUN", "nowhere.txt"], "there is no file nowhere.txt"),
    ],
)
def test_wrong_input_gets_one_sentence_and_exit_code_2(run, texts, words, sentence, capsys, tmp_path, monkeypatch):
    split = tmp_path / "split" / "x.tsv"
    split.parent.mkdir()
    split.write_text("text\tlabel\tsplit\na\tx\ttrain\nb\ty\ttrain\nc\tx\ttest\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    names = {"RUN": str(run), "TEXTS": str(texts), "SPLIT": str(split)}
    assert main([names.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert list((tmp_path / "here").iterdir()) == []
