"""Hierarchical mLSTM on chunks: a masked matrix inside each chunk, a binary tree of memories across chunks.

With chunks of L steps aligned to the positions of a document, two steps of one chunk differ in their lowest log2(L)
bits only, so their levels are a fixed L x L table; and chunk p of a document reads, for every set bit b of p, the
block of 2^b chunks that ends where chunk (p >> b) << b begins. Logarithms of weights are taken as in
`chunkwise.mlstm`: seen from the chunk's start, where F_t cancels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.backends import uncompiled
from exlstm.ops.chunkwise.layout import Layout
from exlstm.ops.chunkwise.tree import Memory, Tree
from exlstm.ops.hmlstm import HMLSTMState
from exlstm.ops.mlstm import EPS, normaliser_floor
from exlstm.ops.reference import hmlstm as reference

CHUNK_SIZE = 64


@uncompiled
def hmlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    level: Tensor,
    state: HMLSTMState | None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int | None = None,
    return_state: bool = True,
) -> tuple[Tensor, HMLSTMState | None]:
    """`exlstm.ops.hmlstm` in chunks of `chunk_size` steps."""
    state = state or HMLSTMState.empty_for(q, k, v, i, f, level)
    batch, time, _, dk = q.shape
    if time == 1:
        return reference.hmlstm(q, k, v, i, f, level, state, mask=mask, reset=reset, return_state=return_state)
    size, dtype = chunk_size or min(CHUNK_SIZE, 1 << (time - 1).bit_length()), state.C.dtype
    carried = _Carried.of(state, size)
    if carried.empty:
        layout = Layout.from_empty(batch, time, size, mask, reset, q.device)
    else:
        layout = Layout.of(batch, time, size, carried.position, mask, reset)
    if layout.chunks == 0:  # no step is present
        slots = [*map(Memory._make, zip(*carried.slots, strict=True))]
        after = as_state(slots, state.log_decay, layout, carried.position, state)
        return zeros_of(v), after if return_state else None
    i, lf = layout.gather(i.to(dtype), -torch.inf), layout.gather(logsigmoid(f.to(dtype)))
    sequence = _Sequence(layout, carried, layout.gather(k), layout.gather(v), i, lf, state.log_decay)
    h = sequence.read(layout.gather(q * dk**-0.5), layout.gather(level.to(dtype)))
    h = layout.scatter(h, batch, time).to(v.dtype)
    return h, as_state(*sequence.final(), layout, carried.position, state) if return_state else None


def zeros_of(v: Tensor) -> Tensor:
    """The outputs where no step is present: 0, with the gradient 0, as those of absent steps among others are."""
    return v.masked_fill(torch.ones((), dtype=torch.bool, device=v.device), 0.0)


class _Carried(NamedTuple):
    """An initial state in the form that the chunks work with."""

    slots: Memory  # [slots, B, ...]: log2(L) that are smaller than a chunk, those of the tree, and all older steps
    position: Tensor  # [B] the low bits of the position, which the slots but the last stand for
    empty: bool  # no row holds anything

    @classmethod
    def of(cls, state: HMLSTMState, size: int) -> "_Carried":
        """Where a chunk spans more levels than there are, empty slots are put in before the last."""
        levels = state.m.shape[-1]
        held = reference.held_slots(state.position, levels)[:, None]
        slots = [x.movedim(2, 0) for x in (state.C, state.n, torch.where(held, state.m, -torch.inf))]
        if (missing := size.bit_length() - levels) > 0:
            slots = [
                torch.cat([x[:-1], x.new_full((missing, *x.shape[1:]), fill), x[-1:]])
                for x, fill in zip(slots, (0.0, 0.0, -torch.inf), strict=True)
            ]
        low = state.position & ((1 << (levels - 1)) - 1)
        return cls(Memory(*slots), low, not bool((state.position > 0).any()))


class _Read(NamedTuple):
    """R chunks that each read one memory."""

    chunk: Tensor  # [R]
    where: Tensor  # [R] which of the memories
    memories: Memory
    log: Tensor  # [R, H, L] log weight of the memory at every step, seen from the chunk's start


class _Sequence:
    """The chunks of a call: M of L steps, and the memories that they leave."""

    def __init__(
        self,
        layout: Layout,
        carried: _Carried,
        k: Tensor,
        v: Tensor,
        i: Tensor,
        lf: Tensor,
        log_decay: Tensor,
    ) -> None:
        self.layout, self.carried, self.k, self.v = layout, carried, k, v
        self.inside = layout.size.bit_length() - 1  # levels within a chunk, less the step itself
        self.F = lf.cumsum(-1)
        self.a = i - self.F
        self.total = self.F[..., -1]
        # In float64, so that differences over long sequences stay exact enough.
        self.elapsed = torch.cat([self.total.new_zeros(1, lf.shape[1]), self.total], 0).double().cumsum(0)
        self.rows = torch.arange(len(carried.position), device=k.device)
        self.first = _first_chunk(layout, len(self.rows))
        # Rows whose state goes on, by their first chunk; in an empty state there is nothing to read or to join.
        going_on = (self.first < layout.chunks) & layout.continues[self.first.clamp(max=layout.chunks - 1)]
        self.on = self.rows[:0] if carried.empty else going_on.nonzero()[:, 0]
        self.log_decay = log_decay
        self.tree = self._grow()

    def _grow(self) -> Tree:
        leaves = Memory.of_steps(self.k, self.v, self.total[..., None] + self.a)
        if len(self.on) == 0:
            return Tree.grow(leaves, self.elapsed, self.layout, None, self.first)
        # A document that goes on inside a chunk: what its state holds of that chunk joins the chunk's own memory.
        chunk = self.first[self.on]
        parts = [self._slot(j).decayed(self.total[chunk]) for j in range(self.inside)]
        joined = Memory.join([leaves.take(chunk), *parts])
        leaves = Memory(*(x.index_copy(0, chunk, y) for x, y in zip(leaves, joined, strict=True)))
        tree_slots = Memory(*(x[self.inside : -1] for x in self.carried.slots))
        return Tree.grow(leaves, self.elapsed, self.layout, tree_slots, self.first)

    def _slot(self, j: int) -> Memory:
        """Slot j of the state of the rows that go on."""
        return Memory(*(x[j] for x in self.carried.slots)).take(self.on)

    def read(self, q: Tensor, level: Tensor) -> Tensor:
        """What every step reads: q [M, H, L, DK], level [M, H, L, levels] to h [M, H, L, DV]."""
        top = level.shape[-1] - 1
        reads = self._reads_of_tree(level, top) + self._reads_of_state(level, top)
        table = _levels_between(torch.arange(self.layout.size, device=q.device)[:, None], self.layout.size)
        inside = level.gather(-1, table.clamp(max=top).expand(*level.shape[:-1], -1)) + self.a[..., None, :]
        future = torch.ones_like(table, dtype=torch.bool).triu(1)
        inside = inside.masked_fill(future, -torch.inf)  # [M, H, L, L]

        M = torch.maximum(inside.amax(-1), self._floor()[..., None])
        for r in reads:
            M = M.index_copy(0, r.chunk, torch.maximum(M[r.chunk], r.log))
        weights = (q @ self.k.transpose(-1, -2)) * (inside - M[..., None]).exp().to(q.dtype)
        h, normaliser = (weights @ self.v).to(M.dtype), weights.sum(-1).to(M.dtype)
        for r in reads:
            C, n, _ = r.memories.take(r.where)
            scaled = q[r.chunk] * (r.log - M[r.chunk]).exp()[..., None].to(q.dtype)
            h = h.index_add(0, r.chunk, (scaled @ C.to(q.dtype)).to(M.dtype))
            normaliser = normaliser.index_add(0, r.chunk, (scaled @ n[..., None].to(q.dtype))[..., 0].to(M.dtype))
        return h / (torch.maximum(normaliser.abs(), normaliser_floor(self.F + M)) + EPS)[..., None]

    def _reads_of_tree(self, level: Tensor, top: int) -> list[_Read]:
        """For every set bit b of a chunk's number the block of 2^b chunks before it."""
        reads, layout = [], self.layout
        for b, tree_level in enumerate(self.tree.levels):
            chunk = ((layout.number >> b) & 1).nonzero()[:, 0]
            if len(chunk) == 0:
                continue
            where, since = self.tree.block_before(
                b, layout.number[chunk], layout.start[chunk], layout.row[chunk], chunk
            )
            weight = level[chunk, ..., min(1 + self.inside + b, top)]
            log = (tree_level.blocks.m[where] + since)[..., None] + weight
            reads.append(_Read(chunk, where, tree_level.blocks, log))
        return reads

    def _reads_of_state(self, level: Tensor, top: int) -> list[_Read]:
        """The slots of the state that no block of the tree holds: those inside a row's first chunk, and the last."""
        if len(self.on) == 0:
            return []
        reads, first, position = [], self.first[self.on], self.carried.position[self.on]
        for j in range(self.inside):
            begins = _block_begin(position & (self.layout.size - 1), j)
            between = _levels_between(begins[:, None], self.layout.size).clamp(max=top)  # [R, L]
            slot = self._slot(j)
            weight = level[first].gather(-1, between[:, None, :, None].expand(-1, level.shape[1], -1, -1))[..., 0]
            reads.append(_Read(first, torch.arange(len(first), device=first.device), slot, slot.m[..., None] + weight))
        oldest = Memory(*(x[-1] for x in self.carried.slots))
        chunk = (self.layout.continues & (self.carried.slots.m[-1, self.layout.row, 0] > -torch.inf)).nonzero()[:, 0]
        row = self.layout.row[chunk]
        since = (self.elapsed[chunk] - self.elapsed[self.first[row]]).to(oldest.m.dtype)
        reads.append(_Read(chunk, row, oldest, (oldest.m[row] + since)[..., None] + level[chunk, ..., top]))
        return reads

    def _floor(self) -> Tensor:
        """The sum of log f from a document's beginning to every chunk's start [M, H]."""
        since = (self.elapsed[:-1] - self.elapsed[self.layout.start]).to(self.F.dtype)
        before = self.log_decay[self.layout.row]
        return since + torch.where(self.layout.continues[:, None], before, 0.0)

    def final(self) -> tuple[list[Memory], Tensor]:
        """The slots, each [B, ...], after the last step of every row's last document, and its sum of log f [B, H]."""
        layout = self.layout
        last = layout.last.clamp(max=layout.chunks - 1)  # rows without such a step are mended by `as_state`
        slots = self._final_inside(last)
        number = layout.position >> self.inside
        for b, level in enumerate(self.tree.levels):
            where, since = self.tree.block_before(b, number, layout.start[last], self.rows, last + 1)
            slots.append(level.blocks.take(where).decayed(since).only(((number >> b) & 1).bool()))
        missing = len(self.carried.slots.m) - 1 - len(slots)
        nothing = slots[0].only(torch.zeros_like(self.rows, dtype=torch.bool))
        slots += [nothing] * missing
        oldest = Memory(*(x[-1] for x in self.carried.slots)).only(layout.continues[last])
        oldest = oldest.decayed(
            (self.elapsed[last + 1] - self.elapsed[self.first.clamp(max=layout.chunks)]).to(self.F.dtype)
        )
        return [*slots, oldest], self._floor()[last] + self.total[last]

    def _final_inside(self, last: Tensor) -> list[Memory]:
        """The slots smaller than a chunk, from the steps of the `last` chunk [B] and what a state held of it."""
        layout, total = self.layout, self.total[last]
        end = layout.position & (layout.size - 1)
        slots = slots_of_steps(self.k[last], self.v[last], total[..., None] + self.a[last], end)
        if len(self.on) == 0:
            return slots
        in_first = layout.continues[last] & (last == self.first)
        for older in range(self.inside):
            at = _block_begin(self.carried.position & (layout.size - 1), older)
            part = Memory(*(x[older] for x in self.carried.slots)).decayed(total)
            for j in range(self.inside):
                begin = _block_begin(end, j)
                covered = in_first & (at >= begin) & (at < begin + (((end >> j) & 1) << j))
                slots[j] = Memory.join([slots[j], part.only(covered)])
        return slots


def slots_of_steps(k: Tensor, v: Tensor, log: Tensor, end: Tensor) -> list[Memory]:
    """The slots that are smaller than a chunk, from the steps of a chunk.

    Args:
        k, v: [B, H, L, D].
        log: [B, H, L] log weights of the steps.
        end: [B] how many of the chunk's steps there are, less than L; slot b is held if bit b of it is set.
    """
    size = k.shape[-2]
    offset, slots = torch.arange(size, device=k.device), []
    for j in range(size.bit_length() - 1):
        begin = _block_begin(end, j)[:, None]
        covered = (offset >= begin) & (offset < begin + (((end >> j) & 1) << j)[:, None])
        slots.append(Memory.of_steps(k, v, log.masked_fill(~covered[:, None], -torch.inf)))
    return slots


def _block_begin(end: Tensor, bit: int) -> Tensor:
    """Where the block of 2^bit steps begins that a bit of the position `end` stands for."""
    return (end >> (bit + 1)) << (bit + 1)


def as_state(slots: list[Memory], log_decay: Tensor, layout: Layout, begun: Tensor, state: HMLSTMState) -> HMLSTMState:
    """The final state of every row: computed, as it came where its document has no step here, or empty.

    Args:
        slots: each [B, ...], from the smallest; those past the last of the state become one with it.
        log_decay: [B, H] sum of log f of the row's last document.
        begun: [B] the position that `layout` began with.
        state: the initial state.
    """
    levels = state.m.shape[-1]
    nothing = slots[0].only(torch.zeros_like(layout.emptied))
    slots = [*slots, *[nothing] * (levels - len(slots))]
    slots = [*slots[: levels - 1], Memory.join(slots[levels - 1 :])]
    C, n, m = (torch.stack(x, 2) for x in zip(*slots, strict=True))
    held = m > -torch.inf
    C, n, m = (x.where(held.view(*held.shape, *[1] * (x.dim() - 3)), 0.0) for x in (C, n, m))
    position = layout.position + torch.where(layout.emptied, 0, state.position - begun)
    untouched = layout.last == layout.chunks
    ended = untouched & layout.emptied
    computed = HMLSTMState(C, n, m, log_decay, position)

    def choose(new: Tensor, old: Tensor) -> Tensor:
        rows = (-1, *[1] * (new.dim() - 1))
        return torch.where(ended.view(rows), 0, torch.where(untouched.view(rows), old, new))

    return HMLSTMState(*(choose(x, y) for x, y in zip(computed, state, strict=True)))


def _first_chunk(layout: Layout, batch: int) -> Tensor:
    """The first chunk of every row [B]; M in a row that has none."""
    first = torch.full((batch,), layout.chunks, device=layout.row.device)
    return first.scatter_reduce(0, layout.row, torch.arange(layout.chunks, device=first.device), "amin")


def _levels_between(offset: Tensor, size: int) -> Tensor:
    """The level between `offset` [..., 1] and each of the offsets 0 ... size - 1: the bit length of their xor."""
    xor = offset ^ torch.arange(size, device=offset.device)
    return (xor[..., None] >> torch.arange(size.bit_length(), device=offset.device) > 0).sum(-1)
