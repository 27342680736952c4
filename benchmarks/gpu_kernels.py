"""GPU: where the time of a contestant of `gpu.py` goes, kernel by kernel, and how fast it is with other tiles.

    python benchmarks/gpu_kernels.py CONTESTANT [--sizes B,T,DK,DV] [--mode forward|both] [--tile FIELD VALUES] ...

The contestants are the matrix memories of `gpu_work`, for instance mlstm, hmlstm and "xl_chunk 128, 8 warps". VALUES
are those of a `Tile` of the operator's table, as JSON: --tile scores "[64, 0, 64, 4, 2]" for mlstm, --tile outputs
'[{"BT": 128, "BV": 256, "BD": 64, "BS": 64}, 8, 3]' for hmlstm.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from benchmarks import gpu_work  # noqa: E402
from exlstm.ops.triton import hmlstm_call, hmlstm_tiles, mlstm_call, mlstm_tiles  # noqa: E402

CALLS = 5
TABLES = {  # of the contestants that have one: who reads it, and where it is
    "mlstm": (mlstm_call, mlstm_tiles),
    "mlstm sigmoid": (mlstm_call, mlstm_tiles),
    "hmlstm": (hmlstm_call, hmlstm_tiles),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU.", file=sys.stderr)
        return 2
    batch, time, dk, dv = options.sizes
    build, fixed = gpu_work.CONTESTANTS[options.contestant]
    with torch.device("cuda"), tiles(options.contestant, dict(options.tile)) if options.tile else nullcontext():
        run, inputs, _ = build(**fixed, batch=batch, time=time, dk=dk, dv=dv)
        call = gpu_work.call_of(run, inputs, options.mode)
        rows = kernels_of(call)
    print(f"{options.contestant}, {options.mode}, {batch} x {time}, {dk}, {dv}: {sum(x for _, x, _ in rows):.3f} ms")
    for name, milliseconds, launches in rows:
        print(f"{milliseconds:10.3f} {launches:6g}  {name}")
    return 0


def kernels_of(call: Callable[[], Any]) -> list[tuple[str, float, float]]:
    """Of one call: kernels by name, their milliseconds on the device and how often each is launched, longest first."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    events = [event for event in found.key_averages() if event.self_device_time_total > 0]
    rows = [(event.key, event.self_device_time_total / CALLS / 1e3, event.count / CALLS) for event in events]
    return sorted(rows, key=lambda row: -row[1])


@contextmanager
def tiles(who: str, changed: Mapping[str, Sequence[Any]]) -> Iterator[None]:
    """Within it these fields of a contestant's table have other values."""
    reader, table = TABLES[who]
    real = reader.tiles_of

    def tiles_of(*sizes: Any) -> Any:
        return real(*sizes)._replace(**{field: table.Tile(*values) for field, values in changed.items()})

    with patch.object(reader, "tiles_of", tiles_of):
        yield


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="gpu_kernels.py", description=__doc__.partition("\n")[0])
    memories = [who for who, (build, _) in gpu_work.CONTESTANTS.items() if "dk" in signature(build).parameters]
    parser.add_argument("contestant", choices=memories, metavar="CONTESTANT")
    parser.add_argument("--sizes", type=_sizes, default=(1, 65536, 256, 512), metavar="B,T,DK,DV")
    parser.add_argument("--mode", choices=("forward", "both"), default="both")
    parser.add_argument("--tile", nargs=2, action="append", default=[], metavar=("FIELD", "VALUES"))
    options = parser.parse_args(arguments)
    try:
        options.tile = [(field, _values(options.contestant, field, text)) for field, text in options.tile]
    except ValueError as error:
        parser.error(f"--tile: {error}")
    return options


def _values(who: str, field: str, text: str) -> list[Any]:
    """Those of a tile, as its table has them."""
    if who not in TABLES:
        raise ValueError(f"tiles are those of {', '.join(TABLES)}, got {who!r}")
    table = TABLES[who][1]
    if field not in (fields := table.Tiles._fields[1:]):
        raise ValueError(f"the table of {who} has the fields {', '.join(fields)}, got {field!r}")
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, list) or len(values) != len(table.Tile._fields):
        raise ValueError(f"{field} needs a JSON list of {', '.join(table.Tile._fields)}, got {text!r}")
    return values


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"four numbers B,T,DK,DV are needed, got {text!r}")
    return sizes


if __name__ == "__main__":
    raise SystemExit(main())
