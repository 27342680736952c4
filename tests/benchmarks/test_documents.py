"""Documents whose parts are asked for by name, and the page on how three memories answer."""

import pytest
import torch

from benchmarks import documents
from exlstm.data.text import BOS, EOS, PAD, Pair, Tokenizer

PAIRS = [Pair(f"the text {n % 7} of it", f"der Text {n % 7} davon", f"name{n}") for n in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((text for pair in PAIRS for text in pair[:3]), kind="bytes", vocabulary=0)


def test_what_is_asked_for_is_in_the_source_and_only_translations_are_scored(tokenizer):
    facts = {pair.group: pair for pair in PAIRS}
    batches = documents.Documents(PAIRS, tokenizer, (128, 512), seed=1)
    assert [len(batches(step).source) for step in (0, 1)] == [documents.TOKENS // 128, documents.TOKENS // 512]
    for step in (0, 1):
        batch = batches(step)
        for source, target, mask, labels in zip(
            batch.source, batch.target, batch.target_mask, batch.labels, strict=True
        ):
            asked = [tokenizer.decode(part).strip() for part in _parts(target[mask].tolist())]
            assert 2 <= len(asked) <= 2 * documents.ASKED
            read = tokenizer.decode(source.tolist())
            for name, text in zip(asked[::2], asked[1::2], strict=True):
                assert facts[name].target == text
                assert name + facts[name].source in read.replace("\x01", "")
            scored = labels[labels != PAD].tolist()
            answers = [t for text in asked[1::2] for t in [*tokenizer.encode(text), EOS]]
            assert scored == answers
            # A scored label is the next token of the target, or the end of an answer.
            following = torch.cat([target[1:], target.new_tensor([BOS])])
            assert bool(((labels == following) | (labels == PAD) | (labels == EOS)).all())
    assert torch.equal(batches(1).source, batches(1).source)


def _parts(tokens):
    parts = []
    for token in tokens:
        if token == BOS:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def test_the_page_has_a_row_for_each_length_and_memory(tokenizer, monkeypatch):
    monkeypatch.setattr(documents, "WIDTH", 32)
    monkeypatch.setattr(documents, "TESTED", 1)
    results = {}
    for memory in documents.MEMORIES:
        model = documents.make(memory, tokenizer.vocabulary, 0).eval()
        held = documents.Documents(PAIRS, tokenizer, [32], seed=0)
        found = documents.score(model, held) | documents.cost(model, 32)
        assert found["loss"] > 0
        results[memory] = {"parameters": 1, "steps": 2, "seconds": 3.0, "lengths": dict.fromkeys((32, 2048), found)}
    monkeypatch.setattr(documents, "LENGTHS", (32, 2048))
    page = documents.page({"date": "today"}, results)
    assert page.count("| hierarchical |") == page.count("| attention |") == 2
