"""Texts with labels, as for sentiment and topics: reading, splitting, folds."""

import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from exlstm.data.text.corpus import SPLITS
from exlstm.data.text.reading import clean
from exlstm.data.text.rows import Row, read_rows

FOLDS = 10
"""Parts of the texts, of which one is the test unless the file says what is."""
_WHOLE = 20  # parts of what is not for the test, of which one is for validation
SUFFIXES = (".jsonl", ".parquet", ".tsv")


class Labelled(NamedTuple):
    """A text and what it is."""

    text: str
    label: str
    group: str
    """Texts of one group are in one split, for they may be alike."""
    split: str | None = None
    """The split that the file puts it in, if it says so."""


@dataclass(frozen=True)
class LabelledSplits:
    """The texts to learn from, to choose the best weights by, and to test on."""

    train: list[Labelled]
    validation: list[Labelled]
    test: list[Labelled]
    notes: list[str]
    """What was left out so that no text of one is in another."""


@dataclass(frozen=True)
class LabelledTexts:
    """All texts of a file."""

    texts: list[Labelled]
    labels: tuple[str, ...]
    """All there are, in order."""
    notes: list[str]
    """What was found and done while reading."""

    @property
    def split_by_file(self) -> bool:
        """Whether the file says what is for the test."""
        return any(x.split is not None for x in self.texts)

    def split(self, fold: int = 0, folds: int = FOLDS) -> LabelledSplits:
        """The texts in three splits.

        Groups (without a column for them: equal texts) go to a split together, by a checksum of the group: one of
        `folds` parts is the test, part number `fold`; a twentieth of the rest is for validation. What the file says
        decides instead; if it says nothing of validation, a twentieth of its training part becomes it. Texts that are
        also in the test are left out of training and validation, those of the validation out of training.

        Raises:
            ValueError: there is no such fold, or nothing left to train or to test on.
        """
        if not 0 <= fold < folds or folds < 2:
            raise ValueError(f"expected at least 2 folds and one of them, received fold {fold} of {folds}")
        parts: dict[str, list[Labelled]] = {name: [] for name in SPLITS}
        told = any(x.split == "validation" for x in self.texts)
        for x in self.texts:
            name = x.split
            if name is None or (name == "train" and not told):
                name = _chosen(x.group, None if name else fold, folds)
            parts[name].append(x)
        return _without_leaks(parts)


def _chosen(group: str, fold: int | None, folds: int) -> str:
    """The split of a group; without a fold it is not for the test."""
    rest, place = divmod(zlib.crc32(group.encode()), folds)
    if place == fold:
        return "test"
    return "validation" if rest % _WHOLE == 0 else "train"


def _without_leaks(parts: dict[str, list[Labelled]]) -> LabelledSplits:
    test, held = ({x.text for name in names for x in parts[name]} for names in (SPLITS[2:], SPLITS[1:]))
    train = [x for x in parts["train"] if x.text not in held]
    validation = [x for x in parts["validation"] if x.text not in test]
    if len({x.label for x in train}) < 2 or not parts["test"]:
        raise ValueError(
            f"expected texts of at least 2 classes to train on and some for the test, got {len(train)} of "
            f"{len({x.label for x in train})} and {len(parts['test'])}; give some hundreds"
        )
    unknown = {x.label for x in parts["test"]} - {x.label for x in train}
    notes = _notes(
        Counter(
            shared=len(parts["train"]) - len(train),
            shared_validation=len(parts["validation"]) - len(validation),
            unknown=sum(x.label in unknown for x in parts["test"]),
        )
    )
    return LabelledSplits(train, validation, parts["test"], notes)


def read_labelled(
    source: Path, *, text: str = "text", label: str = "label", group: str = "group", split: str = "split"
) -> LabelledTexts:
    """The texts and labels of a .tsv, .jsonl or .parquet file, or of all such files in a folder.

    Texts are brought to Unicode's normal form C, their white space to single spaces. Rows without a text or without a
    label are left out, as are those that were there before, text and label; but what a file says is for the test is
    all kept, so that scores can be compared with those of others. In a folder, files that are called train,
    validation or test say the split by that. What was done is said in `notes`.

    Raises:
        ValueError: a file cannot be read, or there are fewer than two labels.
    """
    counts: Counter[str] = Counter()
    seen: set[tuple[str, str, bool]] = set()
    texts: list[Labelled] = []
    for path in labelled_files(source):
        by_name = path.stem if path.stem in SPLITS and path != source else None
        for row in read_rows(path, [text], [label, group, split]):
            x = _labelled(row, split, by_name)
            key = x.text, x.label, x.split == "test"
            counts["normalised"] += not unicodedata.is_normalized("NFC", row.texts[0] or "")
            if not x.text or not x.label:
                counts["unlabelled" if x.text else "empty"] += 1
            elif key in seen and x.split != "test":
                counts["repeated"] += 1
            else:
                counts["repeated_test"] += key in seen
                texts.append(x)
                seen.add(key)
    labels = tuple(sorted({x.label for x in texts}))
    if len(labels) < 2:
        found = f"the label {labels[0]!r} alone" if labels else f"no text with anything in {label!r}"
        raise ValueError(f"{source} has {found}; expected texts of at least 2 classes")
    ambiguous = Counter(text for text, _ in {(x.text, x.label) for x in texts})
    counts["ambiguous"] = sum(n > 1 for n in ambiguous.values())
    return LabelledTexts(texts, labels, _notes(counts))


def _labelled(row: Row, split: str, by_name: str | None) -> Labelled:
    text = clean(row.texts[0] or "")
    part = row.texts[3] or by_name
    if part not in (None, *SPLITS):
        raise ValueError(f"{row.where} has {part!r} in {split!r}; expected one of {', '.join(SPLITS)}")
    return Labelled(text, clean(row.texts[1] or ""), row.texts[2] or text, part)


def labelled_files(source: Path) -> Iterator[Path]:
    """The file `source`, or all files of labelled texts in the folder `source`. Raises ValueError if there are none."""
    if source.is_file():
        yield source
        return
    if not source.is_dir():
        raise ValueError(f"there is no file or folder {source}; give labelled texts ({', '.join(SUFFIXES)})")
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"no labelled texts in {source}: expected files ending in {', '.join(SUFFIXES)}")
    yield from found


_NOTES = {
    "empty": "{} without any text left out",
    "unlabelled": "{} without a label left out",
    "repeated": "{} equal to one before left out",
    "repeated_test": "{} of the test part equal to one before; kept, for the file says what the test is",
    "ambiguous": "{} with more than one label, each of them kept",
    "normalised": "{} brought to Unicode normal form C",
    "shared": "{} for training left out, for the same text is in the test or validation part",
    "shared_validation": "{} for validation left out, for the same text is in the test part",
    "unknown": "{} of the test part with a label that no training text has",
}


def _notes(counts: Counter[str]) -> list[str]:
    """One sentence for everything that happened at least once."""
    return [text.format(f"{n:,} text{'s' if n > 1 else ''}") for name, text in _NOTES.items() if (n := counts[name])]
