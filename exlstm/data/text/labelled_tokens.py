"""Labelled texts as tokens and bags, in batches of like lengths."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.data.text.bags import Bags, bag, stack_bags
from exlstm.data.text.batching import padded
from exlstm.data.text.tokenizer import Tokenizer

UNKNOWN = -1
"""The number of a label that is none of the model's."""


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
        tokens, mask = padded([self.tokens[n] for n in numbers])
        bags = None if self.bags is None else stack_bags([self.bags[n] for n in numbers])
        return LabelledBatch(tokens, mask, torch.tensor([self.labels[n] for n in numbers]), bags)

    def size(self, number: int) -> tuple[int]:
        """The length of a text."""
        return (len(self.tokens[number]),)
