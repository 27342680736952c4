"""The directory that a conversion makes: there only when it is whole, with what has to come along."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exlstm.interop.weights.licence import FILES

_COMPANIONS = (*FILES, "tokenizer*", "special_tokens_map.json", "generation_config.json")
"""Licences, and what makes text of tokens."""


def require_free(dest: Path) -> None:
    """Raise ValueError if something is there already."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ValueError(f"{dest} is there already; give a directory that does not exist yet or is empty")


@contextmanager
def whole(dest: Path) -> Iterator[Path]:
    """A directory to write into, which becomes `dest` at the end; after an error nothing is left of it."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    new = dest.parent / f".{dest.name}.{os.getpid()}.new"
    new.mkdir()
    try:
        yield new
        new.replace(dest)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def copy_companions(source: Path, dest: Path) -> None:
    """Copy licences and the tokenizer's files from beside the weights."""
    for path in sorted({path for pattern in _COMPANIONS for path in source.glob(pattern)}):
        if path.is_file():
            shutil.copyfile(path, dest / path.name)
