import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from tyro.conf import Positional, arg

from exlstm.arguments import UsageError, flags, parse


@dataclass(frozen=True)
class Inner:
    """The inner part."""

    width: int = 8
    """How wide."""


@dataclass(frozen=True)
class Outer:
    """Does something."""

    source: Positional[Path | None] = None
    """Where from."""
    data: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: a sample)")] = None
    """A file."""
    max_steps: int | None = 10
    """How long."""
    rate: float = 0.5
    """How fast."""
    kind: Literal["round", "square"] = "round"
    """Which."""
    names: tuple[str, ...] = ()
    """Several."""
    again: bool = False
    """Once more."""
    inner: Inner = field(default_factory=Inner)


def complaint(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(Outer, words, prog="tool")
    text = str(caught.value)
    assert "\n" not in text
    assert not set("│─╭╮╰╯") & set(text)
    return text


def test_words_become_typed_options():
    words = "in.csv --max-steps 3 --rate 1e-3 --kind square --names a b --again --inner.width=4".split()  # noqa: SIM905
    assert parse(Outer, words, prog="tool") == Outer(
        Path("in.csv"), None, 3, 1e-3, "square", ("a", "b"), True, Inner(4)
    )


def test_no_words_give_the_defaults_or_those_given_instead():
    assert parse(Outer, [], prog="tool") == Outer()
    other = Outer(rate=2.0, names=("x",), inner=Inner(3))
    assert parse(Outer, ["--rate", "3"], prog="tool", default=other) == Outer(rate=3.0, names=("x",), inner=Inner(3))


def test_a_flag_that_is_on_by_default_can_be_said_again():
    assert parse(Outer, ["--again"], prog="tool", default=Outer(again=True)).again


def test_none_is_a_value_of_an_optional_option_only():
    assert parse(Outer, ["--max-steps", "none"], prog="tool").max_steps is None
    assert complaint("--rate", "none") == "tool: --rate: expected a number, got 'none'"


def test_underscores_are_taken_for_hyphens():
    assert parse(Outer, ["--max_steps", "3"], prog="tool").max_steps == 3


def test_flags_lists_options_but_no_positional_arguments():
    assert flags(Outer) == [
        "--data",
        "--max-steps",
        "--rate",
        "--kind",
        "--names",
        "--again",
        "--inner.width",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--max-steps many", "tool: --max-steps: expected a whole number, got 'many'"),
        ("--max-steps 3.5", "tool: --max-steps: expected a whole number, got '3.5'"),
        ("--rate 1,5", "tool: --rate: expected a number, got '1,5'"),
        ("--inner.width wide", "tool: --inner.width: expected a whole number, got 'wide'"),
        ("--kind oval", "tool: --kind: expected 'round', 'square', got 'oval'"),
        ("--data=", "tool: --data: expected a path, got ''"),
        ("--rate", "tool: --rate needs a value"),
        ("--data --rate 3", "tool: --data needs a value"),
        ("--maxsteps 3", "tool has no option --maxsteps; did you mean --max-steps?"),
        ("--steps 3", "tool has no option --steps; did you mean --max-steps?"),
        ("--width 3", "tool has no option --width; did you mean --inner.width?"),
        ("--inner.wdth=3", "tool has no option --inner.wdth; did you mean --inner.width?"),
        ("-rate 3", "tool has no option -rate; did you mean --rate?"),
        ("--zzz", "tool has no option --zzz; tool --help lists what there is"),
        ("a.csv b.csv", "tool takes no argument 'b.csv' here; did you mean --data b.csv?"),
        ("a.csv again", "tool takes no argument 'again' here; did you mean --again?"),
        ("--again yes 3", "tool takes no argument '3' here; tool --help lists what there is"),
    ],
)
def test_every_mistake_is_told_in_one_sentence(words, sentence):
    assert complaint(*words.split()) == sentence


def test_sentence_is_the_same_where_the_terminal_has_no_unicode(monkeypatch):
    class Ascii(io.StringIO):
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Ascii())
    assert complaint("--kind", "oval") == "tool: --kind: expected 'round', 'square', got 'oval'"


def test_a_long_value_is_quoted_unbroken():
    value = "x" * 300
    assert f"got {value!r}" in complaint("--rate", value)


def test_missing_positional_argument_is_named():
    @dataclass(frozen=True)
    class Needy:
        """Needs something."""

        run: Annotated[Positional[Path], arg(metavar="RUN")]
        """The run."""

    with pytest.raises(UsageError, match=r"^tool: RUN is missing$"):
        parse(Needy, [], prog="tool")


def test_help_lists_every_option_with_its_text(capsys):
    with pytest.raises(SystemExit) as left:
        parse(Outer, ["--help"], prog="tool")
    assert not left.value.code
    output = capsys.readouterr().out
    assert all(flag in output for flag in flags(Outer))
    assert "How wide." in output
    assert "(default: a sample)" in output
