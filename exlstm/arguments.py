"""From a list of words to a frozen dataclass of options, with every mistake told in one sentence.

tyro does the parsing and the help. It reports mistakes in boxes of many lines; here they are caught and
condensed, and an unknown word gets the option it was probably meant to be.
"""

import contextlib
import difflib
import io
import operator
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import dropwhile, takewhile
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro import MISSING_NONPROP
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

Options = TypeVar("Options")

_EXPECTED: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
_METAVAR = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class UsageError(Exception):
    """The command line cannot be understood; the message is one sentence for the person who typed it."""


def parse(options: type[Options], words: Sequence[str], *, prog: str, default: Options | None = None) -> Options:
    """An instance of the dataclass `options` from the words after `prog`; `default` replaces its defaults.

    Raises UsageError. `--help` prints the options and raises SystemExit(0).
    """
    if unknown_option := _unknown_option(options, words):
        raise UsageError(f"{prog} {_explain_option(unknown_option, options, prog)}")
    complaint, wants_help = io.StringIO(), bool({"-h", "--help"} & set(words))
    try:
        with contextlib.redirect_stderr(complaint), _columns(None if wants_help else 10_000):
            parsed, stray = tyro.cli(
                options,
                prog=prog,
                args=list(words),
                default=MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
                # A flag that is on by default would else be known by its negation alone.
                config=(tyro.conf.FlagCreatePairsOff,) if default is None else (),
                registry=_registry(),
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise UsageError(f"{prog}: {_condense(complaint.getvalue())}") from None
    if stray:
        raise UsageError(f"{prog} {_explain_argument(stray[0], options, prog)}")
    return parsed


def flags(options: type[Any], prefix: str = "--") -> list[str]:
    """The flags of a dataclass of options, nested ones with dots, in the order of `--help`."""
    names = []
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        hint = hints[field.name]
        if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
            continue
        if is_dataclass(hint):
            names += flags(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            names.append(prefix + field.name.replace("_", "-"))
    return names


def closest(word: str, candidates: Sequence[str]) -> str | None:
    """The candidate that `word` was probably meant to be, None if it resembles none."""
    matches = difflib.get_close_matches(word.lower(), candidates, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _registry() -> ConstructorRegistry:
    """Numbers and paths, optional or not, with plain names and plain complaints."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def scalar(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        optional = get_origin(info.type) in (Union, UnionType)
        kinds = [kind for kind in get_args(info.type) if kind is not NoneType] if optional else [info.type]
        if len(kinds) != 1 or kinds[0] not in _EXPECTED:
            return None
        kind = kinds[0]

        def construct(words: list[str]) -> Any:
            (word,) = words
            if optional and word.lower() == "none":
                return None
            try:
                if not word.strip():
                    raise ValueError
                return kind(word)
            except ValueError:
                raise ValueError(f"expected {_EXPECTED[kind]}, got {word!r}") from None

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=_METAVAR[kind],
            instance_from_str=construct,
            is_instance=lambda value: isinstance(value, kind) or (optional and value is None),
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )

    return registry


@contextlib.contextmanager
def _columns(count: int | None) -> Iterator[None]:
    """Let tyro take the terminal to be `count` columns wide, so that it breaks no line of a complaint."""
    before = os.environ.get("COLUMNS")
    if count is not None:
        os.environ["COLUMNS"] = str(count)
    try:
        yield
    finally:
        if before is not None:
            os.environ["COLUMNS"] = before
        elif count is not None:
            del os.environ["COLUMNS"]


def _condense(box: str) -> str:
    """The first paragraph of one of tyro's boxes, as one sentence in our words."""
    below_title = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]
    lines = (re.sub(r"^[-─╰╯]+$", "", line.strip("│ ")) for line in below_title)
    paragraph = takewhile(bool, dropwhile(operator.not_, lines))
    text = " ".join(paragraph).rstrip(". ")
    text = re.sub(r"^Error parsing (\S+): ", r"\1: ", text)
    text = re.sub(r"^Missing from [^:]*: (\S+).*", r"\1 is missing", text)
    text = re.sub(r"^Missing value for argument '(\S+)'.*", r"\1 needs a value", text)
    return re.sub(
        r"^invalid choice '(.*)' for argument '(\S+)'. Expected one of \((.*?),?\)",
        r"\2: expected \3, got '\1'",
        text,
    )


def _unknown_option(options: type[Any], words: Sequence[str]) -> str | None:
    """The first word that looks like an option and is none; tyro would take the next words for arguments."""
    known = {*flags(options), "--help", "-h"}
    for word in words:
        if word == "--":
            return None
        name = word.partition("=")[0]
        if re.match(r"--?[a-zA-Z]", word) and name.replace("_", "-") not in known:
            return name
    return None


def _explain_option(name: str, options: type[Any], prog: str) -> str:
    known = flags(options)
    plain = name.strip("-").replace("_", "-")
    nested = [flag for flag in known if flag.rpartition(".")[2] == plain]
    suggestion = nested[0] if nested else closest(f"--{plain}", [*known, "--help"])
    return f"has no option {name}{_did_you_mean(suggestion, prog)}"


def _explain_argument(word: str, options: type[Any], prog: str) -> str:
    known = flags(options)
    suggestion = closest(f"--{word}", [*known, "--help"])
    if "--data" in known and (Path(word).suffix or Path(word).exists()):
        suggestion = f"--data {word}"
    return f"takes no argument {word!r} here{_did_you_mean(suggestion, prog)}"


def _did_you_mean(suggestion: str | None, prog: str) -> str:
    return f"; did you mean {suggestion}?" if suggestion else f"; {prog} --help lists what there is"
