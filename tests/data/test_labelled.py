"""Labelled texts: every one is in one split or counted, and none of the test is learnt from."""

import json

import pandas as pd
import pytest

from exlstm.data.labelled_sets import documents, signs
from exlstm.data.pip import download
from exlstm.data.text import read_labelled

ROWS = [(f"text {n}", "odd" if n % 2 else "even") for n in range(600)]
NAMES = ("text", "label", "group", "split")


def write(path, rows=ROWS):
    names = NAMES[: len(rows[0])]
    if path.suffix == ".tsv":
        path.write_text("\n".join("\t".join(row) for row in (names, *rows)) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    else:
        pd.DataFrame(rows, columns=list(names)).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_all_formats_hold_the_same_texts(tmp_path, suffix):
    data = read_labelled(write(tmp_path / f"x{suffix}"))
    assert [(x.text, x.label) for x in data.texts] == ROWS
    assert data.labels == ("even", "odd")
    assert data.notes == []


def test_labels_may_be_numbers_in_json_lines(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    assert read_labelled(tmp_path / "x.jsonl").labels == ("0", "1")


def test_what_is_left_out_or_doubtful_is_counted(tmp_path):
    rows = [
        *ROWS,
        ("  ", "odd"),
        ("x", ""),
        ("text  7", "odd"),
        ("text 8", "odd"),
        ("e\u0301", "odd"),
        ("\u00e9", "even"),
    ]
    data = read_labelled(write(tmp_path / "x.tsv", rows))
    assert len(data.texts) == len(ROWS) + 3
    assert data.notes == [
        "1 text without any text left out",
        "1 text without a label left out",
        "1 text equal to one before left out",
        "2 texts with more than one label, each of them kept",
        "1 text brought to Unicode normal form C",
    ]


def test_splits_hold_all_texts_once_and_groups_stay_together(tmp_path):
    rows = [(*row, f"g{n % 150}") for n, row in enumerate(ROWS)]
    splits = read_labelled(write(tmp_path / "x.tsv", rows)).split()
    everything = [splits.train, splits.validation, splits.test]
    assert sorted((x.text, x.label) for part in everything for x in part) == sorted(ROWS)
    groups = [{x.group for x in part} for part in everything]
    assert all(groups)
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert 0.05 < len(splits.test) / len(ROWS) < 0.15


def test_every_text_is_in_the_test_of_one_fold(tmp_path):
    data = read_labelled(write(tmp_path / "x.tsv"))
    folds = [data.split(k, 4) for k in range(4)]
    assert sorted(x.text for fold in folds for x in fold.test) == sorted(text for text, _ in ROWS)
    for fold in folds:
        assert len(fold.train) + len(fold.validation) + len(fold.test) == len(ROWS)
    with pytest.raises(ValueError, match="received fold 4 of 4"):
        data.split(4, 4)


def test_texts_of_the_test_are_left_out_of_training_and_that_is_said(tmp_path):
    # Groups put equal texts on both sides, as a file's own split may.
    rows = [(f"text {n % 500}", label, f"g{n}") for n, (_, label) in enumerate(ROWS * 2)]
    data = read_labelled(write(tmp_path / "x.tsv", [(t, f"{g}{label}", g) for t, label, g in rows]))
    splits = data.split()
    held = {x.text for x in [*splits.validation, *splits.test]}
    assert not {x.text for x in splits.train} & held
    assert not {x.text for x in splits.validation} & {x.text for x in splits.test}
    lost = len(data.texts) - sum(map(len, (splits.train, splits.validation, splits.test)))
    assert lost > 0
    said = [int(note.split()[0]) for note in splits.notes if "left out" in note]
    assert sum(said) == lost
    assert len(said) == 2


def test_the_files_own_test_is_kept_whole_and_validation_is_taken_from_train(tmp_path):
    rows = [(*row, "", "test" if n < 100 else "train") for n, row in enumerate(ROWS)]
    rows += [rows[0], rows[200], ("text 1", "odd", "", "train"), ("new", "other", "", "test")]
    data = read_labelled(write(tmp_path / "x.tsv", rows))
    splits = data.split()
    assert data.split_by_file
    assert [x.text for x in splits.test] == [*(f"text {n}" for n in range(100)), "text 0", "new"]
    assert 0 < len(splits.validation) < 60
    assert data.notes == [
        "1 text equal to one before left out",
        "1 text of the test part equal to one before; kept, for the file says what the test is",
    ]
    assert splits.notes == [
        "1 text for training left out, for the same text is in the test or validation part",
        "1 text of the test part with a label that no training text has",
    ]


def test_a_folder_of_files_is_split_by_their_names(tmp_path):
    for name, part in {"train": ROWS[:400], "validation": ROWS[400:450], "test": ROWS[450:]}.items():
        write(tmp_path / f"{name}.tsv", part)
    splits = read_labelled(tmp_path).split()
    assert [len(x) for x in (splits.train, splits.validation, splits.test)] == [400, 50, 150]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", "text\tlabel\na\tx\nb\tx\n", "has the label 'x' alone; expected texts of at least 2 classes"),
        ("x.jsonl", '{"text": "a", "topic": "x"}', "has no text with anything in 'label'"),
        ("x.jsonl", '{"label": "a"}', "line 1 has no text in 'text'; it has: label"),
        ("x.tsv", "text\tlabel\tsplit\na\tx\tdev\n", "x.tsv:2 has 'dev' in 'split'; expected one of train, validation"),
        ("x.csv", "a,b", r"ends in .jsonl, .parquet or .tsv, got .*\(.csv\)"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_labelled(tmp_path / name)


def test_too_few_texts_to_split_say_so(tmp_path):
    data = read_labelled(write(tmp_path / "x.tsv", [("a", "x"), ("b", "y")]))
    with pytest.raises(ValueError, match="at least 2 classes to train on and some for the test"):
        data.split()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no labelled texts in"):
        read_labelled(tmp_path / "empty")


def test_ratings_become_signs_and_tables_of_orange_documents():
    lines = "1_1\t-0.5\tbad\r\n1_2\t0.0\tneither\r\n2_1\t3.2\tgood\tand more\r\n"
    assert list(signs(lines)) == [("bad", "negative", "1"), ("good\tand more", "positive", "2")]
    table = ["Category\tText\n", "d\tstring\n", "class\t\n", "\t\n", "earn\tshares rise\n", "acq\tone buys another\n"]
    assert list(documents(table)) == [("shares rise", "earn"), ("one buys another", "acq")]


def test_without_the_package_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"in the Python package nothing==1.0, and pip cannot download it: ERROR: No match"
    ):
        download("nothing==1.0", "0" * 64, tmp_path)
