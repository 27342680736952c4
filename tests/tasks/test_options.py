import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import torch

from exlstm.arguments import parse
from exlstm.tasks.device import pick_device
from exlstm.tasks.options import ModelOptions, TrainOptions, as_flags, command_line, restore
from exlstm.train.files import to_json


@dataclass(frozen=True)
class Juggle(TrainOptions):
    """Juggle."""

    balls: tuple[str, ...] = ()
    """Which."""
    model: ModelOptions = field(default_factory=lambda: ModelOptions(pattern="ms", width=8))


GIVEN = Juggle(
    data=Path("my data.csv"),
    steps=None,
    minutes=2.5,
    resume=True,
    balls=("red", "blue"),
    model=ModelOptions(pattern="(mh)x2", width=8),
)


@pytest.mark.parametrize("options", [Juggle(), GIVEN])
def test_options_survive_json(options):
    assert restore(Juggle, json.loads(to_json(asdict(options)))) == options


def test_restoring_passes_over_what_is_no_option():
    assert restore(Juggle, {"seed": 3, "digest": "abc"}) == Juggle(seed=3)


@pytest.mark.parametrize("options", [Juggle(), GIVEN])
def test_command_line_gives_the_options_back(options):
    assert parse(Juggle, command_line(options), prog="tool") == options


def test_command_line_leaves_out_defaults_and_what_it_is_told_to():
    assert command_line(Juggle()) == []
    words = command_line(GIVEN, without={"data", "resume", "minutes"})
    assert words == ["--steps", "none", "--model.pattern", "(mh)x2", "--balls", "red", "blue"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name yours with id_column=, target= or static=", "name yours with --id-column, --target or --static"),
        ("use future=", "use --future"),
        ("expected draw='windows', a=b", "expected draw='windows', a=b"),
    ],
)
def test_arguments_of_python_become_flags_and_nothing_else_does(text, expected):
    assert as_flags(text) == expected


def test_cpu_is_a_device_and_auto_is_one_that_works():
    assert pick_device("cpu") == torch.device("cpu")
    assert torch.ones(2, device=pick_device("auto")).sum().item() == 2


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:1", "CPU"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=r"--device can be auto or cpu"):
        pick_device(name)
