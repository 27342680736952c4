"""Tile sizes of the mLSTM kernels.

Those of half precision up to 256 columns were chosen by measurement on an H100 (benchmarks/results/GPU-20261127-0212
and -1816), the others so that they fit its registers and shared memory (`tests/ops/triton/test_compiled.py`).
"""

import functools
from typing import NamedTuple

import torch

from exlstm.ops.triton.launch import PROCESSORS, padded

LONGEST = 256  # steps of a chunk
LEAST_SEGMENTS, LEAST_CHUNKS = 4, 16  # of a walk that is cut, and of each segment


class Tile(NamedTuple):
    """What one program works on, and how it is compiled."""

    rows: int  # steps; of memories, columns of keys
    columns: int  # of values
    inner: int  # what a product sums over at once
    warps: int
    stages: int

    @property
    def compiled(self) -> dict[str, int]:
        return {"warps": self.warps, "stages": self.stages}

    def across(self, columns: int) -> int:
        """How many tiles lie side by side over `columns`."""
        return -(-columns // self.columns)


class Tiles(NamedTuple):
    """Of all kernels of a call. Those whose columns are of keys have all of them in one tile."""

    chunk: int
    states: Tile
    scores: Tile
    outputs: Tile
    scores_backward: Tile
    queries: Tile
    keys: Tile
    values: Tile


#                          rows columns inner warps stages
_WIDE = Tiles(
    chunk=256,
    states=Tile(64, 128, 64, 4, 4),
    scores=Tile(128, 0, 64, 8, 3),
    outputs=Tile(128, 128, 64, 8, 3),
    scores_backward=Tile(128, 0, 64, 8, 3),
    queries=Tile(64, 0, 64, 8, 3),
    keys=Tile(64, 0, 64, 8, 3),
    values=Tile(128, 128, 64, 8, 3),
)
_WIDEST = _WIDE._replace(queries=Tile(64, 0, 32, 8, 2), keys=Tile(64, 0, 32, 8, 2))  # keys of more than 256 columns
_NARROW = Tiles(
    chunk=128,
    states=Tile(64, 128, 64, 4, 3),
    scores=Tile(64, 0, 64, 4, 2),
    outputs=Tile(64, 128, 64, 4, 2),
    scores_backward=Tile(64, 0, 64, 8, 2),
    queries=Tile(64, 0, 64, 4, 3),
    keys=Tile(64, 0, 64, 4, 3),
    values=Tile(64, 128, 64, 4, 2),
)
_FLOAT32 = Tiles(
    chunk=64,
    states=Tile(32, 64, 32, 4, 2),
    scores=Tile(64, 0, 32, 4, 1),
    outputs=Tile(32, 64, 32, 4, 2),
    scores_backward=Tile(64, 0, 32, 4, 1),
    queries=Tile(32, 0, 16, 8, 1),
    keys=Tile(32, 0, 16, 8, 1),
    values=Tile(32, 64, 32, 4, 2),
)


def tiles_of(dtype: torch.dtype, dk: int, dv: int, time: int, chunk_size: int = 0) -> Tiles:
    """The tiles for a call; a `chunk_size` of 0 leaves that to the table."""
    dk, dv = padded(dk), padded(dv)
    if dtype == torch.float32:
        table = _FLOAT32
    elif dk > 256:
        table = _WIDEST
    elif dk > 64 or dv > 128:
        table = _WIDE
    else:
        table = _NARROW
    chunk = min(padded(chunk_size or table.chunk), LONGEST)
    if time < chunk:  # asked first: what is compiled for sequences of any length is so for all longer ones
        chunk = padded(time)
    return _fitted(table, dk, dv, chunk)


@functools.lru_cache
def _fitted(table: Tiles, dk: int, dv: int, chunk: int) -> Tiles:
    """None of a tile's sides longer than what it is of."""

    def fitted(tile: Tile) -> Tile:
        return tile._replace(
            rows=min(tile.rows, chunk), columns=min(tile.columns, dv), inner=min(tile.inner, chunk, dk, dv)
        )

    tiles = Tiles(chunk, *(fitted(tile) for tile in table[1:]))
    return tiles._replace(states=tiles.states._replace(rows=min(table.states.rows, dk)))


def for_few(tile: Tile, rows: int, dk: int, dv: int) -> Tile:
    """The tile of memories for a call of `rows` heads of a batch: smaller where otherwise processors were idle."""
    while 2 * rows * _tiles(tile, dk, dv) <= PROCESSORS and tile.rows > 16:
        tile = tile._replace(rows=tile.rows // 2)
    return tile


def segments_of(tile: Tile, rows: int, dk: int, dv: int, chunks: int) -> int:
    """In how many segments the way from chunk to chunk is walked at once; 1 where that would not make it shorter.

    It is walked twice then, first from empty memories. Walked once, 65,536 steps of 8 narrow heads took 1 ms longer on
    an H100, forward, than as many of 128 heads, for by few programs a walk waits; in segments, 0.1 ms on an H200.
    """
    segments = min(2 * PROCESSORS // (rows * _tiles(tile, dk, dv)), chunks // LEAST_CHUNKS)
    return segments if segments >= LEAST_SEGMENTS else 1


def _tiles(tile: Tile, dk: int, dv: int) -> int:
    """Of a memory [DK, DV]."""
    return -(-dk // tile.rows) * tile.across(dv)
