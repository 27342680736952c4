"""Pairs of texts: every one is in one split or counted, and batches hold what was read."""

import json

import pandas as pd
import pytest
import torch

from exlstm.data.text import BOS, EOS, PAD, LengthSampler, Tokenizer, TokenPairs, batches_by_length, read_pairs
from exlstm.data.text.rows import read_rows

ROWS = [(f"source {n}", f"target {n % 190}", f"g{n % 100}") for n in range(400)]


def write(path, rows=ROWS, names=("source", "target", "group")):
    if path.suffix == ".tsv":
        lines = ["\t".join(names), *("\t".join(row) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    else:
        pd.DataFrame(rows, columns=list(names)).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_all_formats_hold_the_same_rows(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}")
    found = [row.texts for row in read_rows(path, ["target", "source"], ["group", "more"])]
    assert found == [(target, source, group, None) for source, target, group in ROWS]


def test_a_table_without_names_is_read_by_place(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("a\tb\nc\td\n")
    assert [row.texts for row in read_rows(path, ["source", "target"], ["group"])] == [
        ("a", "b", None),
        ("c", "d", None),
    ]


def test_no_text_of_validation_or_test_is_trained_on_and_groups_stay_together(tmp_path):
    pairs = read_pairs(write(tmp_path / "x.tsv"))
    held = [*pairs.validation, *pairs.test]
    for place in (0, 1):
        assert not {pair[place] for pair in pairs.train} & {pair[place] for pair in held}
    groups = [{pair.group for pair in split} for split in (pairs.train, pairs.validation, pairs.test)]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    left_out = len(ROWS) - len(pairs.train) - len(held)
    assert left_out > 0
    assert pairs.notes == [
        f"{left_out} pairs for training left out, since the same source or target is in the test or validation part"
    ]


def test_empty_and_repeated_pairs_are_counted(tmp_path):
    rows = [*ROWS, ("  ", "x", "g"), ("x", "", "g"), ROWS[0], ("source  1 ", "target 1", "other")]
    notes = read_pairs(write(tmp_path / "x.jsonl", rows)).notes
    assert notes[:2] == ["2 pairs with nothing on one side left out", "2 pairs equal to one before left out"]


def test_no_more_than_asked_for_are_held_out(tmp_path):
    rows = [(f"s{n}", f"t{n}", f"g{n}") for n in range(1000)]
    pairs = read_pairs(write(tmp_path / "x.tsv", rows), most=10)
    assert (len(pairs.train), len(pairs.validation), len(pairs.test)) == (980, 10, 10)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", "one\ntwo\n", "has 1 tab-separated columns, expected 2: source, target"),
        ("x.tsv", "source\ttarget\na\n", "line 2 has 1 tab-separated columns, expected 2"),
        ("x.tsv", "source\ttarget\na\tb\n", "has 1 different pairs: too few"),
        ("x.jsonl", '{"source": "a"}', "line 1 has no text in 'target'; it has: source"),
        ("x.csv", "a,b", r"ends in .jsonl, .parquet or .tsv, got .*\(.csv\)"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / name)


@pytest.fixture
def tokens(tmp_path):
    return TokenPairs(read_pairs(write(tmp_path / "x.tsv")).train, Tokenizer.bytes(), longest=9)


def test_a_batch_holds_sources_targets_and_what_follows(tokens):
    batch = tokens.batch([5, 200])
    for row, number in enumerate((5, 200)):
        source, target = tokens.sources[number], tokens.targets[number]
        assert batch.source[row][batch.source_mask[row]].tolist() == source
        assert batch.target[row][batch.target_mask[row]].tolist() == [BOS, *target]
        assert batch.labels[row][batch.target_mask[row]].tolist() == [*target, EOS]
        assert (batch.labels[row][~batch.target_mask[row]] == PAD).all()
    assert tokens.cut > 0
    assert max(map(len, tokens.sources)) == 9


def test_an_epoch_holds_every_pair_once_and_the_next_in_another_order(tokens):
    sampler = LengthSampler(tokens, batch=7, seed=0)
    count = len(tokens) // 7
    epochs = [[sampler(step) for step in range(begin, begin + count)] for begin in (0, count)]
    keys = [[tuple(row.tolist()) for batch in epoch for row in batch.source] for epoch in epochs]
    pool = {(*x, *[PAD] * (9 - len(x))) for x in tokens.sources}
    for epoch in keys:
        padded = [(*x, *[PAD] * (9 - len(x))) for x in epoch]
        assert set(padded) <= pool
        assert len(epoch) == 7 * count
    assert keys[0] != keys[1]
    again = LengthSampler(tokens, batch=7, seed=0)(count + 2)
    assert torch.equal(again.source, epochs[1][2].source)


def test_batches_by_length_hold_all_pairs_once(tokens):
    batches = batches_by_length(tokens, 16)
    assert sorted(n for batch in batches for n in batch) == list(range(len(tokens)))


def test_a_column_split_decides_and_validation_is_taken_from_train_alone(tmp_path):
    rows = [(*row, "test" if int(row[2][1:]) < 20 else "train") for row in ROWS]
    names = ("source", "target", "group", "split")
    pairs = read_pairs(write(tmp_path / "x.tsv", rows, names))
    assert {pair.group for pair in pairs.test} == {f"g{n}" for n in range(20)}
    assert len(pairs.test) == 80
    assert pairs.validation
    assert not {pair.group for pair in pairs.validation} & {pair.group for pair in pairs.train}
    told = [(*row[:3], "validation" if row[2] == "g50" else row[3]) for row in rows]
    assert {pair.group for pair in read_pairs(write(tmp_path / "y.jsonl", told, names)).validation} == {"g50"}
    with pytest.raises(ValueError, match=r"y.tsv:2 has 'dev' in 'split'; expected one of train, validation, test"):
        read_pairs(write(tmp_path / "y.tsv", [("a", "b", "g", "dev")], names))
