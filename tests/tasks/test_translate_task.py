"""The task `translate` as a person types it: train, evaluate, predict."""

import json
import random

import pandas as pd
import pytest

from exlstm.cli import main
from exlstm.data.text import Tokenizer
from exlstm.models import Seq2Seq
from exlstm.tasks.pair_metrics import bleu_and_chrf
from exlstm.tasks.pairs_evaluation import write

pytest.importorskip("sacrebleu")

SMALL = ["--steps", "3", "--vocabulary", "300", "--model.width", "64", "--model.pattern", "m", "--batch", "8"]
WORDS = {"the": "das", "memory": "Gedächtnis", "reads": "liest", "writes": "schreibt", "long": "lang", "text": "Text"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    choose, lines = random.Random(0), ["source\ttarget"]
    for _ in range(300):
        words = choose.choices([*WORDS], k=choose.randint(2, 25))
        lines.append(f"{' '.join(words)}\t{' '.join(WORDS[word] for word in words)}")
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["hierarchical", "attention"])
def run(request, pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    words = ["train", "translate", "--data", str(pairs), "--out", str(out), "--memory", request.param, *SMALL]
    assert main(words) == 0
    return out


def test_a_run_holds_all_that_it_promises(run):
    for name in ("config.json", "metrics.jsonl", "translations.tsv", "model/model.safetensors", "model/tokenizer.json"):
        assert (run / name).stat().st_size > 0
    scores = json.loads((run / "scores.json").read_text())
    assert set(scores["model"]) == {"BLEU", "chrF", "loss"}
    assert scores["data"]["signatures"]["BLEU"].startswith("nrefs:1|case:mixed")
    assert sum(part["pairs"] for part in scores["data"]["by_length"]) == scores["data"]["test"]
    report = (run / "report.html").read_text()
    assert "BLEU by the length of the source" in report
    assert "What the last block attends to in the source" in report


def test_the_table_is_what_was_scored(run):
    table = pd.read_csv(run / "translations.tsv", sep="\t", keep_default_na=False)
    scores = json.loads((run / "scores.json").read_text())["model"]
    found = bleu_and_chrf(list(table["translation"]), list(table["target"]))[0]
    assert found["BLEU"] == pytest.approx(scores["BLEU"])
    assert found["chrF"] == pytest.approx(scores["chrF"])


def test_evaluate_gives_the_same_scores(run):
    before = json.loads((run / "scores.json").read_text())["model"]
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "scores.json").read_text())["model"] == before


def test_predict_translates_a_file_or_a_text(run, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("the memory reads\n\ntext\n")
    assert main(["predict", str(run), str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.txt")]) == 0
    lines = (tmp_path / "out.txt").read_text().split("\n")
    assert len(lines) == 4
    assert lines[1] == ""
    capsys.readouterr()
    assert main(["predict", str(run), "--text", "the memory reads"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == lines[0]


def test_translations_do_not_depend_on_their_neighbours(run):
    model, tokenizer = Seq2Seq.from_pretrained(run / "model").double(), Tokenizer.load(run / "model")
    texts = ["the memory", "long text writes the long long text", "", "reads"]
    together = write(model, tokenizer, texts, beams=3)
    assert [write(model, tokenizer, [text], beams=3)[0] for text in texts] == together


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "translate"], "needs --data FILE with pairs of texts"),
        (["train", "translate", "--data", "nowhere.tsv"], "there is no file"),
        (["predict", "RUN"], "needs a text file, or a text by --text, and not both"),
        (["predict", "RUN", "--text", "x", "--beams", "0"], "expected --beams of at least 1, got 0"),
    ],
)
def test_wrong_input_gets_one_sentence_and_exit_code_2(run, words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
