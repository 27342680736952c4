"""The options that every task has, and options as JSON and as a command line."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from tyro.conf import Positional, arg

Options = TypeVar("Options")
RUN_DATA = "(default: the data of the run)"


@dataclass(frozen=True)
class ModelOptions:
    """The model."""

    pattern: str = "mmmh"
    """The blocks in order: m mLSTM, s sLSTM, h hierarchical mLSTM, a attention, l LSTM, g GRU; "(mms)x2" repeats."""
    width: int = 64
    """Numbers in the vector that passes from block to block."""
    arch: Literal["xlstm", "lstm", "gru", "transformer"] = "xlstm"
    """The family of networks; others than xlstm get as many blocks of theirs as give about as many weights."""


@dataclass(frozen=True)
class TrainOptions:
    """What to train on, for how long, and where to."""

    data: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: a shipped sample)")] = None
    """Your data."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/TASK/TIME)")] = None
    """Folder of the run."""
    steps: int | None = 1000
    """Training steps; none: as many as --minutes allow."""
    minutes: Annotated[float | None, arg(metavar="M", help_behavior_hint="(default: no limit)")] = None
    """Training time; whichever of --steps and --minutes comes first ends training."""
    seed: int = 0
    """Seed of everything random; the same seed on the same machine gives the same numbers."""
    device: Annotated[str, arg(metavar="D")] = "auto"
    """Where to compute: cpu, cuda, cuda:1, mps, or auto for the best there is."""
    resume: bool = False
    """Go on with the interrupted run in --out, else with the newest, and with the options it has."""
    model: ModelOptions = field(default_factory=ModelOptions)


@dataclass(frozen=True)
class EvaluateOptions:
    """Score the model of a run again. With a RUN, --help lists what its task adds to these options."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of a run, as `train` made it."""
    device: Annotated[str, arg(metavar="D")] = "auto"
    """Where to compute: cpu, cuda, cuda:1, mps, or auto for the best there is."""


@dataclass(frozen=True)
class PredictOptions:
    """Use the model of a run. With a RUN, --help lists what its task adds to these options."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of a run, as `train` made it."""
    input: Annotated[Positional[Path | None], arg(metavar="[FILE]", help_behavior_hint=RUN_DATA)] = None
    """What to predict from."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """File for the predictions."""
    device: Annotated[str, arg(metavar="D")] = "auto"
    """Where to compute: cpu, cuda, cuda:1, mps, or auto for the best there is."""


@dataclass(frozen=True)
class GenerateOptions:
    """Write text with the model of a run. With a RUN, --help lists what its task adds to these options."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of a run, as `train` made it."""
    device: Annotated[str, arg(metavar="D")] = "auto"
    """Where to compute: cpu, cuda, cuda:1, mps, or auto for the best there is."""


def as_flags(text: str) -> str:
    """The text with Python's `name=` written as the command line's `--name`."""
    return re.sub(r"\b([a-z_]+)=(?=[ ,;)]|$)", lambda name: "--" + name[1].replace("_", "-"), text)


def restore(kind: type[Options], stored: Mapping[str, Any]) -> Options:
    """The options that JSON gave back as `stored`; entries that are no option are left out."""
    hints = get_type_hints(kind)
    return kind(
        **{
            option.name: _restore_value(hints[option.name], stored[option.name])
            for option in fields(kind)  # type: ignore[arg-type]
            if option.name in stored
        }
    )


def _restore_value(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return restore(hint, value)  # type: ignore[arg-type]
    if isinstance(value, str) and Path in (hint, *get_args(hint)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def command_line(options: Any, *, without: Collection[str] = ()) -> list[str]:
    """The words that give `options`, leaving out those with their default value and those named."""
    given = _given(options, type(options)(), "")
    return [word for name, words in given if name not in without for word in words]


def _given(options: Any, default: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    for option in fields(options):
        name, value, usual = (
            prefix + option.name,
            getattr(options, option.name),
            getattr(default, option.name),
        )
        flag = f"--{name.replace('_', '-')}"
        if is_dataclass(value):
            yield from _given(value, usual, f"{name}.")
        elif value is True:
            yield name, [flag]
        elif value != usual:
            words = value if isinstance(value, tuple) else [value]
            yield name, [flag, *("none" if word is None else str(word) for word in words)]
