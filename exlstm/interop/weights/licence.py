"""What a directory says of the licence of the weights in it: they keep that of whoever published them."""

import re
from pathlib import Path

from exlstm.models.weight_files import printable

_MOST = 2**16  # characters of a file that are looked at
FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "README.md")


def licence_of(directory: Path) -> str:
    """One line for people, from the head of a model card (README.md) or the first line of a licence's text."""
    if stated := _front_matter(directory / "README.md"):
        return f"licence of the weights: {stated} (says {directory / 'README.md'})"
    for pattern in FILES[:-1]:
        for path in sorted(directory.glob(pattern)):
            lines = (line.strip() for line in _head(path).splitlines())
            if title := next(filter(None, lines), ""):
                return f"licence of the weights: {printable(title)} ({path})"
    return (
        f"licence of the weights: {directory} does not say; they keep that of whoever published them "
        f"(xLSTM-7B: NXAI Community License)"
    )


def _front_matter(card: Path) -> str:
    """The licence that the head of a model card names, "" if none."""
    found = re.match(r"---[ \t]*\n(.*?)\n---", _head(card), re.DOTALL)
    fields = dict(re.findall(r"^(license(?:_name|_link)?):[ \t]*(\S.*)$", found[1] if found else "", re.MULTILINE))
    name = fields.get("license_name") or fields.get("license", "")
    link = f", {fields['license_link']}" if name and "license_link" in fields else ""
    return printable(name + link).strip("\"' ")


def _head(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MOST)
