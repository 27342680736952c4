"""Batches of texts of like lengths."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from exlstm.data.text.tokenizer import PAD

Batch = TypeVar("Batch", covariant=True)
_POOL = 50  # batches whose texts are sorted by length together


class Batchable(Protocol[Batch]):
    """Texts that can be put together by their numbers."""

    def __len__(self) -> int: ...

    def size(self, number: int) -> tuple[int, ...]:
        """What batches are sorted by."""

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The texts of some numbers."""


class LengthSampler(Generic[Batch]):
    """Training batches: every text once an epoch, in batches of like lengths and random order; called with a step."""

    def __init__(self, texts: Batchable[Batch], *, batch: int, seed: int) -> None:
        self._texts, self._size, self._seed = texts, min(batch, len(texts)), seed
        self._count = len(texts) // self._size  # batches of an epoch; the rest is left for another one
        self._last: tuple[int, list[np.ndarray]] = -1, []

    def __call__(self, step: int) -> Batch:
        epoch, place = divmod(step, self._count)
        if self._last[0] != epoch:
            self._last = epoch, self._epoch(epoch)
        return self._texts.batch(self._last[1][place].tolist())

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(len(self._texts))[: self._count * self._size]
        batches: list[np.ndarray] = []
        for begin in range(0, len(order), _POOL * self._size):
            pool = sorted(order[begin : begin + _POOL * self._size].tolist(), key=self._texts.size)
            batches += np.split(np.array(pool), len(pool) // self._size)
        return [batches[n] for n in random.permutation(len(batches))]


def batches_by_length(texts: Batchable[Batch], size: int) -> list[list[int]]:
    """All texts in batches of like lengths, the numbers of each."""
    order = sorted(range(len(texts)), key=lambda n: (texts.size(n), n))
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of tokens as one int64 [B, T], each at its beginning, and where they are bool [B, T]; T is at least 1."""
    tokens = torch.full((len(rows), max(1, *map(len, rows))), PAD)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor([*row], dtype=torch.int64)
        mask[number, : len(row)] = True
    return tokens, mask
