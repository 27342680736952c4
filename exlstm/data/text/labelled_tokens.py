"""Labelled texts as tokens and bags, in batches of like lengths."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exlstm.data.text.bags import Bags, bag, stack_bags
from exlstm.data.text.tokenizer import PAD, Tokenizer

UNKNOWN = -1
"""The number of a label that is none of the model's."""
_POOL = 50  # batches whose texts are sorted by length together


class LabelledBatch(NamedTuple):
    """Texts as tokens, each at the beginning of its row."""

    tokens: Tensor  # int64 [B, T]
    mask: Tensor  # bool [B, T]
    labels: Tensor  # int64 [B]
    bags: Bags | None

    def to(self, device: torch.device) -> "LabelledBatch":
        """The same on `device`."""
        bags = None if self.bags is None else self.bags.to(device)
        return LabelledBatch(self.tokens.to(device), self.mask.to(device), self.labels.to(device), bags)


class TokenTexts:
    """Texts as tokens, cut to a largest length, and as bags of all their words if `buckets` is not 0.

    Args:
        texts: of any length, empty ones too.
        labels: the label of each, as its number; none where they are not known.
        longest: tokens of a text at most.
        grams: longest run of words in a bag.
        buckets: see `bag`.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        labels: Sequence[int] = (),
        *,
        longest: int,
        grams: int = 2,
        buckets: int = 0,
    ) -> None:
        tokens = tokenizer.encode_all(texts)
        self.cut = sum(len(x) > longest for x in tokens)
        """Texts that were cut."""
        self.tokens = [x[:longest] for x in tokens]
        self.labels = [*labels] or [UNKNOWN] * len(texts)
        self.bags: list[Counter[int]] | None = None
        if buckets:
            self.bags = [bag(text, longest=grams, buckets=buckets) for text in texts]

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, numbers: Sequence[int]) -> LabelledBatch:
        """The texts of some numbers."""
        rows = [self.tokens[n] for n in numbers]
        tokens = torch.full((len(rows), max(1, *map(len, rows))), PAD)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[number, : len(row)] = True
        bags = None if self.bags is None else stack_bags([self.bags[n] for n in numbers])
        return LabelledBatch(tokens, mask, torch.tensor([self.labels[n] for n in numbers]), bags)

    def batches_by_length(self, size: int) -> list[list[int]]:
        """All texts in batches of like lengths, the numbers of each."""
        order = sorted(range(len(self)), key=lambda n: (len(self.tokens[n]), n))
        return [order[begin : begin + size] for begin in range(0, len(order), size)]


class LabelledSampler:
    """Training batches: every text once an epoch, in batches of like lengths and random order; called with a step."""

    def __init__(self, texts: TokenTexts, *, batch: int, seed: int) -> None:
        self._texts, self._size, self._seed = texts, min(batch, len(texts)), seed
        self._count = len(texts) // self._size  # batches of an epoch; the rest is left for another one
        self._last: tuple[int, list[np.ndarray]] = -1, []

    def __call__(self, step: int) -> LabelledBatch:
        epoch, place = divmod(step, self._count)
        if self._last[0] != epoch:
            self._last = epoch, self._epoch(epoch)
        return self._texts.batch(self._last[1][place].tolist())

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(len(self._texts))[: self._count * self._size]
        batches: list[np.ndarray] = []
        for begin in range(0, len(order), _POOL * self._size):
            pool = order[begin : begin + _POOL * self._size]
            lengths = np.array([len(self._texts.tokens[n]) for n in pool])
            pool = pool[np.argsort(lengths, kind="stable")]
            batches += np.split(pool, len(pool) // self._size)
        return [batches[n] for n in random.permutation(len(batches))]
