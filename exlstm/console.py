"""What a person sees in the terminal: notes on the standard error, results on the standard output."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def notes() -> Console:
    """Where progress and remarks go, so that the standard output holds results alone.

    Text is printed as it is: names from files and the paths of folders are no markup.
    """
    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    numeric: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print rows of text, ruled on a terminal and as plain aligned columns elsewhere.

    The columns named in `numeric` are aligned to the right.
    """
    console = console or Console(highlight=False)
    if title:
        console.print(Text(title, style="bold"))
    if not console.is_terminal:
        for line in _plain_lines(columns, rows, numeric):
            console.print(Text(line), soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(Text(name), justify="right" if name in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _plain_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str]) -> Iterator[str]:
    widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
    for row in (columns, *rows):
        cells = (
            text.rjust(width) if name in numeric else text.ljust(width)
            for name, text, width in zip(columns, row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()
