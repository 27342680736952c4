"""The pairs of texts of a run, and their tokens."""

import hashlib
from typing import TYPE_CHECKING

from exlstm.data.text import Pairs, Tokenizer, TokenPairs, read_pairs

if TYPE_CHECKING:
    from exlstm.tasks.pairs import Train


def read(options: "Train") -> Pairs:
    """The pairs that the options name. Raises ValueError where they cannot be read."""
    assert options.data is not None
    if not options.data.is_file():
        raise ValueError(f"there is no file {options.data}; give a .tsv, .jsonl or .parquet file of pairs")
    source, target = options.columns
    return read_pairs(options.data, source=source, target=target)


def digest(options: "Train") -> str:
    """What tells one version of the file from another."""
    assert options.data is not None
    with options.data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokens(options: "Train", pairs: Pairs) -> tuple[Tokenizer, dict[str, TokenPairs]]:
    """A tokenizer learnt from the training pairs, both sides together, and the pairs to train and validate on."""
    texts = (text for pair in pairs.train for text in (pair.source, pair.target))
    tokenizer = Tokenizer.train(texts, kind=options.tokenizer, vocabulary=options.vocabulary)
    splits = {"train": pairs.train, "validation": pairs.validation}
    return tokenizer, {n: TokenPairs(split, tokenizer, longest=options.longest) for n, split in splits.items()}
