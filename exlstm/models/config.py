"""Model configs as JSON: frozen dataclasses of plain values, checked field by field when read back."""

import dataclasses
import types
from contextlib import suppress
from reprlib import repr as brief
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def config_to_dict(config: Any) -> dict[str, Any]:
    """The fields of a dataclass instance as values JSON can hold."""
    return dataclasses.asdict(config)


def config_from_dict(kind: type[Config], values: Any, where: str = "config") -> Config:
    """Build the dataclass `kind` from what `config_to_dict` gave and JSON carried.

    Fields may be bool, int, float, str, None, literals, tuples, unions of these, and dataclasses. All must be there
    but those whose metadata is `exlstm.layers.block.ADDED`.

    Raises:
        ValueError: names the fields that are missing, unknown or of the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in fields}
    needed = {name for name, field in fields.items() if not field.metadata.get("added")}
    for problem, names in (
        ("lacks", needed - values.keys()),
        ("has unknown", values.keys() - hints.keys()),
    ):
        if names:
            raise ValueError(f"{where} {problem} {', '.join(sorted(names))} (for {kind.__name__})")
    found = {name: hint for name, hint in hints.items() if name in values}
    return kind(**{name: _decode(hint, values[name], f"{where}.{name}") for name, hint in found.items()})


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return config_from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return _decode(option, value, where)
            except ValueError:
                continue
    elif origin is Literal:
        if any(value == option and type(value) is type(option) for option in args):
            return value
    elif origin is tuple and isinstance(value, list):
        each = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(each) == len(value):
            return tuple(_decode(h, v, f"{where}[{n}]") for n, (h, v) in enumerate(zip(each, value, strict=True)))
    elif hint is float and type(value) in (int, float):
        with suppress(OverflowError):  # whole numbers of JSON may be larger than any float
            return float(value)
    elif hint in (bool, int, str, type(None)) and type(value) is hint:
        return value
    expected = getattr(hint, "__name__", None) if origin is None else hint
    raise ValueError(f"{where} must be {expected}, got {brief(value)}")
