"""`exlstm export RUN`: the model of a run for other programs, and how far the graphs are from it on the run's data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from exlstm.console import notes, print_table
from exlstm.interop.export.packages import check_packages

if TYPE_CHECKING:
    from exlstm.interop.export.check import Difference
    from exlstm.interop.export.writing import Exported


@dataclass(frozen=True)
class Export:
    """Write the model of a run for programs without exlstm.

    The states of its layers are inputs and outputs, so that a text or a series can be read piece by piece; graph.json
    says what each graph takes and gives.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of a run, as `train` made it, or of a language model."""
    to: Literal["onnx", "openvino", "torch-export"] = "onnx"
    """The format."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: RUN/export/FORMAT)")] = None
    """Folder for the graphs."""
    weights: Literal["full", "int8"] = "full"
    """How matrices are kept: int8 takes a quarter of the space and costs some accuracy."""
    check: Annotated[int, arg(metavar="N")] = 200
    """Steps of the run's data on which the graphs are compared with the model; 0: none."""


def export(options: Export, prog: str) -> int:
    """Write and compare; the exit code.

    Raises:
        ValueError: the model cannot be exported, a package is missing, or the graphs with full weights differ from the
            model by more than `BOUND`.
    """
    from exlstm.interop.export import writing
    from exlstm.interop.export.sources import source_of

    if options.check < 0:
        raise ValueError(f"expected --check of at least 0, got {options.check}")
    check_packages(options.to, options.weights)
    source = source_of(options.run, options.check, prog)
    folder = options.out or options.run / "export" / _name(options)
    notes().print(f"writing {options.to} to {folder}")
    exported = writing.export(source.model, folder, options.to, weights=options.weights, copy=source.copy)
    found = source.compare(exported) if options.check else {}
    names = [*exported.files, *(name for name in found if name not in exported.files)]
    rows = [(name, _size(exported, name), *_differences(found.get(name))) for name in names]
    print_table(("graph", "size", "outputs differ by", "states by", "calls"), rows, numeric=("size", "calls"))
    print(f"what they take and give: {folder / writing.ABOUT}")
    if options.weights == "full":
        _require_close(found)
    return 0


def _name(options: Export) -> str:
    return options.to if options.weights == "full" else f"{options.to}-{options.weights}"


def _require_close(found: "Mapping[str, Difference]") -> None:
    from exlstm.interop.export.check import BOUND

    far = {name: each.largest for name, each in found.items() if not each.largest <= BOUND}
    if far:
        listed = ", ".join(f"{name} by {largest:.1e}" for name, largest in far.items())
        raise ValueError(f"the graphs differ from the model by more than {BOUND:g}: {listed}; do not use them")


def _size(exported: "Exported", name: str) -> str:
    """What the files of a graph take together; nothing for what is no graph."""
    if name not in exported.files:
        return ""
    path = exported.files[name]
    total = sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))
    return f"{total / 2**20:.1f} MiB"


def _differences(found: "Difference | None") -> tuple[str, str, str]:
    return ("", "", "") if found is None else (f"{found.outputs:.1e}", f"{found.state:.1e}", str(found.pieces))
