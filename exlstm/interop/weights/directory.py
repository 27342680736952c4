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
    """A directory to write into, which becomes `dest` at the end; after an error nothing is left of it.

    An empty directory that is there stays the one it is, for it may be the current one or a mounted one: what was
    written is moved into it.
    """
    there = dest.is_dir()
    around = dest if there else dest.parent
    around.mkdir(parents=True, exist_ok=True)
    new = around / f".{dest.name}.{os.getpid()}.new"
    new.mkdir()
    try:
        yield new
        if there:
            # A directory without a config is no model: it comes last.
            for path in sorted(new.iterdir(), key=lambda path: path.stem == "config"):
                path.replace(dest / path.name)
        else:
            new.replace(dest)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def copy_companions(source: Path, dest: Path) -> None:
    """Copy licences and the tokenizer's files from beside the weights."""
    for path in sorted({path for pattern in _COMPANIONS for path in source.glob(pattern)}):
        if path.is_file():
            shutil.copyfile(path, dest / path.name)
