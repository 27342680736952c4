"""How well a model translates held-out texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from exlstm.data.text import BOS, EOS, Pairs, Tokenizer, TokenPairs
from exlstm.models import Seq2Seq
from exlstm.models.seq2seq_training import mean_loss

LENGTHS = (5, 10, 20, 30)
"""Words of a source, at which the scores by length are parted."""
_AT_ONCE = 64


@dataclass(frozen=True)
class Evaluation:
    """What came of translating the test part."""

    scores: dict[str, float]
    baselines: dict[str, dict[str, float]]
    signatures: dict[str, str]
    """How BLEU and chrF were computed, as sacrebleu says it."""
    by_length: list[dict[str, Any]]
    """For sources of some numbers of words: from, to, pairs, BLEU."""
    table: pd.DataFrame
    """A row a pair: source, target, translation."""
    reads: "Reads | None"
    """What was read from the memory in one translation; None for a memory without nodes."""


@dataclass(frozen=True)
class Reads:
    """Where the last block's reads went, over a source, for every token written."""

    source: list[str]
    written: list[str]
    weights: Tensor  # [T, S] the mean over heads of the weights of the leaves, or of attention, by source token


def evaluate(model: Seq2Seq, tokenizer: Tokenizer, pairs: Pairs, *, beams: int, longest: int) -> Evaluation:
    """Translate the test part and score it.

    Raises:
        ValueError: the package that scores is not installed.
    """
    sources, targets = [pair.source for pair in pairs.test], [pair.target for pair in pairs.test]
    found = translate(model, tokenizer, sources, beams=beams)
    table = pd.DataFrame({"source": sources, "target": targets, "translation": found})
    scores, signatures = corpus_scores(found, targets)
    scores["loss"] = mean_loss(model, TokenPairs(pairs.test, tokenizer, longest=longest))
    words = [len(source.split()) for source in sources]
    by_length = []
    for low, high in zip((0, *LENGTHS), (*LENGTHS, max(*words, LENGTHS[-1] + 1)), strict=True):
        part = [n for n, count in enumerate(words) if low < count <= high]
        if part:
            bleu = corpus_scores([found[n] for n in part], [targets[n] for n in part])[0]["BLEU"]
            by_length.append({"from": low + 1, "to": high, "pairs": len(part), "BLEU": bleu})
    middle = sorted(range(len(sources)), key=lambda n: (abs(words[n] - 15), n))[0]
    return Evaluation(
        scores=scores,
        baselines={"source copied": corpus_scores(sources, targets)[0]},
        signatures=signatures,
        by_length=by_length,
        table=table,
        reads=reads(model, tokenizer, sources[middle], found[middle]),
    )


def translate(model: Seq2Seq, tokenizer: Tokenizer, texts: Sequence[str], *, beams: int) -> list[str]:
    """The translation of each text; of an empty text an empty one."""
    tokens = tokenizer.encode_all([" ".join(text.split()) for text in texts])
    found = [""] * len(texts)
    for most, same in groupby(sorted((_most(x), n) for n, x in enumerate(tokens) if x), key=lambda pair: pair[0]):
        numbers = [n for _, n in same]
        for begin in range(0, len(numbers), _AT_ONCE):
            part = numbers[begin : begin + _AT_ONCE]
            rows = model.generate([tokens[n] for n in part], most=most, beams=beams).tokens
            for n, row in zip(part, rows, strict=True):
                found[n] = " ".join(tokenizer.decode(row).split())  # a line
    return found


def _most(source: Sequence[int]) -> int:
    """Tokens that a translation may have: by the source alone, so that it does not depend on its neighbours."""
    return 20 + 2 * (1 << (len(source) - 1).bit_length())


def corpus_scores(found: Sequence[str], targets: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """BLEU and chrF of translations, and how they were computed."""
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise ValueError("scoring translations needs the package sacrebleu: pip install 'exlstm[text]'") from None
    scores, signatures = {}, {}
    for name, metric in (("BLEU", BLEU()), ("chrF", CHRF())):
        scores[name] = float(metric.corpus_score([*found], [[*targets]]).score)
        signatures[name] = str(metric.get_signature())
    return scores, signatures


@torch.no_grad()
def reads(model: Seq2Seq, tokenizer: Tokenizer, source: str, written: str) -> Reads | None:
    """Where the last block of the decoder reads while it writes."""
    if model.config.memory == "flat":
        return None
    device = next(model.parameters()).device
    x, y = tokenizer.encode(source), [*tokenizer.encode(written), EOS]
    stored = model.encode(torch.tensor([x], device=device))
    _, _, traces = model.decode(torch.tensor([[BOS, *y[:-1]]], device=device), stored, trace=True)
    if model.config.memory == "attention":
        weights = traces[-1][0].mean(0)
    else:
        weights = traces[-1].nodes[0][0].mean(0).repeat_interleave(stored.leaf, -1)[:, : len(x)]
    pieces = [tokenizer.decode([token]) for token in x]
    return Reads(pieces, [*(tokenizer.decode([token]) for token in y[:-1]), "∎"], weights.float().cpu())
