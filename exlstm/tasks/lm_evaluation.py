"""How well a language model predicts held-out text, beside simpler models of the same text."""

import bz2
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from exlstm.data.text import BOS, EOS, Document, Tokenizer, Tokens
from exlstm.models import LanguageModel, Sampling
from exlstm.models.language_training import PIECE, total_loss
from exlstm.tasks.lm_baselines import ngram_bits
from exlstm.tasks.lm_data import Corpus

ORDER = 4
"""Of the n-gram model."""
_WINDOWS, _LENGTH = 64, 1024  # of the loss by context
_SAMPLE = 400  # tokens of text in the report


@dataclass(frozen=True)
class Evaluation:
    """What came of reading the test part."""

    scores: dict[str, float]
    baselines: dict[str, dict[str, float]]
    by_context: list[tuple[int, float]]
    """Tokens read before, and bits per token then; up to as many as the windows hold."""
    sample: str
    """What the model writes by itself."""


def evaluate(model: LanguageModel, corpus: Corpus) -> Evaluation:
    """Score the model and the baselines on the test part.

    Raises:
        ValueError: there is no text in it.
    """
    if len(corpus.test) < 2:
        raise ValueError("the test part has no text; give more text, or longer documents")
    total, count = total_loss(model, corpus.test)
    sample = model.generate([[BOS]], most=_SAMPLE, sampling=Sampling(temperature=0.8), stop=[BOS, EOS], seed=0)
    return Evaluation(
        scores=_scores(total / math.log(2) / count, corpus.test),
        baselines=_baselines(corpus),
        by_context=bits_by_context(model, corpus.test),
        sample=corpus.tokenizer.decode(sample.tokens[0]),
    )


def _scores(bits_per_token: float, test: Tokens) -> dict[str, float]:
    return {
        "bits_per_character": bits_per_token * len(test) / test.about.characters,
        "bits_per_token": bits_per_token,
        "perplexity": 2**bits_per_token,
    }


def _baselines(corpus: Corpus) -> dict[str, dict[str, float]]:
    bits = ngram_bits(np.asarray(corpus.train.data), np.asarray(corpus.test.data), corpus.tokenizer.vocabulary, ORDER)
    text = corpus.tokenizer.decode(corpus.test.data.tolist()).encode()
    compressed = 8 * len(bz2.compress(text)) / corpus.test.about.characters
    return {f"{ORDER}-gram": _scores(bits, corpus.test), "bzip2": {"bits_per_character": compressed}}


@torch.no_grad()
def bits_by_context(model: LanguageModel, tokens: Tokens) -> list[tuple[int, float]]:
    """The mean loss after 0, 1, 2-3, 4-7, ... tokens of a window, over windows spread evenly over the text."""
    length = min(_LENGTH, len(tokens) - 1)
    starts = np.linspace(0, len(tokens) - 1 - length, _WINDOWS).astype(int)
    rows = torch.from_numpy(np.stack([tokens.window(int(start), length + 1) for start in starts]))
    rows = rows.to(next(model.parameters()).device)
    losses, state = [], None
    for piece, targets in zip(rows[:, :-1].split(PIECE, 1), rows[:, 1:].split(PIECE, 1), strict=True):
        logits, state = model(piece, state)
        losses.append(cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none"))
    bits = torch.cat(losses, 1).mean(0) / math.log(2)
    edges = [0, *(2**n for n in range(int(math.log2(length)) + 1)), length]
    return [(a, float(bits[a:b].mean())) for a, b in itertools.pairwise(edges) if b > a]


@torch.no_grad()
def document_scores(model: LanguageModel, tokenizer: Tokenizer, documents: Sequence[Document]) -> pd.DataFrame:
    """A row for each document: `source, characters, tokens, bits_per_character, perplexity`."""
    device = next(model.parameters()).device
    rows = []
    for document in documents:
        tokens = torch.tensor([[BOS, *tokenizer.encode(document.text)]], device=device)
        total, state = 0.0, None
        for piece, targets in zip(tokens[:, :-1].split(PIECE, 1), tokens[:, 1:].split(PIECE, 1), strict=True):
            logits, state = model(piece, state)
            total += float(cross_entropy(logits[0].float(), targets[0], reduction="sum"))
        count = tokens.shape[1] - 1
        rows.append(
            {
                "source": document.source,
                "characters": len(document.text),
                "tokens": count,
                "bits_per_character": total / math.log(2) / len(document.text),
                "perplexity": math.exp(total / count),
            }
        )
    return pd.DataFrame(rows)
