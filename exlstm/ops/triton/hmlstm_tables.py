"""Which chunks read which memories: the index tables of the hierarchical mLSTM's kernels.

Memories lie in a Fenwick tree. With chunks counted in their document from 1, memory c holds the 2^z chunks that end
with chunk c, z the number of trailing zeros of c: its own steps and the memories c - 2^b for b < z. So there are as
many memories as chunks, each is part of at most one other, c + 2^z, and chunk c + 1 reads memory c, c - (c & -c), ... :
one for every set bit of c. Memory c is read by the 2^z chunks after it, for they share these bits.

The slots of an initial state are memories as well: those larger than a chunk take the places before a row's first
chunk; those smaller are part of the first chunk's memory, and read by its steps; the oldest is read by all chunks.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.chunkwise.layout import KEPT, Layout

ALL_OLDER = 1 << 30  # a place whose xor with any step of a chunk lies past the last level


class Tables(NamedTuple):
    """M chunks of L steps, N memories: M of the chunks, then S B of the state's slots; int32, -1 where nothing is."""

    steps: Tensor  # [M, L] the steps, as indices into [B * T]
    start: Tensor  # [M] the first chunk of the same document
    going_on: Tensor  # [M] the row whose state the document goes on from
    ending: Tensor  # [M] the row whose last document ends with this chunk
    read: Tensor  # [M, R] the memories that a chunk reads
    place: Tensor  # [M, R] where in its chunk each begins, 2^b L if 2^b chunks earlier: xor a step, it is the level
    reads: Tensor  # [M] how many
    source: Tensor  # [M, S] the memories that are part of a chunk's memory
    sources: Tensor  # [M] how many
    order: Tensor  # [N] the memories by z, the largest first, then the state's slots
    parent: Tensor  # [N] the memory that a memory is part of
    final: Tensor  # [N] the slot of the final state, in [B * levels], that a memory is part of
    readers: Tensor  # [3, N] the first chunk that reads a memory, one past the last, and its column in `read`
    held: Tensor  # [S, B] 1 where a slot of the state holds something that is read or kept here
    slot_chunk: Tensor  # [B * levels] the chunk whose steps are part of a slot of the final state
    slot_steps: Tensor  # [2, B * levels] the first of them and one past the last
    slot_source: Tensor  # [B * levels, S'] the memories that are part of the slot
    slot_sources: Tensor  # [B * levels] how many
    first: Tensor  # [B] int64, the first chunk of a row, clamped into [0, M)


Counts = Sequence[int]  # how many chunks' memories there are of every z, from above


def sizes_of(tables: Tables) -> tuple[int, int, int]:
    """M, N and R."""
    return len(tables.start), len(tables.order), tables.read.shape[1]


def sizes_of_full_rows(batch: int, time: int, size: int) -> tuple[int, int, int]:
    """M, N and R of rows without masks, resets and states.

    Of the chunks of a row, 0 ... n - 1, some number has as many bits set as n has after its first: the most that one
    reads. Compiled code is of all n with as many bits.
    """
    per_row = (time + size - 1) // size
    reads = 1
    while per_row >= 4 << (reads - 1):
        reads += 1
    return batch * per_row, batch * per_row, reads


@functools.lru_cache(maxsize=64)
def tables_of_full_rows(batch: int, time: int, size: int, levels: int, device: torch.device) -> tuple[Tables, Counts]:
    """The tables of rows without masks, resets and states: they follow from the shape alone, so they are kept."""
    with torch.inference_mode(False):
        position = torch.zeros(batch, dtype=torch.int64, device=device)
        return tables_of(Layout.of(batch, time, size, position, None, None), batch, levels, None)


@functools.lru_cache(maxsize=KEPT)
def tables_from_empty(layout: Layout, batch: int, levels: int) -> tuple[Tables, Counts]:
    """`tables_of` rows that begin with an empty memory; kept, as their layout is."""
    with torch.inference_mode(False):
        return tables_of(layout, batch, levels, None)


def tables_of(
    layout: Layout, batch: int, levels: int, begun: Tensor | None, held: Tensor | None = None
) -> tuple[Tables, Counts]:
    """The tables of a layout with at least one chunk.

    Args:
        layout: of L steps a chunk.
        batch: B.
        levels: of the final state.
        begun: [B] the position that the layout began with, or None if all rows begin with an empty memory.
        held: bool [B, S] the slots of the state that hold something: log2(L) smaller than a chunk, and the oldest last.
    """
    build = _Builder(layout, batch, begun, held)
    M, rows = layout.chunks, build.rows
    source, sources, _ = _compact(build.written())
    read, place, rank = build.read()
    read, reads, moved = _compact(read)
    columns = max(int(reads.max()), 1)
    parent, readers = (torch.cat(parts, -1) for parts in zip(build.used(rank), *build.slots_used(rank), strict=True))
    slot_steps, ids, slot = build.kept(levels)
    slot_source, slot_sources, _ = _compact(
        torch.where(slot[:, None] == torch.arange(levels, device=ids.device)[:, None], ids[:, None], -1).flatten(0, 1)
    )
    final = torch.full((len(parent) + 1,), -1, device=ids.device)
    final[ids] = rows[:, None] * levels + slot  # those of no memory go to the last, which is cut off
    present = layout.last < M
    ending = torch.full((M + 1,), -1, device=ids.device)
    ending[layout.last] = torch.where(present, rows, -1)
    order = torch.cat([build.z.argsort(stable=True, descending=True), torch.arange(M, len(parent), device=ids.device)])
    counts = torch.bincount(build.z, minlength=build.depth).tolist()
    ints = {
        "steps": torch.full((M * layout.size,), -1, device=ids.device).index_copy(0, layout.places, layout.steps),
        "start": layout.start, "going_on": torch.where(layout.continues, layout.row, -1), "ending": ending[:-1],
        "read": read[:, :columns], "place": place.gather(1, moved)[:, :columns], "reads": reads,
        "source": source, "sources": sources, "order": order, "parent": parent, "final": final[:-1],
        "readers": readers, "held": build.held.T,
        "slot_chunk": torch.where(present, layout.last, -1).repeat_interleave(levels),
        "slot_steps": slot_steps.flatten(1), "slot_source": slot_source, "slot_sources": slot_sources,
    }  # fmt: skip
    ints = {name: x.to(torch.int32).contiguous() for name, x in ints.items()}
    ints["steps"] = ints["steps"].unflatten(0, (M, layout.size))
    return Tables(**ints, first=build.first), tuple(counts[::-1])


class _Builder:
    """What the tables of a layout have in common; arguments as `tables_of` has them."""

    def __init__(self, layout: Layout, batch: int, begun: Tensor | None, held: Tensor | None) -> None:
        self.layout, M = layout, layout.chunks
        self.chunk = torch.arange(M, device=layout.row.device)
        self.rows = torch.arange(batch, device=layout.row.device)
        self.inside = layout.size.bit_length() - 1
        self.depth = (int(layout.number.max()) + 1).bit_length()
        self.bits = torch.arange(self.depth, device=layout.row.device)
        self.z = ((layout.number[:, None] + 1) % (2 << self.bits) == 0).sum(-1)
        new = torch.cat([layout.start[1:] != layout.start[:-1], layout.start.new_ones(1, dtype=torch.bool)])
        self.end = torch.where(new, self.chunk, M).flip(0).cummin(0).values.flip(0)  # the document's last chunk
        first = torch.full((batch,), M, device=layout.row.device).scatter_reduce(0, layout.row, self.chunk, "amin")
        self.first, self.last = first.clamp(max=M - 1), layout.last.clamp(max=M - 1)
        self.begun = torch.zeros_like(self.rows) if begun is None else begun
        held = torch.zeros(batch, 0, dtype=torch.bool, device=layout.row.device) if held is None else held
        self.held = held & ((first < M) & layout.continues[self.first])[:, None]
        self.slots = held.shape[1]
        self.small = range(self.inside if self.slots else 0)  # smaller than a chunk
        self.slot_id = M + torch.arange(self.slots, device=self.rows.device)[:, None] * batch + self.rows  # [S, B]
        self.before = min(self.slots, 1)  # columns before those of blocks of chunks in what is read

    def memory(self, c: Tensor, b: Tensor, row: Tensor, start: Tensor) -> Tensor:
        """Chunk c's memory, or the state's slot of 2^b chunks if that is before the document's `start` here."""
        return torch.where(c >= start, c, self.layout.chunks + (self.inside + b) * len(self.rows) + row)

    def small_slots(self) -> list[Tensor]:
        """The state's slots smaller than a chunk, of the chunks that begin with them: each [M, 1]."""
        row = self.layout.row
        begins = (self.chunk == self.first[row]) & self.layout.continues
        return [torch.where(begins & self.held[row, j], self.slot_id[j, row], -1)[:, None] for j in self.small]

    def written(self) -> Tensor:
        """What is part of a chunk's memory [M, any number]."""
        at = self.layout
        source = self.memory(self.chunk[:, None] - (1 << self.bits), self.bits, at.row[:, None], at.start[:, None])
        return torch.cat([source.masked_fill(self.bits >= self.z[:, None], -1), *self.small_slots()], 1)

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """What chunks read, from the oldest, the places of these, and their columns once nothing is left out."""
        at, down, number = self.layout, self.bits.flip(0), self.layout.number[:, None]
        read = self.memory(
            self.chunk[:, None] - 1 - (number & ((1 << down) - 1)), down, at.row[:, None], at.start[:, None]
        )
        read = read.masked_fill((number >> down) & 1 == 0, -1)
        place = (at.size << down).expand(at.chunks, -1)
        if self.slots > 0:
            oldest = torch.where(at.continues & self.held[at.row, -1], self.slot_id[-1, at.row], -1)[:, None]
            parts = [_block_begin(self.begun[at.row] & (at.size - 1), j)[:, None] for j in self.small]
            read = torch.cat([oldest, read, *self.small_slots()], 1)
            place = torch.cat([torch.full_like(oldest, ALL_OLDER), place, *parts], 1)
        return read, place, (read >= 0).cumsum(1) - 1

    def used(self, rank: Tensor) -> tuple[Tensor, Tensor]:
        """What chunks' memories are part of, and their readers; `rank` are the columns of what is read."""
        after = self.chunk + (1 << self.z)
        column = rank[(self.chunk + 1).clamp(max=len(self.chunk) - 1), self.before + self.depth - 1 - self.z]
        until = torch.minimum(after, self.end) + 1
        return torch.where(after <= self.end, after, -1), torch.stack([self.chunk + 1, until, column])

    def slots_used(self, rank: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The same of the state's slots."""
        count, end, found = self.begun >> self.inside, self.end[self.first], []
        nowhere = torch.full_like(self.first, self.layout.chunks)
        for j in range(self.slots):
            if j < self.inside:  # part of the first chunk, and read there
                above, until, at = self.first, self.first + 1, self.before + self.depth + j
            elif j < self.slots - 1:  # of 2^b chunks
                b = j - self.inside
                above = self.first + ((count >> b) << b) + (1 << b) - 1 - count
                until, at = above + 1, self.before + self.depth - 1 - min(b, self.depth - 1)
            else:
                above, until, at = nowhere, nowhere, 0
            parent = torch.where(self.held[:, j] & (above <= end), above, -1)
            until = torch.where(self.held[:, j], torch.minimum(until, end + 1), self.first)
            found.append((parent, torch.stack([self.first, until, rank[self.first, at]])))
        return found

    def kept(self, levels: int) -> tuple[Tensor, Tensor, Tensor]:
        """The final state: steps of last chunks [2, B, levels]; memories [B, any number] and the slots they belong to.

        These are the steps that no memory of whole chunks holds, and the memories before them.
        """
        at, level = self.layout, torch.arange(levels, device=self.rows.device)
        present = at.last < at.chunks
        offset, number = (at.position & (at.size - 1))[:, None], (at.position >> self.inside)[:, None]
        oldest = level == levels - 1
        low = torch.where(oldest, 0, (offset >> (level + 1)) << (level + 1))
        high = torch.where(oldest, offset >> level << level, low + (offset & (1 << level)))
        steps = torch.where(present[:, None], torch.stack([low, high]), 0)
        block = (self.last - at.number[self.last])[:, None] + ((number >> self.bits) << self.bits) - 1
        block = self.memory(block, self.bits, self.rows[:, None], at.start[self.last][:, None])
        ids = [block.masked_fill(((number >> self.bits) & 1 == 0) | ~present[:, None], -1)]
        slots = [(self.inside + self.bits).expand(len(self.rows), -1)]
        if self.slots > 0:
            still = (at.continues[self.last] & present)[:, None] & self.held
            unfinished = (self.last == self.first)[:, None] & (offset > 0)
            for j in self.small:
                begin = _block_begin(self.begun & (at.size - 1), j)[:, None]
                ids.append(torch.where(still[:, j : j + 1] & unfinished, self.slot_id[j][:, None], -1))
                slots.append(_bit_length(begin ^ offset) - 1)
            ids.append(torch.where(still[:, -1:], self.slot_id[-1][:, None], -1))
            slots.append(torch.full_like(offset, levels - 1))
        return steps, torch.cat(ids, 1), torch.cat(slots, 1).clamp(0, levels - 1)


def _compact(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move what is not -1 to the front of every row: the rows, how many there are, and where each entry was."""
    order = (ids < 0).long().argsort(dim=1, stable=True)
    return ids.gather(1, order), (ids >= 0).sum(1), order


def _block_begin(end: Tensor, bit: int) -> Tensor:
    """Where the block of 2^bit begins that a bit of the position `end` stands for."""
    return (end >> (bit + 1)) << (bit + 1)


def _bit_length(x: Tensor) -> Tensor:
    return (x[..., None] >> torch.arange(32, device=x.device) > 0).sum(-1)


def through_final_m(
    dm: Tensor,
    d_decay: Tensor | None,
    i: Tensor,
    f: Tensor,
    m0: Tensor | None,
    held: Tensor | None,
    begun: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What m [B, H, levels] and the sum of log f [B, H] of the final state send to i, f and m of the initial state.

    The m of a slot is the largest log weight in it, of a step or of a slot of the initial state; `held` [S, B] says
    which of the latter hold something, `begun` [B] where they stand.
    """
    batch, time, _ = i.shape
    levels = dm.shape[-1]
    present = torch.ones(batch, time, dtype=torch.bool, device=i.device) if mask is None else mask
    document = torch.zeros_like(present, dtype=torch.int64) if reset is None else reset.cumsum(1)
    of_last = present & (document == document[:, -1:])
    goes_on = document[:, -1] == 0
    offset = torch.where(goes_on, 0 if begun is None else begun, 0)[:, None]
    place = offset + of_last.cumsum(1) - 1
    end = offset + of_last.sum(1, keepdim=True)
    slot = torch.where(of_last, (_bit_length(place ^ end) - 1).clamp(max=levels - 1), -1)
    log_f = torch.where(of_last[..., None], logsigmoid(f.double()), 0.0)
    after = log_f.flip(1).cumsum(1).flip(1)  # from a step on, itself included
    weight = i.double() + after - log_f
    kept = 0
    if m0 is not None and begun is not None and held is not None:
        at = torch.stack([_block_begin(begun, j) for j in range(levels - 1)] or [begun], 1)[:, : levels - 1]
        held = torch.cat([held[: levels - 1], held[-1:]]).T.bool() & goes_on[:, None]
        into = (_bit_length(at ^ end) - 1).clamp(0, levels - 1)
        into = torch.cat([into, torch.full_like(into[:, :1], levels - 1) if levels > 1 else end * 0], 1)
        slot = torch.cat([torch.where(held, into, -1), slot], 1)
        weight = torch.cat([m0.double().transpose(1, 2) + after[:, :1], weight], 1)
        kept = levels
    d_weight = torch.zeros_like(weight)
    for x in range(levels):
        value, largest = weight.masked_fill((slot != x)[..., None], -torch.inf).max(1, keepdim=True)
        d_slot = torch.where(value > -torch.inf, dm[:, None, :, x].double(), 0.0)
        d_weight = d_weight.scatter_add(1, largest, d_slot)
    d_log_f = (d_weight.cumsum(1) - d_weight)[:, kept:]
    if d_decay is not None:
        d_log_f = d_log_f + d_decay.double()[:, None]
    to_f = torch.where(of_last[..., None], d_log_f * torch.sigmoid(-f.double()), 0.0)
    return d_weight[:, kept:], to_f, d_weight[:, :kept].transpose(1, 2)
