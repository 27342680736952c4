"""Our tokenizers in transformers give every text the same tokens, and pipelines write what our models write."""

import gzip

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AutoTokenizer, pipeline
from transformers_cases import new_tokens, padded, seq2seq

from exlstm.data.samples import text_sample
from exlstm.data.text import BOS, EOS, PAD, Tokenizer
from exlstm.interop.transformers import ExlstmForCausalLM, ExlstmForSeq2SeqLM, fast_tokenizer, from_run
from exlstm.models import LanguageModel

TEXTS = [
    "No one who had ever seen Catherine Morland in her infancy",
    "  two  spaces,\ttabs\r\n\nand an end  ",
    "naïve café — 東京 🙂 \u0000\u007f\u00ad",
    "<bos> is a word here, and so are <eos> and <pad>",
    "",
]


@pytest.fixture(scope="module")
def novel():
    with text_sample("northanger_abbey").open("rb") as file:
        return gzip.decompress(file.read()).decode()[:60_000]


@pytest.fixture(scope="module", params=["bytes", "bpe", "unigram"])
def tokenizer(request, novel):
    return Tokenizer.train([novel], kind=request.param, vocabulary=400)


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_gets_the_same_tokens_and_is_given_back(tokenizer, text):
    fast = fast_tokenizer(tokenizer)
    expected = tokenizer.encode(text)
    assert fast(text)["input_ids"] == [BOS, *expected]
    assert fast(text, add_special_tokens=False)["input_ids"] == expected
    assert fast_tokenizer(tokenizer, bos=False, eos=True)(text)["input_ids"] == [*expected, EOS]
    assert fast.decode([BOS, *expected, EOS], skip_special_tokens=True) == text
    assert len(fast) == tokenizer.vocabulary


def test_broken_characters_are_shown_alike(tokenizer):
    fast = fast_tokenizer(tokenizer)
    found = tokenizer.encode("é🙂")
    for some in (found[:1], found[1:], found[::-1]):
        assert fast.decode(some) == tokenizer.decode(some)


def test_batches_are_padded_on_the_left(tokenizer):
    fast = fast_tokenizer(tokenizer)
    batch = fast(["a", "a longer one"], padding=True, return_tensors="pt")
    rows = [[BOS, *tokenizer.encode(text)] for text in ("a", "a longer one")]
    expected = padded(rows, pad=PAD)
    assert {name: x.tolist() for name, x in batch.items()} == {name: x.tolist() for name, x in expected.items()}


def test_saved_it_is_read_by_transformers_and_by_us(tokenizer, tmp_path, novel):
    fast_tokenizer(tokenizer).save_pretrained(tmp_path)
    again, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    for text in (*TEXTS, novel[:2000]):
        assert again(text)["input_ids"] == [BOS, *tokenizer.encode(text)]
        assert ours.encode(text) == tokenizer.encode(text)
    assert (again.pad_token_id, again.bos_token_id, again.eos_token_id) == (PAD, BOS, EOS)
    assert again.padding_side == "left"
    assert ours.vocabulary == tokenizer.vocabulary


def test_a_pipeline_writes_what_our_model_writes(tmp_path):
    torch.manual_seed(2)
    model, tokenizer = LanguageModel(vocabulary=259, pattern="mh", width=64), Tokenizer.bytes()
    model.save_pretrained(tmp_path / "run" / "model")
    tokenizer.save(tmp_path / "run" / "model")
    theirs, fast = from_run(tmp_path / "run")
    texts = ["It was", "Catherine, who had"]
    ours = model.generate([[BOS, *tokenizer.encode(t)] for t in texts], most=30, stop=[BOS, EOS]).tokens
    expected = [text + tokenizer.decode(row) for text, row in zip(texts, ours, strict=True)]
    theirs.save_pretrained(tmp_path / "theirs")
    fast.save_pretrained(tmp_path / "theirs")
    for of in ({"model": theirs, "tokenizer": fast}, {"model": str(tmp_path / "theirs")}):
        write = pipeline("text-generation", **of)
        found = write(texts, batch_size=2, max_new_tokens=30, do_sample=False)
        assert [row[0]["generated_text"] for row in found] == expected


def test_a_run_knows_how_texts_begin_and_end(tmp_path):
    LanguageModel(vocabulary=259, pattern="m", width=64).save_pretrained(tmp_path / "lm")
    seq2seq("flat", vocabulary=259).save_pretrained(tmp_path / "pairs")
    for name, kind, ends, first in (
        ("lm", ExlstmForCausalLM, [BOS, EOS], BOS),
        ("pairs", ExlstmForSeq2SeqLM, EOS, 100),
    ):
        Tokenizer.bytes().save(tmp_path / name)
        model, tokenizer = from_run(tmp_path / name)
        settings = model.generation_config
        assert type(model) is kind
        assert (settings.pad_token_id, settings.bos_token_id, settings.eos_token_id) == (PAD, BOS, ends)
        assert tokenizer("a").input_ids[0] == first
    assert settings.decoder_start_token_id == BOS
    batch = tokenizer(["one", "a longer one"], padding=True, return_tensors="pt")
    found = model.generate(**batch, max_new_tokens=8, do_sample=False)
    ours = model.to_exlstm().generate([Tokenizer.bytes().encode(t) for t in ("one", "a longer one")], most=8).tokens
    assert new_tokens(found, 1, [EOS]) == ours
