"""The task `lm` as a person types it: train, evaluate, predict, generate, resume."""

import json
import os
import random
import signal

import pytest
import torch

from exlstm.cli import main
from exlstm.data.text import BOS, Streams, Tokenizer
from exlstm.models import LanguageModel, language_training
from exlstm.models.language_training import total_loss
from exlstm.tasks.lm_data import reopen

SMALL = ["--steps", "4", "--model.pattern", "mh", "--model.width", "64", "--length", "32", "--batch", "4"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of documents made of a few words."""
    folder, choose = tmp_path_factory.mktemp("text"), random.Random(0)
    words = ["the", "memory", "of", "a", "long", "sequence", "is", "written", "and", "read", "é"]
    for n in range(50):
        text = " ".join(choose.choices(words, k=80)) + "\n"
        (folder / f"{n}.txt").write_text(text, encoding="utf-8")
    (folder / "twice.txt").write_text((folder / "3.txt").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    assert main(["train", "lm", "--data", str(text), "--out", str(out), *SMALL]) == 0
    return out


def test_a_run_holds_all_that_it_promises(run):
    for name in ("config.json", "metrics.jsonl", "scores.json", "report.html", "model/config.json"):
        assert (run / name).stat().st_size > 0
    for name in ("model/model.safetensors", "model/tokenizer.json", "tokens/train.bin"):
        assert (run / name).stat().st_size > 0
    scores = json.loads((run / "scores.json").read_text())
    assert scores["split"] == "test"
    assert set(scores["baselines"]) == {"4-gram", "bzip2"}
    assert sum(part["documents"] for part in scores["data"].values()) == 50
    assert "1 document equal to one before left out" in (run / "report.html").read_text()


def test_bits_per_character_are_the_mean_loss_over_characters(run):
    model, tokenizer = LanguageModel.from_pretrained(run / "model"), Tokenizer.load(run / "model")
    test = reopen(run, tokenizer).test
    total, count = total_loss(model, test)
    # The streams leave out fewer tokens than there are streams, and the first token has none before it.
    assert len(test) - 1 - 16 < count <= len(test) - 1
    bits = total / torch.tensor(2.0).log().item() / count
    scores = json.loads((run / "scores.json").read_text())["model"]
    assert scores["bits_per_token"] == pytest.approx(bits, rel=1e-6)
    assert scores["bits_per_character"] == pytest.approx(bits * len(test) / test.about.characters, rel=1e-6)
    assert test.about.characters < len(test)  # é is one character and two bytes, and every document begins with BOS


def test_evaluate_gives_the_same_scores(run, capsys):
    before = json.loads((run / "scores.json").read_text())["model"]
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "scores.json").read_text())["model"] == before
    assert f"{before['bits_per_character']:.3f}" in capsys.readouterr().out


def test_generate_is_the_model_with_the_same_seed(run, capsys):
    words = ["generate", str(run), "--prompt", "the memory", "--length", "30", "--seed", "1"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert first.startswith("the memory")
    assert main(["generate", str(run), "--length", "20", "--temperature", "0"]) == 0
    model, tokenizer = LanguageModel.from_pretrained(run / "model"), Tokenizer.load(run / "model")
    tokens = model.generate([[BOS]], most=20, stop=[BOS, 2]).tokens[0]
    assert capsys.readouterr().out == tokenizer.decode(tokens) + "\n"


def test_predict_scores_documents(run, text, tmp_path, capsys):
    assert main(["predict", str(run), str(text / "7.txt")]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header == "source,characters,tokens,bits_per_character,perplexity"
    assert row.startswith(f"{text / '7.txt'},{len((text / '7.txt').read_text(encoding='utf-8'))},")
    assert main(["predict", str(run), str(text), "--out", str(tmp_path / "scores.csv")]) == 0
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 51


def test_an_interrupted_run_that_is_resumed_ends_as_an_uninterrupted_one(text, tmp_path, run, monkeypatch):
    calls, loss = [], language_training.token_loss

    def interrupted(model, batch):
        calls.append(batch)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(model, batch)

    monkeypatch.setattr(language_training, "token_loss", interrupted)
    out = str(tmp_path / "run")
    assert main(["train", "lm", "--data", str(text), "--out", out, *SMALL]) == 130
    monkeypatch.setattr(language_training, "token_loss", loss)
    assert main(["train", "lm", "--resume", "--out", out]) == 0
    for name in ("model/model.safetensors", "model/tokenizer.json"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()


def test_a_run_on_the_sample_that_carries_its_memory_can_be_interrupted_and_resumed(tmp_path, monkeypatch):
    call = Streams.__call__

    def interrupted(streams, number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return call(streams, number)

    monkeypatch.setattr(Streams, "__call__", interrupted)
    out = tmp_path / "run"
    assert main(["train", "lm", "--carry", "--out", str(out), *SMALL]) == 130
    assert main(["train", "lm", "--resume", "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["options"]["carry"] is True
    assert json.loads((out / "scores.json").read_text())["model"]["bits_per_character"] > 0
    assert "--carry" in (out / "report.html").read_text()
    LanguageModel.from_pretrained(out / "model")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "lm", "--data", "nowhere"], "there is no file or folder"),
        (["predict", "RUN"], "needs a text file to score"),
        (["generate", "RUN", "--length", "0"], "expected --length of at least 1, got 0"),
        (["generate", "RUN", "--top-p", "2"], "expected top_p above 0 and at most 1"),
        (["train", "lm", "--tokenizer", "words"], "words"),
    ],
)
def test_wrong_input_gets_one_sentence_and_exit_code_2(run, words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.rglob("config.json")) == []


def test_a_forecast_has_nothing_to_generate(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"task": "forecast", "options": {}, "resumed": []}')
    assert main(["generate", str(tmp_path)]) == 2
    assert "is a run of the task 'forecast', which has no generate" in capsys.readouterr().err
