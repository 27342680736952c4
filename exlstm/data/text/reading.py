"""Documents from a user's files: text, JSON lines or Parquet."""

import gzip
import hashlib
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from exlstm.data.text.rows import read_rows

SUFFIXES = (".txt", ".md", ".rst", ".jsonl", ".parquet", ".txt.gz")


class Document(NamedTuple):
    """A text, and where it is from."""

    source: str
    text: str


@dataclass
class Reading:
    """What was done to documents on their way; everything that is not as it was is counted here."""

    counts: Counter[str] = field(default_factory=Counter)

    def notes(self, noun: str = "document") -> list[str]:
        """One sentence for everything that happened at least once."""
        return [
            text.format(f"{n:,} {noun}{'s' if n > 1 else ''}")
            for name, text in _NOTES.items()
            if (n := self.counts[name])
        ]


_NOTES = {
    "empty": "{} without any text left out",
    "one empty": "{} with nothing on one side left out",
    "repeated": "{} equal to one before left out",
    "shared": "{} for training left out, since the same source or target is in the test or validation part",
    "encoding": "{} not in UTF-8, read as Windows-1252",
    "normalised": "{} brought to Unicode normal form C",
}


def read_documents(source: str | Path, reading: Reading, *, column: str = "text") -> Iterator[Document]:
    """The documents of a file, or of all files below a folder, one after another.

    A text file is one document; a JSON line or a row of Parquet is one, its text in `column`. Texts are
    brought to Unicode's normal form C, line ends to \\n. Documents without text and such as were there before
    are left out. What was done is counted in `reading`.

    Raises:
        ValueError: there is nothing to read, or a file is not what its name says.
    """
    seen: set[bytes] = set()
    for path in text_files(source):
        for name, text in _texts(path, column, reading):
            clean = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
            if not clean.strip():
                reading.counts["empty"] += 1
                continue
            digest = hashlib.blake2b(clean.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if digest in seen:
                reading.counts["repeated"] += 1
                continue
            seen.add(digest)
            reading.counts["documents"] += 1
            reading.counts["characters"] += len(clean)
            reading.counts["normalised"] += not unicodedata.is_normalized("NFC", text)
            yield Document(name, clean)


def text_files(source: str | Path) -> list[Path]:
    """The file `source`, or the text files below the folder `source`, in order of their names."""
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"there is no file or folder {source}; give text files ({', '.join(SUFFIXES)}) or a folder")
    found = sorted(path for path in source.rglob("*") if path.name.lower().endswith(SUFFIXES) and path.is_file())
    if not found:
        raise ValueError(f"no text in {source}: expected files ending in {', '.join(SUFFIXES)}")
    return found


def _texts(path: Path, column: str, reading: Reading) -> Iterator[Document]:
    match path.suffix.lower():
        case ".jsonl" | ".parquet":
            yield from (Document(row.where, row.texts[0] or "") for row in read_rows(path, [column]))
        case ".gz":
            yield Document(str(path), _decoded(_unzipped(path), reading))
        case _:
            yield Document(str(path), _decoded(path.read_bytes(), reading))


def _unzipped(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no gzip file: {error}") from error


def _decoded(data: bytes, reading: Reading) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        reading.counts["encoding"] += 1
        return data.decode("cp1252", "replace")


def clean(text: str) -> str:
    """A line of text in Unicode's normal form C, its white space single spaces."""
    return unicodedata.normalize("NFC", " ".join(text.split()))
