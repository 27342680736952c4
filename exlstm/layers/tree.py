"""The tree of a hierarchical memory, as pure functions: building it, and reading from coarse to fine."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from exlstm.layers.reading import Attended, Trace
from exlstm.ops.mlstm import EPS, normaliser_floor

Form = Literal["auto", "dense", "sparse"]


class Node(NamedTuple):
    """The N nodes of one level; sums are scaled by exp(-m)."""

    # Matrix memories, sums of weight key value^T, and normalisers, sums of weight key; None where a node's steps are
    # fewer numbers.
    C: Tensor | None  # [B, H, N, DK, DV]
    n: Tensor | None  # [B, H, N, DK]
    s: Tensor  # [B, H, N, DK] sums of weight summary
    w: Tensor  # [B, H, N] sums of weights
    m: Tensor  # [B, H, N] the largest log weight; -inf in a node that holds nothing

    def summaries(self) -> Tensor:
        """What the nodes are found by [B, H, N, DK]: the mean of their steps', by weight."""
        return self.s / self.w.clamp(min=EPS)[..., None].to(self.s.dtype)


class Stored(NamedTuple):
    """A source in memory: what its steps wrote, and the tree of it. S is a multiple of the leaf."""

    k: Tensor  # [B, H, S, DK]
    v: Tensor  # [B, H, S, DV]
    log: Tensor  # [B, H, S] log weights; -inf for steps that are not there
    levels: tuple[Node, ...]  # from the leaves to the root
    leaf: int  # steps of a leaf
    attend: bool  # whether leaves are read by attention to their steps, or as matrices like all above
    depth: Tensor  # int64 [B] levels up to the one where a row's source is a single node

    def leaves_there(self) -> Tensor:
        """How many leaves hold something, int64 [B]."""
        return (self.levels[0].m[:, 0] > -math.inf).sum(-1)


def store(k: Tensor, v: Tensor, s: Tensor, log: Tensor, leaf: int, *, attend: bool = True) -> Stored:
    """The memory of keys, values and summaries [B, H, S, D] with log weights [B, H, S]; absent steps come last."""
    short = -k.shape[2] % leaf
    k, v, s = (F.pad(x, (0, 0, 0, short)) for x in (k, v, s))
    log = F.pad(log, (0, short), value=-math.inf)
    levels = [leaves(s, log, leaf)]
    if not attend:
        levels[0] = _with_matrices(levels[0], k, v, log, leaf)
    while levels[-1].m.shape[-1] > 1:
        above = joined(levels[-1])
        levels.append(above if above.C is not None else _with_matrices(above, k, v, log, leaf << len(levels)))
    several = [(node.m[:, 0] > -math.inf).sum(-1) > 1 for node in levels]
    return Stored(k, v, log, tuple(levels), leaf, attend, 1 + torch.stack(several).sum(0))


def leaves(s: Tensor, log: Tensor, leaf: int) -> Node:
    """The leaves of summaries [B, H, S, D], with log weights [B, H, S]; without matrices."""
    s, log = (x.unflatten(2, (-1, leaf)) for x in (s, log))  # [B, H, N, leaf, ...]
    m = log.amax(-1)
    weight = _exp(log, m[..., None])
    return Node(None, None, (weight[..., None].to(s.dtype) * s).sum(-2), weight.sum(-1), m)


def _with_matrices(node: Node, k: Tensor, v: Tensor, log: Tensor, size: int) -> Node:
    """The nodes of `size` steps with their matrix memories, if their keys and values are not fewer numbers."""
    count, dk, dv = node.m.shape[-1], k.shape[-1], v.shape[-1]
    if size * (dk + dv) <= dk * dv:
        return node
    weighted = _exp(log, _of_steps(node.m, size, k.shape[2]))[..., None].to(k.dtype) * k
    weighted, v = (_by_node(x, count, size) for x in (weighted, v))
    return node._replace(C=weighted.transpose(-1, -2) @ v, n=weighted.sum(-2))


def _of_steps(x: Tensor, size: int, steps: int) -> Tensor:
    """Of every step what its node has: x [..., N] to [..., S]."""
    return x[..., None].expand(*x.shape, size).flatten(-2)[..., :steps]


def _by_node(x: Tensor, count: int, size: int, dim: int = 2) -> Tensor:
    """The steps of `x` along `dim` as those of each of the nodes, zeros where the last one is not full."""
    dim %= x.dim()
    behind = [0] * (2 * (x.dim() - dim) - 1)
    return F.pad(x, (*behind, count * size - x.shape[dim])).unflatten(dim, (count, size))


def joined(below: Node) -> Node:
    """Two neighbours each become one node; a last one without a neighbour becomes one by itself."""
    odd = below.m.shape[-1] % 2
    m = F.pad(below.m, (0, odd), value=-math.inf).unflatten(2, (-1, 2))
    top = m.amax(-1)
    weight = _exp(m, top[..., None])

    def both(x: Tensor) -> Tensor:
        return (weight.view(*weight.shape, *[1] * (x.dim() - 3)).to(x.dtype) * _by_node(x, weight.shape[2], 2)).sum(3)

    C, n = (None if x is None else both(x) for x in (below.C, below.n))
    return Node(C, n, both(below.s), both(below.w), top)


def read(
    stored: Stored, q: Tensor, u: Tensor, level: Tensor, *, keep: int, form: Form = "auto", trace: bool = False
) -> tuple[Tensor, Trace]:
    """What T steps read.

    At every level, from the root on: the nodes below those kept are scored by u . summary / sqrt(DK), the best `keep`
    are kept and weighed by the softmax of their scores. A node gives what an mLSTM's memory would,
    C^T q / sqrt(DK) / (max(|n . q| / sqrt(DK), exp(-m)) + 1e-6). The leaves, if they are to be attended to, give
    together the attention to their steps: the softmax of q . k / sqrt(DK), a step's log weight and that of its leaf.
    The levels are mixed by the softmax of `level`. A source of no more leaves than `keep` is read by attention to all
    of its steps alone, for there is nothing to look for: nodes above its leaves could but repeat them in outline.

    Args:
        q: queries [B, H, T, DK].
        u: what nodes are found with [B, H, T, DK].
        level: [B, H, T, levels] log weights of the levels from the leaves on; the last serves all above.
        keep: nodes kept at a level.
        form: "dense" forms all T x S products, "sparse" reads the kept nodes alone, "auto" takes what costs less.
        trace: also tell which nodes were read.

    Returns:
        [B, H, T, DV], 0 for a source without steps; and what was read.
    """
    dk, dv = q.shape[-1], stored.v.shape[-1]
    if form == "auto":
        sparse = keep * sum(min((stored.leaf << n) * (dk + dv), dk * dv) for n in range(len(stored.levels)))
        # A number that is gathered costs about as much as three that are multiplied where they lie.
        form = "sparse" if 3 * sparse < stored.k.shape[2] * (dk + dv) else "dense"
    q = q * dk**-0.5
    tops = torch.arange(len(stored.levels), device=q.device).clamp(max=level.shape[-1] - 1)
    fits = stored.leaves_there() <= (keep if stored.attend else 0)
    mixed = torch.where(fits, 1, stored.depth)[:, None, None, None]
    above = torch.arange(len(stored.levels), device=q.device) >= mixed
    mix = level[..., tops].masked_fill(above, -math.inf).softmax(-1)  # [B, H, T, levels of the tree]
    if stored.attend and stored.levels[0].m.shape[-1] <= keep:  # so all rows fit, and no level above is read
        kept = [_first_leaves(stored, (*q.shape[:3], stored.levels[0].m.shape[-1]))]
    else:
        kept = _descend(stored, u * dk**-0.5, keep, form, fits)
    h, steps = (_read_dense if form == "dense" else _read_sparse)(stored, q, kept, mix)
    if not trace:
        return h, Trace(steps)
    nodes = [x.of_all(node.m.shape[-1]) for x, node in zip(kept, stored.levels, strict=False)]
    nodes += [mix.new_zeros(*mix.shape[:3], node.m.shape[-1]) for node in stored.levels[len(kept) :]]
    return h, Trace(steps, tuple(nodes), mix)


class _Kept(NamedTuple):
    """The nodes that steps keep at a level."""

    place: Tensor  # int64 [B, H, T, K]
    weight: Tensor  # [B, H, T, K], 0 for a node that is not there

    def of_all(self, count: int) -> Tensor:
        """The weights of all N nodes of the level [B, H, T, N]."""
        return self.weight.new_zeros(*self.weight.shape[:3], count).scatter_add(-1, self.place, self.weight)


def _first_leaves(stored: Stored, shape: Sequence[int]) -> _Kept:
    """The first leaves [B, H, T, K], with equal weights where they are there: absent steps come last."""
    place = torch.arange(shape[-1], device=stored.log.device).expand(shape)
    count = stored.leaves_there()[:, None, None, None]
    weight = (place < count).to(torch.promote_types(stored.log.dtype, torch.float32))
    return _Kept(place, weight / count.clamp(min=1))


def _descend(stored: Stored, u: Tensor, keep: int, form: Form, fits: Tensor) -> list[_Kept]:
    """The nodes kept at every level, from the leaves to the root; in rows `fits` [B] all leaves, and none above."""
    found: list[_Kept] = []
    for node in reversed(stored.levels):
        count = node.m.shape[-1]
        if not found:
            place = torch.arange(count, device=u.device).expand(*u.shape[:3], -1)
            there = torch.ones_like(place, dtype=torch.bool)
        else:
            above = found[-1]
            place = (2 * above.place[..., None] + torch.arange(2, device=u.device)).flatten(-2)
            there = (above.weight > 0).repeat_interleave(2, -1) & (place < count)
            place = place.clamp(max=count - 1)
        there = there & (_at(node.m, place) > -math.inf)
        summaries = node.summaries()
        if form == "dense":
            scores = (u @ summaries.transpose(-1, -2)).gather(-1, place)
        else:
            scores = (_at(summaries, place) * u[..., None, :]).sum(-1)
        best, order = scores.masked_fill(~there, -math.inf).topk(min(keep, place.shape[-1]))
        # Nothing there at all: all scores are -inf, and no weight is to be NaN.
        weight = best.masked_fill((best == -math.inf).all(-1, keepdim=True), 0).softmax(-1)
        found.append(_Kept(place.gather(-1, order), weight.masked_fill(best == -math.inf, 0)))
    rows, (place, weight) = fits[:, None, None, None], found[-1]
    all_leaves = _first_leaves(stored, place.shape)
    leaves = _Kept(all_leaves.place.where(rows, place), all_leaves.weight.to(weight.dtype).where(rows, weight))
    return [leaves, *(above._replace(weight=above.weight.masked_fill(rows, 0)) for above in found[-2::-1])]


def _read_sparse(stored: Stored, q: Tensor, kept: list[_Kept], mix: Tensor) -> tuple[Tensor, Attended | None]:
    total, attended = q.new_zeros(*q.shape[:3], stored.v.shape[-1]), None
    for number, (node, (place, weight)) in enumerate(zip(stored.levels, kept, strict=False)):
        if number == 0 and stored.attend:
            h, attended = _attend(stored, q, kept[0])
            total = total + mix[..., 0, None].to(h.dtype) * h
            continue
        m = _at(node.m, place)
        if node.C is not None and node.n is not None:
            h = torch.einsum("bhtd,bhtkdv->bhtkv", q, _at(node.C, place))
            normaliser = (_at(node.n, place) * q[..., None, :]).sum(-1)
        else:
            _, k, v, log = _steps_of(stored, place, stored.leaf << number)
            weighted = _exp(log, m[..., None]).to(q.dtype) * torch.einsum("bhtd,bhtksd->bhtks", q, k)
            h, normaliser = torch.einsum("bhtks,bhtksv->bhtkv", weighted, v), weighted.sum(-1)
        share = mix[..., number, None] * weight / _denominator(normaliser, m)
        total = total + (share[..., None].to(h.dtype) * h).sum(-2)
    return total, attended


def _attend(stored: Stored, q: Tensor, leaves: _Kept) -> tuple[Tensor, Attended]:
    """Attention to the steps of the leaves kept, which are gathered."""
    steps, k, v, log = _steps_of(stored, leaves.place, stored.leaf)
    scores = torch.einsum("bhtd,bhtksd->bhtks", q, k) + log
    seen = _attention(scores.flatten(-2), leaves.weight.repeat_interleave(stored.leaf, -1))
    return torch.einsum("bhts,bhtsv->bhtv", seen.to(v.dtype), v.flatten(3, 4)), Attended(seen, steps.flatten(-2))


def _steps_of(stored: Stored, place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The steps [B, H, T, K, size] of nodes kept as steps, and their keys, values and log weights."""
    steps = place[..., None] * size + torch.arange(size, device=place.device)
    there = steps < stored.k.shape[2]  # the last node may not be full
    steps = steps.clamp(max=stored.k.shape[2] - 1)
    k, v, log = (_at(x, steps.flatten(-2)).unflatten(3, (-1, size)) for x in (stored.k, stored.v, stored.log))
    return steps, k, v, log.masked_fill(~there, -math.inf)


def _read_dense(stored: Stored, q: Tensor, kept: list[_Kept], mix: Tensor) -> tuple[Tensor, Attended | None]:
    products = q @ stored.k.transpose(-1, -2)  # [B, H, T, S]
    steps, total, attended = products.shape[-1], torch.zeros_like(products), None
    for number, (node, those) in enumerate(zip(stored.levels, kept, strict=False)):
        count, size = node.m.shape[-1], stored.leaf << number
        weights = those.of_all(count)
        if number == 0 and stored.attend:
            attended = Attended(_attention(products + stored.log[:, :, None], _of_steps(weights, size, steps)))
            total = total + (mix[..., number, None] * attended.weight).to(total.dtype)
            continue
        weighted = products * _exp(stored.log, _of_steps(node.m, size, steps))[:, :, None].to(q.dtype)
        normaliser = _by_node(weighted, count, size, -1).sum(-1)
        shares = mix[..., number, None] * weights / _denominator(normaliser, node.m[:, :, None])
        total = total + weighted * _of_steps(shares.to(q.dtype), size, steps)
    return total @ stored.v, attended


def _attention(scores: Tensor, weights: Tensor) -> Tensor:
    """The softmax of scores [..., S], each times the weight of its leaf, which is 0 for leaves not kept."""
    scores = scores.masked_fill(weights == 0, -math.inf)
    seen = weights * _exp(scores, scores.amax(-1, keepdim=True).detach())
    return seen / seen.sum(-1, keepdim=True).clamp(min=torch.finfo(seen.dtype).tiny)


def _denominator(normaliser: Tensor, m: Tensor) -> Tensor:
    # A node that holds nothing has no weight; any finite floor will do.
    floor = normaliser_floor(m.masked_fill(m == -math.inf, 0.0))
    return torch.maximum(normaliser.abs(), floor.to(normaliser.dtype)) + EPS


def _at(x: Tensor, place: Tensor) -> Tensor:
    """`x` [B, H, N, ...] at the nodes `place` [B, H, T, K]: [B, H, T, K, ...]."""
    rows = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(*x.shape[:2], 1, 1) * x.shape[2]
    return x.flatten(0, 2).index_select(0, (rows + place).flatten()).unflatten(0, place.shape)


def _exp(log: Tensor, m: Tensor) -> Tensor:
    """exp(log - m), and 0 where nothing is there."""
    return (log - m.masked_fill(m == -math.inf, 0.0)).exp()
