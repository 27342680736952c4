"""Reading a hierarchical memory from coarse to fine, as pure functions."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from exlstm.layers.reading import Attended, Trace
from exlstm.layers.tree import Node, Stored, exp_from
from exlstm.ops.mlstm import EPS

Form = Literal["auto", "dense", "sparse"]
_GATHERING = 3
"""A number that is gathered costs about as much as so many that are multiplied where they lie."""


def read(
    stored: Stored,
    q: Tensor,
    level: Tensor,
    *,
    keep: int,
    form: Form = "auto",
    whole: bool = False,
    trace: bool = False,
) -> tuple[Tensor, Trace]:
    """What T steps read.

    At every level, from the root on: the nodes below those kept are scored by q . mean key / sqrt(DK), the best `keep`
    are kept and weighed by the softmax of their scores. A node gives what an mLSTM's memory would,
    C^T q / sqrt(DK) / (max(|n . q| / sqrt(DK), exp(-m)) + 1e-6). The leaves kept, if they are to be attended to, give
    together the attention to their steps: the softmax of q . k / sqrt(DK) and a step's log weight.
    The levels are mixed by the softmax of `level`. A source of no more leaves than `keep` is read by attention to all
    of its steps alone, for there is nothing to look for: nodes above its leaves could but repeat them in outline.

    Args:
        q: queries [B, H, T, DK].
        level: [B, H, T, levels] log weights of the levels from the leaves on; the last serves all above.
        keep: nodes kept at a level.
        form: "dense" forms all T x S products, "sparse" reads the kept nodes alone, "auto" takes what costs less.
        whole: the dense form, which has all products, attends to the steps of all leaves: for learning, in which keys
            that are not found teach nothing, and those that look for them would find ever the same.
        trace: also tell which nodes were read.

    Returns:
        [B, H, T, DV], 0 for a source without steps; and what was read.
    """
    q, leaves, count = q * q.shape[-1] ** -0.5, stored.sizes()[0], len(stored.levels)
    if stored.attend and leaves <= keep:
        weight = _attention_to_all(stored, q @ stored.k.transpose(-1, -2))
        h = weight.to(stored.v.dtype) @ stored.v
        mix = level[..., :1].softmax(-1)  # all to the leaves
        return mix.to(h.dtype) * h, _told(stored, Attended(weight), [], mix) if trace else Trace(Attended(weight))
    fits = stored.leaves_there() <= (keep if stored.attend else 0)
    mixed = torch.where(fits, 1, stored.depth)[:, None, None, None]
    number = torch.arange(count, device=q.device)
    mix = level[..., number.clamp(max=level.shape[-1] - 1)].masked_fill(number >= mixed, -math.inf).softmax(-1)
    if form == "auto":
        sparse = sparse_is_cheaper(stored.k.shape[2], stored.leaf, keep, stored.k.shape[-1], stored.v.shape[-1])
        form = "sparse" if sparse else "dense"
    kept = _descend(stored, q, keep, form, whole=whole and stored.attend and form == "dense")
    if stored.attend:
        kept[0] = _or_all_leaves(stored, kept[0], fits)
    h, attended = (_read_dense if form == "dense" else _read_sparse)(stored, q, kept, mix)
    return h, _told(stored, attended, kept, mix) if trace else Trace(attended)


class _Kept(NamedTuple):
    """The nodes that steps keep at a level."""

    weight: Tensor  # [B, H, T, K], 0 for a node that is not there; 1 for leaves that are attended to
    denominator: Tensor  # [B, H, T, K], by which what a node's matrix gives is divided
    place: Tensor | None = None  # int64 [B, H, T, K]; None: all of them in order

    def of_all(self, x: Tensor, count: int) -> Tensor:
        """`x` [B, H, T, K] for all N nodes of the level [B, H, T, N], 0 for those not kept."""
        if self.place is None:
            return x
        return x.new_zeros(*x.shape[:3], count).scatter_add(-1, self.place, x)


def sparse_is_cheaper(steps: int, leaf: int, keep: int, dk: int, dv: int) -> bool:
    """Whether a query that reads the kept nodes alone reads fewer numbers; those that it gathers count more."""
    gathered, count, size = 0, -(-steps // leaf), leaf
    while True:
        gathered += min(keep, count) * min(size * (dk + dv), dk * dv)
        if count == 1:
            return _GATHERING * gathered < steps * (dk + dv)
        count, size = (count + 1) // 2, 2 * size


def _told(stored: Stored, attended: Attended | None, kept: Sequence[_Kept], mix: Tensor) -> Trace:
    """What was read, with the weights of all nodes and levels; nothing of levels that were not looked at."""
    sizes = stored.sizes()
    read = mix > 0
    nodes = [x.of_all(x.weight * read[..., n, None], sizes[n]) for n, x in enumerate(kept)]
    nodes += [mix.new_zeros(*mix.shape[:3], size) for size in sizes[len(kept) :]]
    if stored.attend and attended is not None:
        nodes[0] = attended.over(stored.k.shape[2]).unflatten(-1, (-1, stored.leaf)).sum(-1)
    return Trace(attended, tuple(nodes), mix)


def _or_all_leaves(stored: Stored, leaves: _Kept, fits: Tensor) -> _Kept:
    """The leaves kept, but all in rows `fits` [B]: the first ones, for those that are not there come last."""
    if leaves.place is None:
        return leaves
    rows, count = fits[:, None, None, None], leaves.place.shape[-1]
    there = stored.there[:, None, None, :count].to(leaves.weight.dtype)
    first = torch.arange(count, device=fits.device)
    return leaves._replace(weight=there.where(rows, leaves.weight), place=first.where(rows, leaves.place))


def _descend(stored: Stored, q: Tensor, keep: int, form: Form, *, whole: bool) -> list[_Kept]:
    """The nodes kept at every level, from the leaves to the root; of leaves all, if the source is read whole."""
    sizes = stored.sizes()
    starts = [0, *accumulate(sizes)]
    # Levels of few nodes are kept whole. Of those below, the dense form scores all nodes, the sparse those in question.
    few = next(number for number, size in enumerate(sizes) if size <= keep)
    scored = 0 if form == "dense" else starts[few]
    scores = q @ stored.mean[:, :, scored:].transpose(-1, -2)
    denominators = _denominator(scores, *(x[:, :, None, scored:] for x in (stored.total, stored.floor)))
    nowhere = torch.finfo(scores.dtype).min  # and not -inf, or a row without a source would be NaN
    scores = scores.masked_fill(~stored.there[:, None, None, scored:], nowhere)
    found: list[_Kept] = []
    for number in reversed(range(len(sizes))):
        start, size, place = starts[number], sizes[number], None
        best, denominator = (x[..., start - scored : start - scored + size] for x in (scores, denominators))
        if number < few and not (whole and number == 0):
            above = found[-1].place
            if above is None:
                above = torch.arange(sizes[number + 1], device=q.device).expand(*q.shape[:3], -1)
            place = (2 * above[..., None] + torch.arange(2, device=q.device)).flatten(-2)
            beyond, place = place >= size, place.clamp(max=size - 1)
            if form == "dense":
                best, denominator = (x.gather(-1, place) for x in (best, denominator))
            else:
                mean, total, floor = (_at(x, start + place) for x in (stored.mean, stored.total, stored.floor))
                best = (mean * q[..., None, :]).sum(-1)
                denominator = _denominator(best, total, floor)
                beyond = beyond | ~_at(stored.there[:, None].expand(-1, q.shape[1], -1), start + place)
            best, order = best.masked_fill(beyond, nowhere).topk(min(keep, place.shape[-1]))
            place, denominator = (x.gather(-1, order) for x in (place, denominator))
        weight = torch.ones_like(best) if number == 0 and stored.attend else best.softmax(-1)
        found.append(_Kept(weight.masked_fill(best == nowhere, 0), denominator, place))
    return found[::-1]


def _attention_to_all(stored: Stored, products: Tensor) -> Tensor:
    """The weights of all steps [B, H, T, S]."""
    nothing = _empty(stored)
    return (products + stored.log.masked_fill(nothing[..., 0], 0)[:, :, None]).softmax(-1).masked_fill(nothing, 0)


def _attention(stored: Stored, scores: Tensor, leaves: Tensor) -> Tensor:
    """The softmax of scores [B, H, T, K, leaf] over the steps of `leaves` [B, H, T, K]."""
    scores = scores.masked_fill(leaves[..., None] == 0, torch.finfo(scores.dtype).min)
    return scores.flatten(-2).softmax(-1).masked_fill(_empty(stored), 0).view_as(scores)


def _empty(stored: Stored) -> Tensor:
    """Rows without a source [B, 1, 1, 1]: they would read NaN, so they see what is not there, and it is dropped."""
    return ~stored.there[:, :1, None, None]


def _read_dense(stored: Stored, q: Tensor, kept: list[_Kept], mix: Tensor) -> tuple[Tensor, Attended | None]:
    """Every node's read is a sum over its steps: what a step counts for in all of them is summed first."""
    products = q @ stored.k.transpose(-1, -2)
    shares = _shares(stored, kept, mix).repeat_interleave(stored.leaf, -1)
    total, attended = products * (shares * stored.weight[:, :, None]).to(products.dtype), None
    if stored.attend and kept[0].place is None:
        attended = Attended(_attention_to_all(stored, products))
        total = total + (mix[..., :1] * attended.weight).to(total.dtype)
    elif stored.attend and kept[0].place is not None:
        steps = kept[0].place[..., None] * stored.leaf + torch.arange(stored.leaf, device=q.device)
        scores = (products + stored.log[:, :, None]).gather(-1, steps.flatten(-2)).view(steps.shape)
        seen, steps = _attention(stored, scores, kept[0].weight).flatten(-2), steps.flatten(-2)
        total, attended = total.scatter_add(-1, steps, (mix[..., :1] * seen).to(total.dtype)), Attended(seen, steps)
    return total @ stored.v, attended


def _shares(stored: Stored, kept: list[_Kept], mix: Tensor) -> Tensor:
    """What a leaf's steps count for in the reads of all matrices above [B, H, T, leaves]."""
    share = torch.zeros_like(mix[..., :1])
    for number, (node, nodes) in reversed([*enumerate(zip(stored.levels, kept, strict=True))]):
        size = node.m.shape[-1]
        share = (share[..., None] * node.rise[:, :, None]).flatten(-2)[..., :size]
        if number or not stored.attend:
            share = share + nodes.of_all(mix[..., number, None] * nodes.weight / nodes.denominator, size)
    return share


def _read_sparse(stored: Stored, q: Tensor, kept: list[_Kept], mix: Tensor) -> tuple[Tensor, Attended | None]:
    """The nodes that are kept alone, which are gathered."""
    total, attended = q.new_zeros(*q.shape[:3], stored.v.shape[-1]), None
    for number, (node, nodes) in enumerate(zip(stored.levels, kept, strict=True)):
        if number == 0 and stored.attend:
            h, attended = _attend(stored, q, nodes)
            total = total + mix[..., 0, None].to(h.dtype) * h
            continue
        share = mix[..., number, None] * nodes.weight / nodes.denominator
        h = _of_nodes(stored, node, stored.leaf << number, q, nodes.place)
        total = total + (share[..., None].to(h.dtype) * h).sum(-2)
    return total, attended


def _of_nodes(stored: Stored, node: Node, size: int, q: Tensor, place: Tensor | None) -> Tensor:
    """C^T q [B, H, T, K, DV] of a level's nodes at `place`."""
    if node.C is not None:
        return torch.einsum("bhtd,bhtkdv->bhtkv", q, _at(node.C, place))
    if place is None:
        place = torch.arange(node.m.shape[-1], device=q.device).expand(*q.shape[:3], -1)
    _, k, v, log = _steps_of(stored, place, size)
    weight = exp_from(log, _at(node.m, place)[..., None]).to(q.dtype) * torch.einsum("bhtd,bhtksd->bhtks", q, k)
    return torch.einsum("bhtks,bhtksv->bhtkv", weight, v)


def _attend(stored: Stored, q: Tensor, leaves: _Kept) -> tuple[Tensor, Attended]:
    """Attention to the steps of the leaves kept."""
    assert leaves.place is not None  # of more leaves than are kept
    steps, k, v, log = _steps_of(stored, leaves.place, stored.leaf)
    seen = _attention(stored, torch.einsum("bhtd,bhtksd->bhtks", q, k) + log, leaves.weight)
    return torch.einsum("bhtks,bhtksv->bhtv", seen.to(v.dtype), v), Attended(seen.flatten(-2), steps.flatten(-2))


def _steps_of(stored: Stored, place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The steps [B, H, T, K, size] of nodes kept as steps, and their keys, values and log weights."""
    steps = place[..., None] * size + torch.arange(size, device=place.device)
    there = steps < stored.k.shape[2]  # the last node may not be full
    steps = steps.clamp(max=stored.k.shape[2] - 1)
    k, v, log = (_at(x, steps.flatten(-2)).unflatten(3, (-1, size)) for x in (stored.k, stored.v, stored.log))
    return steps, k, v, log.masked_fill(~there, -math.inf)


def _denominator(score: Tensor, total: Tensor, floor: Tensor) -> Tensor:
    """What a matrix's read is divided by: the normaliser is the mean key times the sum of weights."""
    normaliser = (score * total).abs()
    return torch.maximum(normaliser, floor.to(normaliser.dtype)) + EPS


def _at(x: Tensor, place: Tensor | None) -> Tensor:
    """`x` [B, H, N, ...] at the nodes `place` [B, H, T, K], [B, H, T, K, ...]; None: at all, [B, H, 1, N, ...]."""
    if place is None:
        return x[:, :, None]
    rows = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(*x.shape[:2], 1, 1) * x.shape[2]
    return x.flatten(0, 2).index_select(0, (rows + place).flatten()).unflatten(0, place.shape)
