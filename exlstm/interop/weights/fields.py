"""What a config of other people's says, field by field, with every mistake told in one sentence."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Never

from exlstm.models.weight_files import read_json, read_text

MOST = 2**28
"""The largest size that is believed; products of two of them still fit 64 bits."""


class Fields:
    """The fields of a config, or of a part of one, each taken by its name.

    Args:
        values: what the file holds.
        where: what errors call it.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise ValueError(f"{where} must be fields with names, got {brief(values)}")
        self.where = where
        self._values = {name: value for name, value in values.items() if not name.startswith("_")}
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def says_none(self, name: str) -> bool:
        """Whether there is a null of this name."""
        return name in self._values and self._values[name] is None

    def take(self, name: str, default: Any = None) -> Any:
        """A value of any kind."""
        self._taken.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number; it must be there if there is no default."""
        value = self.take(name, default)
        if type(value) is not int or not least <= value <= MOST:
            self._refuse(name, f"a whole number from {least} to {MOST}", value)
        return value

    def either(self, name: str, other: str, default: int | None = None) -> int:
        """A size that goes by two names."""
        if name in self and other in self and self.size(name) != self.size(other):
            self._refuse(name, f"{self.take(other)}, as its {other} is", self.take(name))
        self.skip(name, other)
        return self.size(name if name in self or other not in self else other, default)

    def scaled(self, name: str, default: float, of: int, rule: Callable[[float], int]) -> int:
        """The size that `rule` makes of a factor times `of`."""
        size = rule(of * min(self.number(name, default), MOST))
        if not 1 <= size <= MOST:
            self._refuse(name, f"such that the size it gives is from 1 to {MOST}", self.take(name, default))
        return size

    def number(self, name: str, default: float) -> float:
        """A number above 0."""
        value = self.take(name, default)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:  # whole numbers may be larger
            self._refuse(name, "a number above 0", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self.take(name, default)
        if type(value) is not bool:
            self._refuse(name, "true or false", value)
        return value

    def one_of(self, name: str, choices: Mapping[str, Any], default: str) -> Any:
        """What a word stands for."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in choices:
            self._refuse(name, " or ".join(map(repr, choices)), value)
        return choices[value]

    def only(self, name: str, value: Any) -> None:
        """There may be nothing else here."""
        found = self.take(name, value)
        if found != value:
            self._refuse(name, f"{value!r}, as exlstm computes nothing else", found)

    def part(self, name: str) -> "Fields":
        """The fields below a name; none if there are none."""
        return Fields(self.take(name, {}), f"{self.where}.{name}")

    def skip(self, *names: str) -> None:
        """What does not matter to the outputs of a model."""
        self._taken |= {*names}

    def finish(self) -> None:
        """Raise ValueError if there is something that was not taken."""
        if unknown := sorted(self._values.keys() - self._taken):
            raise ValueError(f"{self.where} has unknown {', '.join(map(brief, unknown[:8]))}; expected none")

    def _refuse(self, name: str, expected: str, value: Any) -> Never:
        found = "nothing" if value is None else brief(value)
        raise ValueError(f"{self.where}.{name} must be {expected}, got {found}")


def read_config_file(directory: Path) -> tuple[Any, Path]:
    """The values in config.json or config.yaml of a directory, and which of them it was.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise ValueError(f"expected a directory with a config and safetensors files; {directory} {what}")
    if (path := directory / "config.json").is_file():
        return read_json(path), path
    if (path := directory / "config.yaml").is_file():
        return _read_yaml(path), path
    raise ValueError(f"no model in {directory}: it has neither config.json nor config.yaml")


def _read_yaml(path: Path) -> Any:
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} needs the package pyyaml: pip install 'exlstm[weights]'") from error

    class Loader(yaml.SafeLoader):
        """As in YAML 1.2, where 1e-06 is a number."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d{1,3}$"), [*"+-0123456789"])
    text = read_text(path)
    try:
        aliased = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader))
        values = None if aliased else yaml.load(text, Loader)  # a safe one
    except Exception as error:  # of many kinds: `!!bool maybe` is a KeyError there
        raise ValueError(f"{path} is not valid YAML: {brief(str(error))}") from error
    if aliased:
        raise ValueError(f"{path} has aliases (*name), which are not read: written out they may have any size")
    return values


def factor(size: int, of: int, rule: Callable[[float], int], *usual: float) -> float:
    """A number that times `of` gives `size` by `rule`, one of the `usual` if it does."""
    exact = size / of
    for candidate in (*usual, exact, math.nextafter(exact, math.inf), math.nextafter(exact, 0)):
        if rule(of * candidate) == size:
            return candidate
    raise AssertionError((size, of))
