"""Tile sizes of the mLSTM kernels, chosen by measurement on an H100 (`python benchmarks/gpu.py`)."""

from typing import NamedTuple

import torch

from exlstm.ops.triton.launch import padded


class Tile(NamedTuple):
    """What one program works on, and how it is compiled."""

    t: int  # steps that read
    s: int  # steps that are read
    k: int  # columns of queries and keys
    v: int  # columns of values
    c: int  # columns of a memory that are read at once, of the axis that the product sums over
    warps: int
    stages: int

    @property
    def compiled(self) -> dict[str, int]:
        return {"warps": self.warps, "stages": self.stages}

    @property
    def blocks(self) -> dict[str, int]:
        return {"BT": self.t, "BS": self.s, "BK": self.k, "BV": self.v, "BC": self.c}

    def over_states(self, dk: int, dv: int) -> int:
        """How many programs share the memory [DK, DV] of a head."""
        return -(-dk // self.k) * -(-dv // self.v)


class Tiles(NamedTuple):
    """Of all kernels of a call."""

    chunk: int
    states: Tile
    outputs: Tile
    states_backward: Tile
    queries: Tile
    keys: Tile
    values: Tile


#                             t    s    k    v   c  warps stages
_WIDE = Tiles(
    chunk=128,
    states=Tile(0, 64, 64, 128, 0, 4, 3),
    outputs=Tile(128, 64, 256, 128, 128, 8, 2),
    states_backward=Tile(0, 64, 64, 128, 0, 8, 2),
    queries=Tile(64, 32, 256, 512, 64, 8, 2),
    keys=Tile(32, 64, 256, 512, 64, 8, 2),
    values=Tile(64, 128, 256, 128, 128, 8, 2),
)
_NARROW = Tiles(
    chunk=128,
    states=Tile(0, 128, 16, 64, 0, 4, 3),
    outputs=Tile(64, 64, 64, 128, 64, 4, 2),
    states_backward=Tile(0, 128, 16, 64, 0, 4, 3),
    queries=Tile(64, 64, 64, 128, 64, 4, 2),
    keys=Tile(64, 64, 64, 128, 64, 4, 2),
    values=Tile(64, 64, 64, 128, 64, 4, 2),
)
_WIDEST = _WIDE._replace(  # keys of more than 256 columns
    outputs=Tile(64, 32, 256, 128, 64, 8, 2),
    queries=Tile(64, 32, 512, 64, 64, 8, 1),
    keys=Tile(32, 64, 512, 64, 64, 8, 1),
    values=Tile(32, 64, 256, 128, 64, 8, 2),
)
_FLOAT32 = Tiles(
    chunk=64,
    states=Tile(0, 32, 32, 64, 0, 4, 2),
    outputs=Tile(32, 32, 128, 64, 32, 4, 1),
    states_backward=Tile(0, 32, 32, 64, 0, 4, 2),
    queries=Tile(32, 32, 512, 32, 32, 4, 1),
    keys=Tile(32, 32, 512, 32, 32, 4, 1),
    values=Tile(32, 32, 128, 64, 32, 4, 1),
)


def tiles_of(dtype: torch.dtype, dk: int, dv: int, time: int, chunk_size: int = 0) -> Tiles:
    """The tiles for a call; `chunk_size` of 0 leaves it to the table."""
    dk, dv = padded(dk), padded(dv)
    if dtype == torch.float32:
        table = _FLOAT32
    elif dk > 256:
        table = _WIDEST
    elif dk > 64 or dv > 128:
        table = _WIDE
    else:
        table = _NARROW
    chunk = min(padded(chunk_size or table.chunk), 256, padded(time))

    def fitted(tile: Tile, columns: int) -> Tile:
        t, s = min(tile.t, chunk), min(tile.s, chunk)
        return tile._replace(t=t, s=s, k=min(tile.k, dk), v=min(tile.v, dv), c=min(tile.c, columns))

    summed = (0, dk, 0, dv, dv, dk)
    tiles = Tiles(chunk, *(fitted(tile, columns) for tile, columns in zip(table[1:], summed, strict=True)))
    # One program holds all columns of a query's or key's gradient.
    return tiles._replace(queries=tiles.queries._replace(k=dk), keys=tiles.keys._replace(k=dk))
