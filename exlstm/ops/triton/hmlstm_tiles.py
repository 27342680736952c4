"""Tile sizes of the hierarchical mLSTM's kernels.

Those of half precision up to 256 columns were chosen by measurement on an H100 (benchmarks/results/GPU-20261127-1816),
the others so that they fit its registers and shared memory (`tests/ops/triton/test_compiled.py`).
"""

import functools
from typing import NamedTuple

import torch

from exlstm.ops.triton.launch import padded

LONGEST = 256  # steps of a chunk


class Tile(NamedTuple):
    """What one program of a kernel works on, by the names of its arguments, and how it is compiled."""

    blocks: dict[str, int]
    warps: int
    stages: int

    @property
    def compiled(self) -> dict[str, int]:
        return {"warps": self.warps, "stages": self.stages}

    def across(self, dk: int, dv: int) -> int:
        """How many programs share a memory [DK, DV]."""
        return -(-dk // self.blocks["BK"]) * -(-dv // self.blocks["BV"])


class Tiles(NamedTuple):
    """Of all kernels of a call. Names: B, BT, BS, BL steps, BK and BV columns of keys and values, BD summed over."""

    chunk: int
    memories: Tile
    scores: Tile
    outputs: Tile
    scores_backward: Tile
    memories_backward: Tile
    queries: Tile
    keys: Tile
    values: Tile

    @property
    def block(self) -> int:
        """The largest block of steps that reads scores: they are filled up with zeros to its end."""
        return max(size for tile in self[1:] for name, size in tile.blocks.items() if name in ("B", "BT", "BS"))


_WIDE = Tiles(
    chunk=256,
    memories=Tile({"BL": 64, "BK": 64, "BV": 128}, 4, 3),
    scores=Tile({"B": 64, "BD": 64}, 4, 3),
    outputs=Tile({"BT": 128, "BV": 256, "BD": 64, "BS": 64}, 8, 3),
    scores_backward=Tile({"B": 64, "BD": 64}, 8, 4),
    memories_backward=Tile({"BL": 64, "BK": 64, "BV": 128}, 4, 3),
    queries=Tile({"BT": 64, "BD": 64, "BS": 64}, 8, 3),
    keys=Tile({"BS": 64, "BD": 64, "BT": 32}, 8, 3),
    values=Tile({"BS": 128, "BV": 128, "BD": 64, "BT": 64}, 8, 3),
)
_WIDEST = _WIDE._replace(  # keys of more than 256 columns
    queries=Tile({"BT": 32, "BD": 32, "BS": 32}, 8, 2), keys=Tile({"BS": 32, "BD": 32, "BT": 32}, 8, 2)
)
_NARROW = Tiles(
    chunk=128,
    memories=Tile({"BL": 64, "BK": 64, "BV": 128}, 4, 3),
    scores=Tile({"B": 64, "BD": 64}, 4, 2),
    outputs=Tile({"BT": 64, "BV": 128, "BD": 64, "BS": 64}, 4, 2),
    scores_backward=Tile({"B": 64, "BD": 64}, 4, 2),
    memories_backward=Tile({"BL": 128, "BK": 64, "BV": 64}, 4, 3),
    queries=Tile({"BT": 64, "BD": 64, "BS": 64}, 4, 3),
    keys=Tile({"BS": 64, "BD": 64, "BT": 64}, 4, 3),
    values=Tile({"BS": 64, "BV": 128, "BD": 64, "BT": 64}, 4, 2),
)
_FLOAT32 = Tiles(
    chunk=64,
    memories=Tile({"BL": 32, "BK": 32, "BV": 64}, 4, 2),
    scores=Tile({"B": 32, "BD": 32}, 4, 2),
    outputs=Tile({"BT": 32, "BV": 64, "BD": 32, "BS": 32}, 4, 2),
    scores_backward=Tile({"B": 32, "BD": 32}, 4, 2),
    memories_backward=Tile({"BL": 32, "BK": 32, "BV": 64}, 4, 2),
    queries=Tile({"BT": 32, "BD": 16, "BS": 16}, 8, 1),
    keys=Tile({"BS": 32, "BD": 16, "BT": 16}, 8, 1),
    values=Tile({"BS": 32, "BV": 64, "BD": 32, "BT": 32}, 4, 1),
)


def tiles_of(dtype: torch.dtype, dk: int, dv: int, time: int, chunk_size: int | None = None) -> Tiles:
    """The tiles for a call; without `chunk_size` the table chooses it."""
    return _fitted(dtype, padded(dk), padded(dv), chunk_of(dtype, dk, dv, time, chunk_size))


def chunk_of(dtype: torch.dtype, dk: int, dv: int, time: int, chunk_size: int | None = None) -> int:
    """How many steps a chunk of the call has."""
    chunk = min(padded(chunk_size or _table(dtype, dk, dv).chunk), LONGEST)
    if time < chunk:  # asked first: what is compiled for sequences of any length is so for all longer ones
        chunk = padded(time)
    return chunk


def _table(dtype: torch.dtype, dk: int, dv: int) -> Tiles:
    if dtype not in (torch.bfloat16, torch.float16):
        return _FLOAT32
    if dk > 256:
        return _WIDEST
    return _WIDE if dk > 64 or dv > 128 else _NARROW


@functools.lru_cache
def _fitted(dtype: torch.dtype, dk: int, dv: int, chunk: int) -> Tiles:
    """None of a tile's sides longer than what it is of."""

    def fitted(name: str, tile: Tile) -> Tile:
        columns = {"BK": dk, "BV": dv, "BD": min(dk, dv)}
        blocks = {x: min(size, columns.get(x, chunk)) for x, size in tile.blocks.items()}
        if name in ("queries", "keys"):  # one program holds all columns of a gradient
            blocks["BK"] = dk
        if "B" in blocks:
            blocks["LOG_B"] = blocks["B"].bit_length() - 1
        return tile._replace(blocks=blocks)

    table = _table(dtype, dk, dv)
    return Tiles(chunk, *(fitted(name, tile) for name, tile in zip(Tiles._fields[1:], table[1:], strict=True)))
