"""Pairs of a source and a target text, as for translation: reading, splitting, batches of like lengths."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.data.text.batching import padded
from exlstm.data.text.corpus import SPLITS
from exlstm.data.text.reading import Reading, clean
from exlstm.data.text.rows import read_rows
from exlstm.data.text.tokenizer import BOS, EOS, Tokenizer

_WHOLE = 20  # parts of the pairs; one of them is validation and one is test


class Pair(NamedTuple):
    """A text and what it is to become."""

    source: str
    target: str
    group: str
    """Pairs of one group are in one split, for their texts may be alike."""
    split: str | None = None
    """The split that the file puts it in, if it says so."""


@dataclass(frozen=True)
class Pairs:
    """The splits."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    notes: list[str]


def read_pairs(
    path: Path,
    *,
    source: str = "source",
    target: str = "target",
    group: str = "group",
    split: str = "split",
    most: int = 2000,
) -> Pairs:
    """The pairs of a .tsv, .jsonl or .parquet file, each in one of three splits.

    Texts are brought to Unicode's normal form C and stripped. Pairs with an empty side and pairs that were there
    before are left out. Groups (without a column for them: equal sources) go to a split together, by a checksum of
    the group: a twentieth each to validation and test, but none more once there are `most` pairs. A column `split`
    decides instead where there is one, with "train", "validation" and "test" in it; without any "validation" a
    twentieth of "train" becomes it.
    A training pair whose source or target is also one of the test or validation pairs is left out. What was done is
    said in `notes`.

    Raises:
        ValueError: the file cannot be read, or no pair is left for training or the test.
    """
    reading = Reading()
    pairs: dict[tuple[str, str], Pair] = {}
    for row in read_rows(path, [source, target], [group, split]):
        a, b = (clean(text or "") for text in row.texts[:2])
        if row.texts[3] not in (None, *SPLITS):
            raise ValueError(f"{row.where} has {row.texts[3]!r} in {split!r}; expected one of {', '.join(SPLITS)}")
        if not a or not b:
            reading.counts["one empty"] += 1
        elif (a, b) in pairs:
            reading.counts["repeated"] += 1
        else:
            pairs[a, b] = Pair(a, b, row.texts[2] or a, row.texts[3])
    splits = _split([*pairs.values()], most)
    held = [*splits["validation"], *splits["test"]]
    sources, targets = {pair.source for pair in held}, {pair.target for pair in held}
    train = [pair for pair in splits["train"] if pair.source not in sources and pair.target not in targets]
    reading.counts["shared"] = len(splits["train"]) - len(train)
    if not train or not splits["test"]:
        raise ValueError(
            f"{path} has {len(pairs)} different pairs: too few for training and test parts; give some hundreds"
        )
    return Pairs(train, splits["validation"], splits["test"], reading.notes("pair"))


def _split(pairs: Sequence[Pair], most: int) -> dict[str, list[Pair]]:
    """The pairs of each split, whole groups of them where the pairs do not say."""
    told = any(pair.split == "validation" for pair in pairs)
    splits: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    chosen: dict[str, str] = {}
    for pair in pairs:
        part = pair.split
        if part is None or (part == "train" and not told):
            names = {0: "test", 1: "validation"} if part is None else {1: "validation"}
            if pair.group not in chosen:
                drawn = names.get(zlib.crc32(pair.group.encode()) % _WHOLE, "train")
                chosen[pair.group] = drawn if len(splits[drawn]) < most else "train"
            part = chosen[pair.group]
        splits[part].append(pair)
    return splits


class PairBatch(NamedTuple):
    """Pairs as tokens, each at the beginning of its row."""

    source: Tensor  # int64 [B, S]
    source_mask: Tensor  # bool [B, S]
    target: Tensor  # int64 [B, T], beginning with BOS
    target_mask: Tensor  # bool [B, T]
    labels: Tensor  # int64 [B, T], the token after each of the target's, EOS last; PAD where there is none

    def to(self, device: torch.device) -> "PairBatch":
        """The same on `device`."""
        return PairBatch(*(x.to(device) for x in self))


class TokenPairs:
    """Pairs as tokens, cut to a largest length."""

    def __init__(self, pairs: Sequence[Pair], tokenizer: Tokenizer, *, longest: int) -> None:
        sources = tokenizer.encode_all([pair.source for pair in pairs])
        targets = tokenizer.encode_all([pair.target for pair in pairs])
        self.cut = sum(len(x) > longest or len(y) > longest for x, y in zip(sources, targets, strict=True))
        """Pairs of which a side was cut."""
        self.sources, self.targets = ([x[:longest] for x in side] for side in (sources, targets))

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, numbers: Sequence[int]) -> PairBatch:
        """The pairs of some numbers."""
        source, source_mask = padded([self.sources[n] for n in numbers])
        target, target_mask = padded([[BOS, *self.targets[n]] for n in numbers])
        labels, _ = padded([[*self.targets[n], EOS] for n in numbers])
        return PairBatch(source, source_mask, target, target_mask, labels)

    def size(self, number: int) -> tuple[int, int]:
        """The lengths of a pair's target and source."""
        return len(self.targets[number]), len(self.sources[number])
