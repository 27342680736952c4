"""The page on trained runs: their scores and commands, and nothing of the machine they ran on."""

import json
import random

from benchmarks.tasks import main
from exlstm.cli import main as exlstm

SMALL = ["--steps", "1", "--tokenizer", "bytes", "--model.width", "32", "--model.pattern", "m", "--batch", "4"]


def test_runs_become_tables_and_commands_without_paths_of_the_machine(tmp_path, capsys):
    folder = tmp_path / "descriptions-de"
    folder.mkdir()
    choose, lines = random.Random(0), ["source\ttarget"]
    for n in range(120):
        words = choose.choices(["one", "two", "three"], k=4)
        lines.append(f"{n} {' '.join(words)}\t{' '.join(reversed(words))} {n}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    runs = [tmp_path / name for name in ("first", "second")]
    for run, memory in zip(runs, ("flat", "attention"), strict=True):
        words = ["--data", str(folder / "pairs.tsv"), "--out", str(run), "--memory", memory, "--beams", "1", *SMALL]
        assert exlstm(["train", "translate", *words]) == 0
    assert main([*map(str, runs), "--out", str(tmp_path), "--note", "side by side"]) == 0
    (page,), (data,) = tmp_path.glob("TASKS-*.md"), tmp_path.glob("TASKS-*.json")
    text, found = page.read_text(), json.loads(data.read_text())
    assert str(tmp_path) not in text + data.read_text()
    assert "`exlstm train translate --data DATA/descriptions-de/pairs.tsv" in text
    assert "note: side by side" in text
    scores = json.loads((runs[1] / "scores.json").read_text())
    assert found["runs"][1]["scores"]["model"] == scores["model"]
    assert f"| {scores['model']['chrF']:.4g} |" in text
    assert text.count("| source copied |") == 1
