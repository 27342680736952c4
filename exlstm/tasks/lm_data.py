"""The text of a language modelling run: read once, kept as tokens in the run's folder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from exlstm.data.samples import text_sample
from exlstm.data.text import SPLITS, Document, Reading, Tokenizer, Tokens, read_documents, write_corpus

if TYPE_CHECKING:
    from exlstm.tasks.lm import Train

SAMPLE = "northanger_abbey"
FOLDER = "tokens"
_ABOUT = "about.json"


@dataclass(frozen=True)
class Corpus:
    """Three parts of a text as tokens."""

    train: Tokens
    validation: Tokens
    test: Tokens
    tokenizer: Tokenizer
    notes: list[str]
    """What was done to the text while it was read."""
    source: str
    """What was read."""


def prepare(options: "Train", run: Path) -> Corpus:
    """The corpus of a run: from its folder if it is there, else from the text, which is read twice for subwords.

    Raises:
        ValueError: the text cannot be read, or there is too little.
    """
    folder = run / FOLDER
    if (folder / _ABOUT).is_file():
        return reopen(run, Tokenizer.load(folder))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.train(
        (document.text for document in _documents(options, Reading())),
        kind=options.tokenizer,
        vocabulary=options.vocabulary,
    )
    reading = Reading()
    write_corpus(folder, _documents(options, reading), tokenizer)
    tokenizer.save(folder)
    about = {"notes": reading.notes(), "source": options.data.name if options.data else SAMPLE}
    (folder / _ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")  # last: now it is complete
    return reopen(run, tokenizer)


def reopen(run: Path, tokenizer: Tokenizer) -> Corpus:
    """The corpus that `prepare` kept in a run's folder.

    Raises:
        ValueError: it is not there.
    """
    folder = run / FOLDER
    if not (folder / _ABOUT).is_file():
        raise ValueError(f"the run in {run} has no text any more: {folder} is missing or incomplete")
    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    train, validation, test = (Tokens(folder, name) for name in SPLITS)
    return Corpus(train, validation, test, tokenizer, **about)


def read(source: Path, column: str) -> tuple[list[Document], list[str]]:
    """All documents of a file or folder, and what was done to them."""
    reading = Reading()
    documents = list(read_documents(source, reading, column=column))
    return documents, reading.notes()


def _documents(options: "Train", reading: Reading) -> Iterator[Document]:
    if options.data is None:
        with resources.as_file(text_sample(SAMPLE)) as path:
            yield from read_documents(path, reading)
    else:
        yield from read_documents(options.data, reading, column=options.column)
