"""Debian's package descriptions: texts in several languages, from the lists that apt fetches and checks."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-ZÀ-Þ0-9\"(„«])")


class Description(NamedTuple):
    """What a package is."""

    package: str
    synopsis: str
    paragraphs: list[str]
    """Flowing text only; None of what is set line by line, which is left out as an empty string."""


def fetch_lists(folder: Path, languages: str) -> None:
    """Let apt fetch the lists of the machine's own Debian sources into `folder`, descriptions in some languages too.

    Raises:
        ValueError: there is no apt here, or it fails.
    """
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if shutil.which("apt-get") is None or not (sources.is_file() or Path("/etc/apt/sources.list").is_file()):
        raise ValueError("this data set is in Debian's package lists, and there is no apt-get with sources here")
    (folder / "partial").mkdir(parents=True)
    parts = folder / "sources"
    parts.mkdir()
    for path in (sources, Path("/etc/apt/sources.list")):
        if path.is_file():
            shutil.copy(path, parts / ("debian.list" if path.suffix == ".list" else path.name))
    command = ["apt-get", "-q", "-o", f"Dir::State::lists={folder}", "-o", "Dir::Etc::sourcelist=/dev/null"]
    command += ["-o", f"Dir::Etc::sourceparts={parts}", "-o", f"Acquire::Languages={languages}"]
    command += ["-o", "Acquire::GzipIndexes=false", "update"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"apt-get update failed: {reason}; try it by hand, then again")


def read_descriptions(folder: Path, language: str) -> dict[str, Description]:
    """The descriptions in a language, by the checksum of the English one, from lists in `folder`."""
    found = {}
    for path in sorted(folder.glob(f"*_i18n_Translation-{language}")):
        for fields in stanzas(path):
            if text := fields.get(f"Description-{language}"):
                found[fields["Description-md5"]] = _description(fields["Package"], text)
    return found


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """The records of a file in Debian's control format; lines that go on keep their line ends."""
    fields: dict[str, str] = {}
    key = ""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            line = line.rstrip("\n")
            if not line:
                if fields:
                    yield fields
                fields, key = {}, ""
            elif line[0] in " \t" and key:
                fields[key] += "\n" + line
            else:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
    if fields:
        yield fields


def _description(package: str, text: str) -> Description:
    synopsis, *lines = text.split("\n")
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip() == ".":
            blocks.append([])
        else:
            blocks[-1].append(line[1:])
    # A line with a further space is set as it is, in lists and examples.
    paragraphs = ["" if any(x[:1] == " " for x in block) else " ".join(" ".join(block).split()) for block in blocks]
    return Description(package, synopsis, paragraphs)


def sentence_pairs(one: dict[str, Description], other: dict[str, Description]) -> Iterator[tuple[str, str, str]]:
    """Sentences in two languages and the package they are of: synopses, and sentences of paragraphs that match.

    Paragraphs match if both descriptions have as many, sentences if both paragraphs have as many; those that are
    the same in both languages are not translated and left out.
    """
    for key in sorted(one.keys() & other.keys()):
        a, b = one[key], other[key]
        pairs = [(a.synopsis, b.synopsis)]
        if len(a.paragraphs) == len(b.paragraphs):
            for x, y in zip(a.paragraphs, b.paragraphs, strict=True):
                u, v = _SENTENCE_END.split(x), _SENTENCE_END.split(y)
                if x and y and len(u) == len(v):
                    pairs += zip(u, v, strict=True)
        yield from ((*pair, a.package) for pair in pairs if pair[0] != pair[1])


def source_packages(folder: Path) -> dict[str, str]:
    """The source package that each package in the lists in `folder` is built from."""
    found = {}
    for path in sorted(folder.glob("*_Packages")):
        for fields in stanzas(path):
            found[fields["Package"]] = fields.get("Source", fields["Package"]).split()[0]  # a version may follow
    return found


def summaries(descriptions: dict[str, Description], sources: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Flowing text of each description, its synopsis, and the source package."""
    for key in sorted(descriptions):
        found = descriptions[key]
        if body := " ".join(text for text in found.paragraphs if text):
            yield body, found.synopsis, sources.get(found.package, found.package)
