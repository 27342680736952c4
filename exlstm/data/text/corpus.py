"""A corpus as tokens on disk, larger than memory if need be, and windows of it."""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from exlstm.data.text.reading import Document
from exlstm.data.text.tokenizer import BOS, Tokenizer

SPLITS = ("train", "validation", "test")
_WHOLE = 20  # parts of a corpus; one of them is validation and one is test
_FEW = _WHOLE  # fewer documents than this are cut instead of chosen
_MANY = 1000  # of more documents than this, each is chosen by itself, so that they need not be in memory together


@dataclass(frozen=True)
class About:
    """What a split holds."""

    documents: int
    tokens: int
    """BOS before every document included."""
    characters: int
    digest: str
    """Of all tokens in order."""


class Tokens:
    """The tokens of a split: `BOS` and a document, again and again; read from disk as needed."""

    def __init__(self, folder: Path, name: str) -> None:
        about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        self.dtype, self.about = np.dtype(about.pop("dtype")), About(**about)
        empty = np.zeros(0, self.dtype)
        self.data = np.memmap(folder / f"{name}.bin", self.dtype, "r") if self.about.tokens else empty

    def __len__(self) -> int:
        return self.about.tokens

    def window(self, start: int, length: int) -> np.ndarray:
        """Tokens int64 [length] from `start` on; after the last one come the first."""
        end = start + length
        if end <= len(self):
            return self.data[start:end].astype(np.int64)
        return np.take(self.data, np.arange(start, end), mode="wrap").astype(np.int64)


def write_corpus(folder: Path, documents: Iterable[Document], tokenizer: Tokenizer) -> None:
    """Write the splits' tokens into `folder`, one document in memory at a time.

    Of twenty or more documents a twentieth, by a checksum of its text, is for validation and another for the test;
    of fewer, each document's last tenth is cut into the two.

    Raises:
        ValueError: there is no document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    documents = iter(documents)
    first = [*islice(documents, _MANY)]
    if not first:
        raise ValueError("there is no text in these files")
    rest = next(documents, None)
    parts: Iterator[tuple[str, str]]
    if len(first) < _FEW:
        parts = (part for document in first for part in zip(SPLITS, _cut(document.text), strict=True))
    elif rest is None:
        parts = _ranked(first)
    else:
        parts = ((_drawn(document), document.text) for document in chain(first, [rest], documents))
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_Writer(folder, name, tokenizer)) for name in SPLITS}
        for name, text in parts:
            writers[name].add(text)
        for writer in writers.values():
            writer.finish()


def _ranked(documents: Sequence[Document]) -> Iterator[tuple[str, str]]:
    """Documents and their splits, which are of the right size to within one document."""
    size = round(len(documents) / _WHOLE)
    order = sorted(range(len(documents)), key=lambda n: (_checksum(documents[n]), n))
    splits = dict.fromkeys(order[:size], "test") | dict.fromkeys(order[size : 2 * size], "validation")
    return ((splits.get(n, "train"), document.text) for n, document in enumerate(documents))


def _drawn(document: Document) -> str:
    """The split of one document among very many."""
    return {0: "test", 1: "validation"}.get(_checksum(document) % _WHOLE, "train")


def _checksum(document: Document) -> int:
    return zlib.crc32(document.text.encode("utf-8", "surrogatepass"))


def _cut(text: str) -> tuple[str, str, str]:
    """Nine tenths, and two parts of the last, cut where a line ends if there is one near."""

    def line_end(place: int) -> int:
        found = text.find("\n", place, place + 2000)
        return place if found < 0 else found + 1

    a = line_end(len(text) * (_WHOLE - 2) // _WHOLE)
    b = max(a, line_end(len(text) * (_WHOLE - 1) // _WHOLE))
    return text[:a], text[a:b], text[b:]


class _Writer:
    """Appends documents to a split."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer) -> None:
        self._folder, self._name, self._tokenizer = folder, name, tokenizer
        self._dtype = np.dtype(np.uint16 if tokenizer.vocabulary <= 1 << 16 else np.uint32)
        self._file = (folder / f"{name}.bin").open("wb")
        self._documents = self._tokens = self._characters = self._digest = 0

    def add(self, text: str) -> None:
        if not text:
            return
        data = np.array([BOS, *self._tokenizer.encode(text)], self._dtype).tobytes()
        self._file.write(data)
        self._digest = zlib.crc32(data, self._digest)
        self._documents += 1
        self._tokens += len(data) // self._dtype.itemsize
        self._characters += len(text)

    def finish(self) -> None:
        """Write what the split holds: it is complete."""
        about = About(self._documents, self._tokens, self._characters, f"{self._digest:08x}")
        text = json.dumps({"dtype": self._dtype.name} | asdict(about), indent=1) + "\n"
        (self._folder / f"{self._name}.json").write_text(text, encoding="utf-8")

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class TokenBatch(NamedTuple):
    """Rows of text and what follows each token."""

    tokens: Tensor  # int64 [B, T]
    targets: Tensor  # int64 [B, T], the token after each
    reset: Tensor  # bool [B, T], where a document begins


class Windows:
    """Training batches: windows of T tokens, each once an epoch in an order of its own; called with a step."""

    def __init__(self, tokens: Tokens, *, batch: int, time: int, seed: int) -> None:
        if len(tokens) < time + 1:
            raise ValueError(
                f"the training part has {len(tokens)} tokens, expected at least {time + 1}, one window: "
                "give more text, or a smaller --length"
            )
        self._tokens, self._batch, self._time, self._seed = tokens, batch, time, seed
        self._count = (len(tokens) - 1) // time  # windows of an epoch
        self._last: tuple[int, np.ndarray, int] = -1, np.zeros(0, np.int64), 0

    def __call__(self, step: int) -> TokenBatch:
        rows = [self._row(step * self._batch + n) for n in range(self._batch)]
        return as_batch(np.stack(rows))

    def _row(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, self._count)
        order, shift = self._order(epoch)
        return self._tokens.window(int(order[place]) * self._time + shift, self._time + 1)

    def _order(self, epoch: int) -> tuple[np.ndarray, int]:
        """The order of an epoch's windows, and how far they are shifted, so that no two epochs cut alike."""
        if self._last[0] != epoch:
            random = np.random.default_rng((self._seed, epoch))
            self._last = epoch, random.permutation(self._count), int(random.integers(self._time))
        return self._last[1:]


class Streams:
    """Training batches that go on where those before ended: the tokens as parallel streams, a row each.

    Called with n, it gives the n-th T tokens of every stream, or of accumulated micro batches the (n // accumulate)-th
    of those streams that are of micro batch n % accumulate. An epoch holds each token once, but for the last, fewer
    than make a piece of every stream; it begins at a token of its own, so that no two epochs cut alike. `reset` is
    True where a document begins and where the streams do.
    """

    def __init__(self, tokens: Tokens, *, batch: int, time: int, seed: int, accumulate: int = 1) -> None:
        step = batch * accumulate * time
        if len(tokens) < step:
            raise ValueError(
                f"the training part has {len(tokens)} tokens, expected at least {step}, {time} in each of "
                f"{batch * accumulate} streams: give more text, or a smaller --length or --batch"
            )
        self._tokens, self._batch, self._time, self._seed = tokens, batch, time, seed
        self._accumulate = accumulate
        self._count = len(tokens) // step  # pieces of a stream

    def __call__(self, number: int) -> TokenBatch:
        step, part = divmod(number, self._accumulate)
        epoch, piece = divmod(step, self._count)
        shift = int(np.random.default_rng((self._seed, epoch)).integers(len(self._tokens)))
        streams = range(part * self._batch, (part + 1) * self._batch)
        starts = (shift + (stream * self._count + piece) * self._time for stream in streams)
        batch = as_batch(np.stack([self._tokens.window(start % len(self._tokens), self._time + 1) for start in starts]))
        if piece == 0:
            batch.reset[:, 0] = True
        return batch


def as_batch(rows: np.ndarray) -> TokenBatch:
    """Rows int64 [B, T + 1] as inputs and targets."""
    both = torch.from_numpy(rows)
    tokens = both[:, :-1]
    return TokenBatch(tokens, both[:, 1:], tokens == BOS)


def pieces(tokens: Tokens, *, rows: int, time: int) -> Iterator[TokenBatch]:
    """The whole split in `rows` streams, T tokens at a time, each to be read with the state of the one before.

    The streams are consecutive parts of the split; the last tokens, fewer than `rows`, are left out.
    """
    length = (len(tokens) - 1) // rows
    for begin in range(0, length, time):
        count = min(time, length - begin)
        yield as_batch(np.stack([tokens.window(row * length + begin, count + 1) for row in range(rows)]))
