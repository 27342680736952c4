"""Matrix memories of blocks of chunks, and the binary tree of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.chunkwise.layout import Layout


class Memory(NamedTuple):
    """R matrix memories, each of a block of steps, seen from some later moment; m is -inf in one that holds nothing."""

    C: Tensor  # [R, H, DK, DV], scaled by exp(-m)
    n: Tensor  # [R, H, DK], likewise
    m: Tensor  # [R, H] the largest log weight in the block

    def take(self, index: Tensor) -> "Memory":
        """The memories that `index` [R'] names."""
        return Memory(*(x.index_select(0, index) for x in self))

    def decayed(self, log_decay: Tensor) -> "Memory":
        """The same memories seen from later; `log_decay` [R, H] is the sum of log f since."""
        return self._replace(m=self.m + log_decay)

    def only(self, rows: Tensor) -> "Memory":
        """The same memories, but nothing where `rows` [R] is False."""
        return self._replace(m=self.m.masked_fill(~rows[:, None], -torch.inf))

    @classmethod
    def of_steps(cls, k: Tensor, v: Tensor, log: Tensor) -> "Memory":
        """Write k [R, H, L, DK], v [R, H, L, DV] with the log weights `log` [R, H, L]."""
        m = log.amax(-1)
        k = k * scaled_exp(log, m[..., None])[..., None].to(k.dtype)
        return cls((k.transpose(-1, -2) @ v).to(log.dtype), k.sum(-2).to(log.dtype), m)

    @classmethod
    def join(cls, memories: Sequence["Memory"]) -> "Memory":
        """The sum of memories seen from the same moment."""
        m = torch.stack([x.m for x in memories]).amax(0)
        C, n = torch.zeros_like(memories[0].C), torch.zeros_like(memories[0].n)
        for x in memories:
            weight = scaled_exp(x.m, m)
            C = torch.addcmul(C, weight[..., None, None], x.C)
            n = torch.addcmul(n, weight[..., None], x.n)
        return cls(C, n, m)


def scaled_exp(log: Tensor, m: Tensor) -> Tensor:
    """exp(log - m), and 0 where both are -inf."""
    return (log - m.masked_fill(m == -torch.inf, 0.0)).exp()


@dataclass(frozen=True)
class Level:
    """The blocks of 2^b chunks that end in this call, in the order of their last chunk, then those of the state."""

    blocks: Memory  # [R + B, ...], or [R, ...] where no state is carried in
    seen_from: Tensor  # [R + B] the chunk boundary from which a block's m is seen
    index: Tensor  # [M] where the block that ends with a chunk lies in `blocks`, if one does
    ended: int  # R

    def ending_with(self, chunk: Tensor, inside: Tensor, row: Tensor) -> Tensor:
        """Where the blocks lie that end with `chunk`; if that is not `inside` this call, the state's of `row`."""
        return torch.where(inside, self.index[chunk.clamp(0, len(self.index) - 1)], self.ended + row)


@dataclass(frozen=True)
class Tree:
    """Levels 0, 1, ... of blocks; level b + 1 joins neighbours of level b."""

    levels: list[Level]
    layout: Layout
    elapsed: Tensor  # [M + 1, H] float64, sum of log f before each chunk boundary

    @classmethod
    def grow(cls, leaves: Memory, elapsed: Tensor, layout: Layout, carried: Memory | None, first: Tensor) -> "Tree":
        """Join the `leaves` of all chunks.

        Args:
            leaves: one memory a chunk, seen from the chunk's end.
            elapsed: [M + 1, H].
            layout: where the chunks belong.
            carried: the blocks [slots, B, ...] of the initial state by level, or None.
            first: [B] the first chunk of every row, from whose start the state's blocks are seen.
        """
        chunks = torch.arange(layout.chunks, device=first.device)
        ends, blocks, levels = chunks, leaves, list[Level]()
        for b in range((int(layout.number.max()) + 1).bit_length()):
            if b > 0:
                ends = ((layout.number + 1) % (1 << b) == 0).nonzero()[:, 0]
                below, left = levels[-1], ends - (1 << (b - 1))
                left = below.ending_with(left, left >= layout.start[ends], layout.row[ends])
                since = elapsed[ends + 1] - elapsed[below.seen_from[left]]
                older = below.blocks.take(left).decayed(since.to(leaves.m.dtype))
                blocks = Memory.join([older, below.blocks.take(below.index[ends])])
            index = torch.zeros_like(chunks).index_copy(0, ends, torch.arange(len(ends), device=ends.device))
            seen_from, all_blocks = ends + 1, blocks
            if carried is not None and b < carried.m.shape[0]:
                all_blocks = Memory(*(torch.cat([x, c[b]]) for x, c in zip(blocks, carried, strict=True)))
                seen_from = torch.cat([seen_from, first])
            levels.append(Level(all_blocks, seen_from, index, len(ends)))
        return cls(levels, layout, elapsed)

    def block_before(
        self, b: int, number: Tensor, start: Tensor, row: Tensor, boundary: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The blocks of level b that chunks `number` of a document read.

        `start` is the document's first chunk in this call, `boundary` the one whose start the reader stands at.

        Returns:
            Where the blocks lie in `levels[b].blocks`, and the sum of log f since they were seen [.., H].
        """
        level, end = self.levels[b], ((number >> b) << b) - 1
        offset = end - self.layout.number[start]
        where = level.ending_with(start + offset, offset >= 0, row).clamp(max=len(level.seen_from) - 1)
        since = self.elapsed[boundary] - self.elapsed[level.seen_from[where]]
        return where, since.to(level.blocks.m.dtype)
