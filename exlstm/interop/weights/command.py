"""`exlstm convert SOURCE DEST`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from exlstm.interop.weights.target import Target


@dataclass(frozen=True)
class Convert(Target):
    """Turn published weights into a model of exlstm, or a model of exlstm into a layout that others read.

    SOURCE is a directory with config and safetensors files: of transformers' xLSTM, such as xLSTM-7B, of the package
    xlstm, or of exlstm, such as the folder of a run; or TiRex's model.ckpt. A tensor at a time is held in memory.
    """

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """What to read."""
    dest: Annotated[Positional[Path], arg(metavar="DEST")]
    """What to write: a new directory."""


def convert(options: Convert) -> int:
    """Convert, and print the directory written; the exit code."""
    from exlstm.interop import tirex
    from exlstm.interop.weights.convert import convert as write

    target = Target(**{field.name: getattr(options, field.name) for field in fields(Target)})
    if not tirex.is_tirex(options.source):
        print(write(options.source, options.dest, target))
    elif target == Target():
        print(tirex.convert(options.source, options.dest))
    else:
        raise ValueError(
            f"{options.source} is a TiRex, which only becomes a model of exlstm; give SOURCE and DEST alone"
        )
    return 0
