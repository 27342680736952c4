"""Rows of text from files that hold many: JSON lines, Parquet, tab-separated values."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """The texts of the columns asked for, and where they stand; None for an optional column that is not there."""

    where: str
    texts: tuple[str | None, ...]


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a .jsonl, .parquet or .tsv file, one after another.

    A .tsv file begins with the names of its columns; if those asked for are not among them, its first line is a
    row too, and its columns are those asked for in their order.

    Raises:
        ValueError: the file is not what its name says, or a column is missing.
    """
    match path.suffix.lower():
        case ".jsonl":
            return _json_lines(path, columns, optional)
        case ".parquet":
            return _parquet(path, columns, optional)
        case ".tsv":
            return _tab_separated(path, columns, optional)
        case suffix:
            raise ValueError(
                f"expected a file that ends in .jsonl, .parquet or .tsv, got {path} ({suffix or 'nothing'})"
            )


def _json_lines(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path} line {number} is not JSON: {error}") from error
            for name in columns:
                if not isinstance(record, dict) or not isinstance(record.get(name), str):
                    keys = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
                    raise ValueError(f"{path} line {number} has no text in {name!r}; it has: {keys}")
            texts = (*(record[name] for name in columns), *(_text(record.get(name)) for name in optional))
            yield Row(f"{path}:{number}", texts)


def _parquet(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        names = file.schema_arrow.names
        for name in columns:
            if name not in names:
                raise ValueError(f"{path} has no column {name!r}; it has: {', '.join(names)}")
        there = [name for name in (*columns, *optional) if name in names]
        number = 0
        for batch in file.iter_batches(columns=there):
            for record in batch.to_pylist():
                number += 1
                texts = (
                    *(_text(record[name]) or "" for name in columns),
                    *(_text(record.get(name)) for name in optional),
                )
                yield Row(f"{path}:{number}", texts)
    except ArrowException as error:
        raise ValueError(f"{path} is damaged or no Parquet file: {error}") from error


def _tab_separated(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    wanted = (*columns, *optional)
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        header, first = file.readline().rstrip("\r\n").split("\t"), 2
        if len(header) < len(columns):
            raise ValueError(
                f"{path} has {len(header)} tab-separated columns, expected {len(columns)}: {', '.join(columns)}"
            )
        places = {name: header.index(name) for name in wanted if name in header}
        if not places.keys() >= set(columns):
            places, first = {name: place for place, name in enumerate(wanted) if place < len(header)}, 1
            file.seek(0)
        for number, line in enumerate(iter(file.readline, ""), first):
            cells = line.rstrip("\r\n").split("\t")
            if cells == [""]:
                continue
            if len(cells) < len(header):
                raise ValueError(
                    f"{path} line {number} has {len(cells)} tab-separated columns, expected {len(header)} "
                    "as in its first line"
                )
            yield Row(f"{path}:{number}", tuple(cells[places[name]] if name in places else None for name in wanted))


def _text(value: object) -> str | None:
    return None if value is None else str(value)
