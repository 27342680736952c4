"""Three memories read long sources: `python -m benchmarks.documents`, after `exlstm data get descriptions-de`.

A source is many package descriptions one after the other, each behind the name of its package, up to a number of
tokens. The target names some of the packages in an order of its own, and after each name comes the German
translation of what the source says of it: what is wanted can only be found by context. Names are given, never scored.

One model a memory is trained from the same weights on sources of all lengths, then scored on each: loss and share of
tokens that are right, with the true target so far. Beside it: time to read and store a source, time of a written token,
and bytes that are stored.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.lm import parameters, state_bytes
from benchmarks.machine import machine, versions
from benchmarks.report import table
from exlstm.data.get import get
from exlstm.data.text import BOS, EOS, PAD, Pair, PairBatch, Pairs, Tokenizer, read_pairs
from exlstm.data.text.batching import padded
from exlstm.models import Seq2Seq
from exlstm.models.seq2seq import MemoryKind
from exlstm.models.seq2seq_training import RECIPE, smoothed_loss
from exlstm.train import derive_seed, train

LENGTHS = (32, 128, 512, 2048)
TOKENS = 2048  # of the sources of a batch
ASKED = 6  # packages that a target names
MEMORIES: tuple[MemoryKind, ...] = ("hierarchical", "flat", "attention")
VOCABULARY, WIDTH, ENCODER, DECODER = 4000, 256, "s", "ss"
TESTED = 24  # batches a length
RESULTS = Path(__file__).parent / "results"
Results = TypeVar("Results")


class Documents:
    """Batches of sources of `lengths` in turn, called with a step."""

    def __init__(self, pairs: Sequence[Pair], tokenizer: Tokenizer, lengths: Sequence[int], *, seed: int) -> None:
        self._lengths, self._seed = lengths, seed
        names, sources, targets = (
            tokenizer.encode_all([text(pair) for pair in pairs])
            for text in (lambda p: p.group, lambda p: p.source, lambda p: p.target)
        )
        # A package once a source: its first description stands for it.
        first = dict(reversed([(pair.group, n) for n, pair in enumerate(pairs)]))
        self._facts = [(names[n], sources[n], targets[n]) for n in sorted(first.values())]

    def __call__(self, step: int) -> PairBatch:
        length = self._lengths[step % len(self._lengths)]
        random = np.random.default_rng((self._seed, step))
        return _batch([self._document(random, length) for _ in range(TOKENS // length)])

    def _document(self, random: np.random.Generator, length: int) -> tuple[list[int], list[int], list[int]]:
        """Tokens of a source, of its target, and what is to be predicted after each of the latter."""
        source: list[int] = []
        told: list[int] = []
        for number in random.permutation(len(self._facts)):
            name, text, _ = self._facts[number]
            piece = [BOS, *name, BOS, *text]
            if source and len(source) + len(piece) > length:
                break
            source += piece
            told.append(int(number))
        target, labels = [], []
        for number in random.permutation(told)[:ASKED]:
            name, _, text = self._facts[number]
            target += [BOS, *name, BOS, *text]
            labels += [PAD] * (1 + len(name)) + [*text, EOS]
        return source[:length], target, labels


def _batch(documents: Sequence[tuple[list[int], list[int], list[int]]]) -> PairBatch:
    (source, source_mask), (target, target_mask), (labels, _) = (padded(side) for side in zip(*documents, strict=True))
    return PairBatch(source, source_mask, target, target_mask, labels)


def make(memory: MemoryKind, vocabulary: int, seed: int) -> Seq2Seq:
    """An untrained model; what the three have in common begins alike."""
    torch.manual_seed(derive_seed(seed, "network"))
    # Nothing is copied word for word, which a flat memory could not: it is memories that are compared.
    fields = {"encoder": ENCODER, "decoder": DECODER, "width": WIDTH, "copy": False}
    return Seq2Seq(vocabulary=vocabulary, bos=BOS, eos=EOS, memory=memory, **fields)


@torch.no_grad()
def score(model: Seq2Seq, documents: Documents) -> dict[str, float]:
    """Loss in nats a token and the share of tokens predicted right."""
    total = right = count = 0.0
    for step in range(TESTED):
        batch = documents(step)
        logits = model(batch.source, batch.target, batch.source_mask, batch.target_mask).float()
        wanted = batch.labels != PAD
        total += float(cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=PAD, reduction="sum"))
        right += float((logits.argmax(-1) == batch.labels)[wanted].sum())
        count += float(wanted.sum())
    return {"loss": total / count, "right": right / count}


@torch.no_grad()
def cost(model: Seq2Seq, length: int) -> dict[str, float]:
    """Of one source: seconds to read and store it, of a written token, of one read of the memory; bytes stored."""
    source = torch.randint(3, model.config.vocabulary, (1, length))
    stored = model.encode(source)
    token, x = torch.tensor([[BOS]]), torch.randn(1, 1, model.config.width)
    _, state, _ = model.decode(token, stored)
    return {
        "read": _median_time(lambda: model.encode(source), 3),
        "token": _median_time(lambda: model.decode(token, stored, state)),
        "lookup": _median_time(lambda: model.readers[0](stored.memory, x)),
        "bytes": float(state_bytes(stored)),
    }


def _median_time(call: Any, times: int = 15) -> float:
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.documents", description="Compare three memories.")
    parser.add_argument("--minutes", type=float, default=15, help="of training, for each memory (default: 15)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memories", nargs="+", choices=MEMORIES, default=MEMORIES)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    date = datetime.now(UTC)
    pairs = read_pairs(get("descriptions-de") / "pairs.tsv")
    texts = (text for pair in pairs.train for text in pair[:3])
    tokenizer = Tokenizer.train(texts, kind="bpe", vocabulary=VOCABULARY)
    results = {memory: _run(memory, pairs, tokenizer, options) for memory in options.memories}
    write("documents", date, results, page, options.out)


def write(
    module: str, date: datetime, results: Results, page: Callable[[dict[str, str], Results], str], folder: Path
) -> None:
    """Write the results of this command, which is `benchmarks.module`, as JSON and as a page, and tell where."""
    command = shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])
    facts = {"date": f"{date:%Y-%m-%d %H:%M %Z}", "command": command, **machine(), **versions()}
    stem = folder / f"{module.upper()}-{date:%Y%m%d-%H%M}"
    stem.with_suffix(".json").write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(page(facts, results), encoding="utf-8")
    print(stem.with_suffix(".md"))


def _run(memory: MemoryKind, pairs: Pairs, tokenizer: Tokenizer, options: argparse.Namespace) -> dict[str, Any]:
    model = make(memory, tokenizer.vocabulary, options.seed)
    recipe = replace(RECIPE, steps=None, minutes=options.minutes, seed=options.seed, precision="bfloat16")
    documents = Documents(pairs.train, tokenizer, LENGTHS, seed=derive_seed(options.seed, "documents"))
    result = train(model, smoothed_loss, documents, recipe)
    lengths = {}
    for length in LENGTHS:
        held = Documents(pairs.test, tokenizer, [length], seed=derive_seed(options.seed, "test"))
        lengths[length] = score(model, held) | cost(model, length)
        print(memory, length, lengths[length], file=sys.stderr)
    return {"parameters": parameters(model), "steps": result.steps, "seconds": result.seconds, "lengths": lengths}


def page(facts: dict[str, str], results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    rows = [
        (
            f"{length:,}",
            memory,
            f"{found['loss']:.3f}",
            f"{100 * found['right']:.1f}%",
            f"{1e3 * found['read']:.3g} ms",
            f"{1e3 * found['token']:.3g} ms",
            f"{found['bytes'] / 2**20:.3g} MiB",
        )
        for length in LENGTHS
        for memory, result in results.items()
        for found in [result["lengths"][length]]
    ]
    columns = ("source tokens", "memory", "loss", "tokens right", "reading", "a written token", "stored")
    models = [
        f"- {memory}: {found['parameters']:,} weights, {found['steps']:,} steps in {found['seconds'] / 60:.1f} minutes"
        for memory, found in results.items()
    ]
    head = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    assert __doc__ is not None
    return (
        "\n\n".join(["# DOCUMENTS", head, __doc__.split("\n\n", 1)[1].strip(), "\n".join(models), table(columns, rows)])
        + "\n"
    )


if __name__ == "__main__":
    main()
