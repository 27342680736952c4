"""The task `summarize` as a person types it; what it shares with `translate` is tested there."""

import json
import random

import pandas as pd
import pytest

from exlstm.cli import main
from exlstm.tasks.pair_metrics import rouge
from exlstm.tasks.summarize import first_sentence

pytest.importorskip("rouge_score")

SMALL = ["--steps", "2", "--vocabulary", "300", "--model.width", "64", "--model.pattern", "m", "--batch", "8"]
THINGS, DEEDS = ["reader", "writer", "editor", "player"], ["files", "mails", "songs", "notes", "maps"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    choose, lines = random.Random(0), ["source\ttarget\tgroup\tsplit"]
    for n in range(240):
        thing, deed, more = choose.choice(THINGS), choose.choice(DEEDS), choose.randint(0, 30)
        lines.append(f"This is a {thing}. It is for {deed}{' and more' * more}.\t{thing} of {deed} {n}\tg{n % 80}\t")
        lines[-1] += "test" if n % 80 < 8 else "train"
    folder = tmp_path_factory.mktemp("summaries")
    (folder / "texts.tsv").write_text("\n".join(lines) + "\n")
    words = ["train", "summarize", "--data", str(folder / "texts.tsv"), "--out", str(folder / "run"), *SMALL]
    assert main(words) == 0
    return folder / "run"


def test_scores_are_of_the_file_s_own_test_part_and_of_the_table(run):
    scores = json.loads((run / "scores.json").read_text())
    assert scores["data"]["test"] == 24
    assert set(scores["model"]) == {"ROUGE-1", "ROUGE-2", "ROUGE-L", "loss"}
    table = pd.read_csv(run / "summaries.tsv", sep="\t", keep_default_na=False)
    found, _ = rouge(list(table["summary"]), list(table["target"]))
    first, _ = rouge([first_sentence(text) for text in table["source"]], list(table["target"]))
    assert {name: scores["model"][name] for name in found} == pytest.approx(found)
    assert scores["baselines"] == {"first sentence": pytest.approx(first)}
    report = (run / "report.html").read_text()
    assert "ROUGE-1 by the length of the source" in report
    assert "Some summaries, chosen at random" in report


def test_a_line_is_summarised(run, capsys):
    assert main(["predict", str(run), "--text", "This is a reader. It is for files."]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["evaluate", str(run)]) == 0


def test_the_first_sentence():
    assert first_sentence(" One v1.2 here. Two.") == "One v1.2 here."
    assert first_sentence("no end") == "no end"


def test_rouge_by_hand():
    scores, _ = rouge(["a b c d", ""], ["a x c", "a"])
    # Words a, c of 4 and 3 are shared, no pair of neighbours is; the longest common subsequence is a c.
    assert scores == {"ROUGE-1": pytest.approx(100 * (4 / 7) / 2), "ROUGE-2": 0, "ROUGE-L": pytest.approx(200 / 7)}
