"""Looking for the nodes of a hierarchical memory that a query is to read, from coarse to fine."""

from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from exlstm.layers.tree import Stored

Form = Literal["auto", "dense", "sparse"]
_GATHERING = 3
"""A number that is gathered costs about as much as so many that are multiplied where they lie."""


class Found(NamedTuple):
    """The nodes of a level that are to be read."""

    weight: Tensor  # [B, H, T, K], 0 for a node that is not there; 1 for leaves that are attended to
    denominator: Tensor  # [B, H, T, K], by which what a node's matrix gives is divided
    place: Tensor | None = None  # int64 [B, H, T, K]; None: all of them in order

    def of_all(self, x: Tensor, count: int) -> Tensor:
        """`x` [B, H, T, K] for all N nodes of the level [B, H, T, N], 0 for those not read."""
        if self.place is None:
            return x
        return x.new_zeros(*x.shape[:3], count).scatter_add(-1, self.place, x)


def search(stored: Stored, q: Tensor, keep: int, form: Form, *, whole: bool) -> list[Found]:
    """The nodes to be read at every level, from the leaves to the root; if `whole`, all leaves are.

    A node's score is the logarithm of what its steps would count for in attention if all of their keys were the mean
    key. The best `keep` are kept, to look below them. Kept leaves that are attended to are all read; of other nodes
    the best `matrices_read(keep)`.
    """
    sizes = stored.sizes()
    starts = [0, *accumulate(sizes)]
    # Levels of few nodes are kept whole. Of those below, the dense form scores all nodes, the sparse those in question.
    few = next(number for number, size in enumerate(sizes) if size <= keep)
    scored = 0 if form == "dense" else starts[few]
    key, total, log = (x[:, :, scored:] for x in stored.outline)
    products = q @ key.transpose(-1, -2)
    denominators = _denominator(products, total[:, :, None])
    nowhere = torch.finfo(log.dtype).min  # and not -inf, or a row without a source would be NaN
    scores = (products + log[:, :, None]).masked_fill(~stored.there[:, None, None, scored:], nowhere)
    levels: list[Found] = []
    place: Tensor | None = None  # of those kept; None: all in order
    for number in reversed(range(len(sizes))):
        start, size = starts[number], sizes[number]
        attended = number == 0 and stored.attend
        best, denominator = (x[..., start - scored : start - scored + size] for x in (scores, denominators))
        if number >= few or (whole and attended):
            place = None
        else:
            place, there = _below(sizes[number + 1] if place is None else place, size, q)
            if form == "dense":
                best, denominator = (x.gather(-1, place) for x in (best, denominator))
            else:
                key, total, log = (at(x, start + place) for x in stored.outline)
                product = (key * q[..., None, :]).sum(-1)
                best, denominator = product + log, _denominator(product, total)
                there = there & (total > 0)
            best, order = best.masked_fill(~there, nowhere).topk(min(keep, place.shape[-1]))
            place, denominator = place.gather(-1, order), denominator.gather(-1, order)
        if attended:
            levels.append(Found((best > nowhere).to(best.dtype), denominator, place))
        else:
            levels.append(_best_of(best, denominator, place, matrices_read(keep), nowhere))
    return levels[::-1]


def _below(above: Tensor | int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes [B, H, T, 2 K] below those at `above` [B, H, T, K], or below as many as it says, in a level of `size`;
    and whether they are there: a last node without a neighbour may be the only one below."""
    if isinstance(above, int):
        above = torch.arange(above, device=like.device).expand(*like.shape[:3], -1)
    place = (2 * above[..., None] + torch.arange(2, device=like.device)).flatten(-2)
    return place.clamp(max=size - 1), place < size


def _best_of(score: Tensor, denominator: Tensor, place: Tensor | None, most: int, nowhere: float) -> Found:
    """The best `most` of nodes with these scores, weighed by the softmax of them."""
    if score.shape[-1] > most:
        score, order = score.topk(most)
        place = order if place is None else place.gather(-1, order)
        denominator = denominator.gather(-1, order)
    return Found(score.softmax(-1).masked_fill(score == nowhere, 0), denominator, place)


def matrices_read(keep: int) -> int:
    """Of how many nodes matrices are read: a matrix is many numbers, and few nodes have most of the weight."""
    return max(1, keep // 4)


def sparse_is_cheaper(steps: int, leaf: int, keep: int, dk: int, dv: int) -> bool:
    """Whether a query that reads what it found alone reads fewer numbers; those that it gathers count more."""
    count, size = -(-steps // leaf), leaf
    gathered = min(keep, count) * min(leaf * (dk + dv), dk * dv)
    nodes = count
    while count > 1:
        gathered += 2 * keep * dk if count > keep else 0  # keys that are compared
        count, size = (count + 1) // 2, 2 * size
        nodes += count
        gathered += min(matrices_read(keep), count) * min(size * (dk + dv), dk * dv)
    return _GATHERING * gathered < steps * (dk + dv) + nodes * dk


def at(x: Tensor, place: Tensor) -> Tensor:
    """`x` [B, H, N, ...] at the nodes `place` [B, H, T, K], [B, H, T, K, ...]."""
    rows = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(*x.shape[:2], 1, 1) * x.shape[2]
    return x.flatten(0, 2).index_select(0, (rows + place).flatten()).unflatten(0, place.shape)


def _denominator(product: Tensor, total: Tensor) -> Tensor:
    """What a matrix's read is divided by, of the query times the mean key and the sum of weights."""
    return product.abs().clamp(min=1) * total.clamp(min=1)  # that is at least 1 where there is something
