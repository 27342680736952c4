"""How well a model writes the targets of held-out sources."""

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
from exlstm.tasks.pairs import Kind

_AT_ONCE = 64


@dataclass(frozen=True)
class Evaluation:
    """What came of writing for the test part."""

    scores: dict[str, float]
    baselines: dict[str, dict[str, float]]
    signatures: dict[str, str]
    """How the scores were computed."""
    by_length: list[dict[str, Any]]
    """For sources of some numbers of words: from, to, pairs, and the scores."""
    table: pd.DataFrame
    """A row a pair: source, target, and what was written."""
    reads: "Reads | None"
    """What was read from the memory while one text was written; None for a memory without nodes."""


@dataclass(frozen=True)
class Reads:
    """Where the last block's reads went, over a source, for every token written."""

    source: list[str]
    written: list[str]
    weights: Tensor  # [T, S] attention to the source's tokens, in the leaves of a tree or in all: the mean over heads


def evaluate(kind: Kind, model: Seq2Seq, tokenizer: Tokenizer, pairs: Pairs, *, beams: int, longest: int) -> Evaluation:
    """Write a target for every source of the test part, and score them.

    Raises:
        ValueError: the package that scores is not installed.
    """
    sources, targets = [pair.source for pair in pairs.test], [pair.target for pair in pairs.test]
    found = write(model, tokenizer, sources, beams=beams, room=kind.room)
    table = pd.DataFrame({"source": sources, "target": targets, kind.result: found})
    scores, signatures = kind.metric(found, targets)
    scores["loss"] = mean_loss(model, TokenPairs(pairs.test, tokenizer, longest=longest))
    words = [len(source.split()) for source in sources]
    by_length = []
    for low, high in zip((0, *kind.lengths), (*kind.lengths, max(*words, kind.lengths[-1] + 1)), strict=True):
        part = [n for n, count in enumerate(words) if low < count <= high]
        if part:
            theirs, _ = kind.metric([found[n] for n in part], [targets[n] for n in part])
            by_length.append({"from": low + 1, "to": high, "pairs": len(part), **theirs})
    middle = sorted(range(len(sources)), key=lambda n: (abs(words[n] - 15), n))[0]
    return Evaluation(
        scores=scores,
        baselines={kind.baseline: kind.metric([*map(kind.without_model, sources)], targets)[0]},
        signatures=signatures,
        by_length=by_length,
        table=table,
        reads=reads(model, tokenizer, sources[middle], found[middle]),
    )


def write(model: Seq2Seq, tokenizer: Tokenizer, texts: Sequence[str], *, beams: int, room: float = 2.0) -> list[str]:
    """The target of each source, of about `room` tokens at most for each of its; of an empty text an empty one."""
    tokens = tokenizer.encode_all([" ".join(text.split()) for text in texts])
    found = [""] * len(texts)
    for most, same in groupby(sorted((_most(x, room), n) for n, x in enumerate(tokens) if x), key=lambda pair: pair[0]):
        numbers = [n for _, n in same]
        for begin in range(0, len(numbers), _AT_ONCE):
            part = numbers[begin : begin + _AT_ONCE]
            rows = model.generate([tokens[n] for n in part], most=most, beams=beams).tokens
            for n, row in zip(part, rows, strict=True):
                found[n] = " ".join(tokenizer.decode(row).split())  # a line
    return found


def _most(source: Sequence[int], room: float) -> int:
    """Tokens that a target may have: by the source alone, so that it does not depend on its neighbours."""
    return 20 + int(room * (1 << (len(source) - 1).bit_length()))


@torch.no_grad()
def reads(model: Seq2Seq, tokenizer: Tokenizer, source: str, written: str) -> Reads | None:
    """Where the last block of the decoder reads while it writes."""
    device = next(model.parameters()).device
    x, y = tokenizer.encode(source), [*tokenizer.encode(written), EOS]
    stored = model.encode(torch.tensor([x], device=device))
    _, _, traces = model.decode(torch.tensor([[BOS, *y[:-1]]], device=device), stored)
    attended = traces[-1].steps
    if attended is None:
        return None
    weights = attended.over(len(x))[0].mean(0)
    pieces = [tokenizer.decode([token]) for token in x]
    return Reads(pieces, [*(tokenizer.decode([token]) for token in y[:-1]), "∎"], weights.float().cpu())
