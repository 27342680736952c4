"""A report as one HTML file that needs nothing else: no network, no script, no font, no image beside it.

A task says what to show, as sections of text, tables and pictures; how it looks is in `templates/`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exlstm.tasks.figures import Picture
from exlstm.train.files import write_text


@dataclass(frozen=True)
class Number:
    """One of the few numbers at the top of a report."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text whose first cell names the row; `strong` holds the places `(row, column)` to stress."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[tuple[int, int]] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report. What is left empty is not shown; a folded section opens on a click."""

    title: str
    text: str = ""
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """Everything on the page, from top to bottom."""

    kicker: str
    title: str
    headline: str
    numbers: Sequence[Number]
    sections: Sequence[Section]
    footer: str = ""


def render(report: Report) -> str:
    """The report as HTML. Texts are escaped; pictures are taken as they are."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("exlstm.tasks"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("report.css").render()
    return environment.get_template("report.html").render(report=report, style=Markup(style), Markup=Markup)


def write_report(path: Path, report: Report) -> None:
    """Write the report to `path`, whole or not at all. Raises OSError when it cannot be written."""
    write_text(path, render(report))
