"""Tables as files of tab-separated values. It loads nothing, for the command line looks at what data there is."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a .tsv file that begins with the names of its columns; white space in cells becomes single spaces."""
    lines = ("\t".join(" ".join(cell.split()) for cell in row) for row in (columns, *rows))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
