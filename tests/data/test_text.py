"""Text: nothing is lost between files, tokens and batches, and what is left out is counted."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exlstm.data.text import BOS, SPLITS, Document, Reading, Streams, Tokenizer, Tokens, Windows, pieces, read_documents
from exlstm.data.text.corpus import write_corpus

TEXTS = [f"Line {n} of a text: naïve café №{n}, 東京.\n" * 5 for n in range(60)]


@pytest.fixture(scope="module", params=["bytes", "bpe", "unigram"])
def tokenizer(request):
    if request.param != "bytes":
        pytest.importorskip("tokenizers")
    return Tokenizer.train(TEXTS, kind=request.param, vocabulary=400)


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_to_the_letter(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert all(2 < t < tokenizer.vocabulary for t in tokens)
    assert tokenizer.decode(tokens) == text


def test_names_of_special_tokens_are_text_in_a_text(tokenizer):
    assert tokenizer.decode(tokenizer.encode("<bos> and <pad>")) == "<bos> and <pad>"


def test_a_saved_tokenizer_gives_the_same_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.kind == tokenizer.kind
    assert again.encode_all(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "BPE"}}', '{"model": {"type": "WordPiece"}}'])
def test_a_damaged_tokenizer_is_refused(tmp_path, content):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="damaged"):
        Tokenizer.load(tmp_path)


def read(source, **options):
    reading = Reading()
    return [document.text for document in read_documents(source, reading, **options)], reading


def test_files_of_a_folder_are_documents_and_what_is_left_out_is_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\r\ntwo".encode("utf-8-sig"))
    (tmp_path / "b.txt").write_bytes("naïve".encode("cp1252"))
    (tmp_path / "c.md").write_bytes(b"  \n")
    (tmp_path / "d.rst").write_bytes(b"one\ntwo")
    (tmp_path / "e.txt").write_text("e\u0301te\u0301", encoding="utf-8")
    (tmp_path / "f.csv").write_text("not text", encoding="utf-8")
    texts, reading = read(tmp_path)
    assert texts == ["one\ntwo", "naïve", "été"]
    assert reading.notes() == [
        "1 document without any text left out",
        "1 document equal to one before left out",
        "1 document not in UTF-8, read as Windows-1252",
        "1 document brought to Unicode normal form C",
    ]


def test_json_lines_and_parquet_hold_a_document_in_a_row(tmp_path):
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pd.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    assert read(tmp_path / "x.jsonl")[0] == read(tmp_path / "x.parquet")[0] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"body": "b"}', "line 2 has no text in 'text'; it has: body"),
        ("x.jsonl", "{", "line 1 is not JSON"),
        ("x.parquet", "no", "damaged or no Parquet file"),
        ("x.csv", None, "there is no file or folder"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def corpus(tmp_path, texts):
    write_corpus(tmp_path, [Document("", text) for text in texts], Tokenizer.bytes())
    return {name: Tokens(tmp_path, name) for name in SPLITS}


def texts_of(tokens):
    data = [int(t) for t in tokens.data]
    starts = [n for n, t in enumerate(data) if t == BOS] + [len(data)]
    return [Tokenizer.bytes().decode(data[a:b]) for a, b in itertools.pairwise(starts)]


@pytest.mark.parametrize("count", [20, 60, 1000, 1001, 3000])
def test_every_document_is_in_exactly_one_split(tmp_path, count):
    texts = [f"text {n} of {count}" for n in range(count)]
    splits = corpus(tmp_path, texts)
    found = [text for tokens in splits.values() for text in texts_of(tokens)]
    assert sorted(found) == sorted(texts)
    assert sum(tokens.about.characters for tokens in splits.values()) == sum(map(len, texts))
    for name in ("validation", "test"):
        # To the document, or of very many drawn one by one within five standard deviations.
        assert abs(splits[name].about.documents - count / 20) <= (0.5 if count <= 1000 else 5 * (count * 0.05) ** 0.5)
    assert all(len(tokens) == len(tokens.data) for tokens in splits.values())


def test_a_few_documents_are_cut_and_nothing_is_lost(tmp_path):
    text = "".join(f"line {n}\n" for n in range(1000))
    splits = corpus(tmp_path, [text])
    parts = [texts_of(splits[name])[0] for name in SPLITS]
    assert "".join(parts) == text
    assert [round(len(part) / len(text), 2) for part in parts] == [0.9, 0.05, 0.05]
    assert all(part.startswith("line") for part in parts)


def test_an_epoch_of_windows_holds_every_token_once(tmp_path):
    tokens = corpus(tmp_path, ["".join(map(chr, range(32, 127))) * 30])["train"]
    windows = Windows(tokens, batch=1, time=16, seed=3)
    count = (len(tokens) - 1) // 16
    batches = [windows(step) for step in range(count)]
    first = np.concatenate([batch.tokens[0].numpy() for batch in batches])
    assert len(first) == count * 16
    whole = np.sort(np.resize(tokens.data, len(first) + 16))
    # As often as in the corpus but for the up to 16 tokens that no window holds, or that two hold around its end.
    assert np.abs(np.bincount(first, minlength=260) - np.bincount(whole, minlength=260)).sum() <= 32
    for batch in batches:
        assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
        assert torch.equal(batch.reset, batch.tokens == BOS)


def test_windows_are_a_function_of_seed_and_step(tmp_path):
    tokens = corpus(tmp_path, TEXTS)["train"]
    a, b, c = (Windows(tokens, batch=2, time=8, seed=seed) for seed in (1, 1, 2))
    for step in (500, 3, 40):
        assert torch.equal(a(step).tokens, b(step).tokens)
    assert not torch.equal(a(0).tokens, c(0).tokens)


def test_an_epoch_of_streams_holds_every_token_once_in_order(tmp_path):
    tokens = corpus(tmp_path, [f"{n}: {text}" for n, text in enumerate(TEXTS)])["train"]
    time, rows = 16, 3
    streams, count = Streams(tokens, batch=rows, time=time, seed=3), len(tokens) // (16 * 3)
    epochs = [[streams(epoch * count + n) for n in range(count)] for epoch in range(2)]
    for batches in epochs:
        epoch = torch.cat([batch.tokens for batch in batches], 1).flatten().numpy()
        rest = len(tokens) - len(epoch)
        assert 0 <= rest < time * rows
        # The whole but for the rest, from somewhere on, with the first after the last.
        circle = np.concatenate([tokens.data, tokens.data])
        starts = [n for n in range(len(tokens)) if np.array_equal(circle[n : n + len(epoch)], epoch)]
        assert len(starts) == 1
        for n, batch in enumerate(batches):
            assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
            assert torch.equal(batch.reset[:, 1:], batch.tokens[:, 1:] == BOS)
            assert torch.equal(batch.reset[:, 0], (batch.tokens[:, 0] == BOS) | (n == 0))
            assert n == 0 or torch.equal(batches[n - 1].targets[:, -1], batch.tokens[:, 0])
    assert not torch.equal(epochs[0][0].tokens, epochs[1][0].tokens)


def test_streams_are_a_function_of_seed_and_step(tmp_path):
    tokens = corpus(tmp_path, TEXTS)["train"]
    a, b, c = (Streams(tokens, batch=2, time=8, seed=seed) for seed in (1, 1, 2))
    for step in (5000, 3, 40, 3):
        for ours, theirs in zip(a(step), b(step), strict=True):
            assert torch.equal(ours, theirs)
    assert not torch.equal(a(0).tokens, c(0).tokens)


def test_micro_batches_of_streams_are_the_rows_of_one_batch(tmp_path):
    tokens = corpus(tmp_path, TEXTS)["train"]
    whole = Streams(tokens, batch=6, time=8, seed=1)
    parts = Streams(tokens, batch=2, time=8, seed=1, accumulate=3)
    for step in (0, 1, 5000):
        micro = [torch.cat(batches) for batches in zip(*(parts(3 * step + n) for n in range(3)), strict=True)]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(micro, whole(step), strict=True))


def test_pieces_are_the_split_in_order(tmp_path):
    tokens = corpus(tmp_path, ["".join(f"line {n}\n" for n in range(1000))])["train"]
    streams = torch.cat([piece.tokens for piece in pieces(tokens, rows=3, time=100)], 1)
    length = (len(tokens) - 1) // 3
    assert streams.shape == (3, length)
    assert streams.flatten().tolist() == [int(t) for t in tokens.data[: 3 * length]]


def test_too_little_text_for_one_window_is_said(tmp_path):
    tokens = corpus(tmp_path, ["short"])["train"]
    with pytest.raises(ValueError, match=r"expected at least 65, one window"):
        Windows(tokens, batch=1, time=64, seed=0)
    with pytest.raises(ValueError, match=r"expected at least 8, 4 in each of 2 streams"):
        Streams(tokens, batch=2, time=4, seed=0)
