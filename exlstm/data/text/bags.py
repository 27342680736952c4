"""Bags of words: which runs of words are in a text and how often, by a checksum of each (arXiv 1607.01759)."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_WORD = re.compile(r"\w+|[^\w\s]")


class Bags(NamedTuple):
    """What occurs in each of B sequences, without order: numbers of buckets, and how often each is met."""

    buckets: Tensor  # int64 [B, N]
    counts: Tensor  # float [B, N]; 0 where a row has nothing more

    def to(self, device: torch.device) -> "Bags":
        """The same on `device`."""
        return Bags(self.buckets.to(device), self.counts.to(device))


def word_runs(text: str, longest: int) -> Counter[str]:
    """The runs of up to `longest` words, in small letters, with single spaces; a sign that is no letter is a word."""
    words = _WORD.findall(text.lower())
    return Counter(
        " ".join(words[n : n + size]) for size in range(1, longest + 1) for n in range(len(words) - size + 1)
    )


def bag(text: str, *, longest: int, buckets: int) -> Counter[int]:
    """How often each bucket is met by the runs of words of a text; different runs may share one."""
    found: Counter[int] = Counter()
    for run, count in word_runs(text, longest).items():
        found[zlib.crc32(run.encode("utf-8", "surrogatepass")) % buckets] += count
    return found


def stack_bags(bags: Sequence[Counter[int]]) -> Bags:
    """Bags as the rows of one."""
    most = max(1, *map(len, bags))
    buckets, counts = torch.zeros(len(bags), most, dtype=torch.int64), torch.zeros(len(bags), most)
    for row, found in enumerate(bags):
        buckets[row, : len(found)] = torch.tensor([*found.keys()], dtype=torch.int64)
        counts[row, : len(found)] = torch.tensor([*found.values()], dtype=torch.float32)
    return Bags(buckets, counts)


def occurrences(bags: Sequence[Counter[int]], buckets: int) -> Tensor:
    """In how many of the bags each bucket is, float [buckets]."""
    found = torch.zeros(buckets)
    for each in bags:
        found[torch.tensor([*each.keys()], dtype=torch.int64)] += 1
    return found
