"""The labelled texts of a run: the parts it is trained and tested on, and their tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exlstm.data.text import Labelled, LabelledSplits, LabelledTexts, Tokenizer, TokenTexts, read_labelled
from exlstm.data.text.labelled import labelled_files
from exlstm.data.text.labelled_tokens import UNKNOWN
from exlstm.data.text.rows import read_rows

if TYPE_CHECKING:
    from exlstm.models import Classifier
    from exlstm.tasks.classify_text import Train

BUCKETS = 2**18
"""Of the bags of the linear member: several for each run of words in a corpus of ten thousand texts."""
_MOST_VALIDATED = 2000


@dataclass(frozen=True)
class Part:
    """One training: of the only model, or of a fold's."""

    name: str
    """Where its checkpoints and its model are below the run's folder; empty for the only one."""
    splits: LabelledSplits


def read(options: "Train") -> LabelledTexts:
    """The texts that the options name. Raises ValueError where they cannot be read."""
    assert options.data is not None
    text, label = options.columns
    return read_labelled(options.data, text=text, label=label)


def digest(options: "Train") -> str:
    """What tells one version of the files from another."""
    assert options.data is not None
    found = hashlib.sha256()
    for path in labelled_files(options.data):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def parts(options: "Train", data: LabelledTexts) -> list[Part]:
    """What is trained and tested: once, or once for every fold.

    Raises:
        ValueError: there are too few texts, or folds are asked for where the file says what the test is.
    """
    if options.folds is None:
        return [Part("", data.split())]
    if data.split_by_file:
        raise ValueError(f"{options.data} says itself what is for the test, in its column split; leave out --folds")
    if options.folds < 2:
        raise ValueError(f"expected --folds of at least 2, got {options.folds}")
    return [Part(name, data.split(k, options.folds)) for k, name in enumerate(parts_of(options))]


def parts_of(options: "Train") -> list[str]:
    """The names of a run's parts."""
    return [""] if options.folds is None else [f"folds/{k + 1}" for k in range(options.folds)]


def learn_tokenizer(options: "Train", texts: Sequence[Labelled]) -> Tokenizer:
    """A tokenizer learnt from training texts."""
    return Tokenizer.train((x.text for x in texts), kind=options.tokenizer, vocabulary=options.vocabulary)


def tokens(options: "Train", model: "Classifier", tokenizer: Tokenizer, texts: Sequence[Labelled]) -> TokenTexts:
    """Texts as the model reads them."""
    config = model.config
    number = {label: n for n, label in enumerate(config.labels)}
    return TokenTexts(
        [x.text for x in texts],
        tokenizer,
        [number.get(x.label, UNKNOWN) for x in texts],
        longest=options.longest,
        grams=config.grams,
        buckets=config.buckets,
    )


def some(texts: Sequence[Labelled]) -> Sequence[Labelled]:
    """Of many validation texts a part, evenly from all over the file."""
    return texts[:: -(-len(texts) // _MOST_VALIDATED) or 1]


def read_texts(path: Path, column: str) -> list[str]:
    """The texts of a file to label: its lines, or its rows in `column`. Raises ValueError where it is no such file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give a text file, or .tsv, .jsonl or .parquet")
    if path.suffix.lower() in (".tsv", ".jsonl", ".parquet"):
        return [row.texts[0] or "" for row in read_rows(path, [column])]
    return path.read_text(encoding="utf-8").splitlines()
