"""JSON files that are written whole or not at all, and what differs between two of them."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON of `plain(value)`. Raises TypeError for what JSON cannot hold."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` as JSON will give it back: numbers that are not finite become None, paths become strings,
    tuples become lists, tensors and NumPy scalars become numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, (str, bool, int, float)) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON (see `to_json`); after a crash the file holds either the old or the new text."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace the file's text in one step; after a crash it holds either the old or the new text."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def read_json(path: Path) -> Any:
    """What the JSON file holds. Raises ValueError naming the file when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def sync_directory(path: Path) -> None:
    """Make renames inside the directory survive a power cut (POSIX; Windows has no such call)."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line for each entry, nested ones by dotted name, that JSON would store differently.

    >>> differences({"lr": 0.1, "model": {"width": 8}}, {"lr": 0.1, "model": {"width": 16}})
    ['model.width: was 8, now 16']
    """
    old, new = _flatten(json.loads(to_json(before))), _flatten(json.loads(to_json(after)))
    return [
        f"{name}: was {old.get(name, 'absent')}, now {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, ...) != new.get(name, ...)
    ]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat
