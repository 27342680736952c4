"""The tree of a hierarchical memory: what a source wrote, in nodes of more and more steps."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from exlstm.ops.mlstm import EPS


class Node(NamedTuple):
    """The N nodes of one level; sums are scaled by exp(-m)."""

    # Matrix memories, sums of weight key value^T, and normalisers, sums of weight key; None where a node's steps are
    # fewer numbers, or in a memory that is not to be read by its matrices.
    C: Tensor | None  # [B, H, N, DK, DV]
    n: Tensor | None  # [B, H, N, DK]
    m: Tensor  # [B, H, N] the largest log weight; -inf in a node that holds nothing
    rise: Tensor  # [B, H, N] exp(m - that of the node above), by which sums grow into those above


class Stored(NamedTuple):
    """A source in memory: what its steps wrote, and the tree of it. S is a multiple of the leaf."""

    k: Tensor  # [B, H, S, DK]
    v: Tensor  # [B, H, S, DV]
    log: Tensor  # [B, H, S] log weights; -inf for steps that are not there
    levels: tuple[Node, ...]  # from the leaves to the root
    means: Tensor  # [B, H, nodes, DK] what nodes are found by: the mean of their keys by weight; leaves first
    there: Tensor  # bool [B, nodes] whether a node holds something
    leaf: int  # steps of a leaf
    attend: bool  # whether leaves are read by attention to their steps, or as matrices like all above
    depth: Tensor  # int64 [B] levels up to the one where a row's source is a single node

    def sizes(self) -> list[int]:
        """How many nodes a level has."""
        return [node.m.shape[-1] for node in self.levels]

    def leaves_there(self) -> Tensor:
        """How many leaves hold something, int64 [B]."""
        return self.there[:, : self.levels[0].m.shape[-1]].sum(-1)


def store(k: Tensor, v: Tensor, log: Tensor, leaf: int, *, attend: bool = True, matrices: bool = True) -> Stored:
    """The memory of keys and values [B, H, S, D] with log weights [B, H, S]; absent steps come last.

    Without `matrices` it can be read all the same, but every node from its steps.
    """
    short = -k.shape[2] % leaf
    k, v = (F.pad(x, (0, 0, 0, short)) for x in (k, v))
    log = F.pad(log, (0, short), value=-math.inf)
    level = _leaves(k, v, log, leaf, matrices=matrices and not attend)
    levels, rises = [level], []
    while level.m.shape[-1] > 1:
        rise, level = _joined(level)
        rises.append(rise)
        if matrices and level.C is None:
            C, n = _matrices(level.m, k, v, log, leaf << len(levels))
            level = level._replace(C=C, n=n)
        levels.append(level)
    rises.append(torch.ones_like(level.m))
    nodes = tuple(Node(level.C, level.n, level.m, rise) for level, rise in zip(levels, rises, strict=True))
    there = [node.m[:, 0] > -math.inf for node in nodes]
    depth = 1 + torch.stack([here.sum(-1) > 1 for here in there]).sum(0)
    means = torch.cat([level.mean for level in levels], 2)
    return Stored(k, v, log, nodes, means, torch.cat(there, -1), leaf, attend, depth)


class _Level(NamedTuple):
    """The nodes of a level while the tree is built, with what those above are made of."""

    C: Tensor | None
    n: Tensor | None
    m: Tensor
    mean: Tensor  # [B, H, N, DK] of the keys by weight
    w: Tensor  # [B, H, N] sums of weights


def _leaves(k: Tensor, v: Tensor, log: Tensor, leaf: int, *, matrices: bool) -> _Level:
    """The leaves."""
    keys, weights = (x.unflatten(2, (-1, leaf)) for x in (k, log))  # [B, H, N, leaf, ...]
    m = weights.amax(-1)
    weights = exp_from(weights, m[..., None])
    w = weights.sum(-1)
    C, n = _matrices(m, k, v, log, leaf) if matrices else (None, None)
    return _Level(C, n, m, _mean(weights, keys, w), w)


def _joined(below: _Level) -> tuple[Tensor, _Level]:
    """Two neighbours each become one node, a last one without a neighbour one by itself; and how those below rise."""
    m = in_pairs(below.m, -math.inf)
    top = m.amax(-1)
    rise = exp_from(m, top[..., None])

    def both(x: Tensor) -> Tensor:
        return (rise.view(*rise.shape, *[1] * (x.dim() - 3)).to(x.dtype) * by_node(x, rise.shape[2], 2)).sum(3)

    C, n = (None if x is None else both(x) for x in (below.C, below.n))
    weights, w = rise * in_pairs(below.w), both(below.w)
    mean = _mean(weights, by_node(below.mean, rise.shape[2], 2), w)
    rise = rise.flatten(-2)[..., : below.m.shape[-1]]
    return rise, _Level(C, n, top, mean, w)


def _mean(weights: Tensor, x: Tensor, total: Tensor) -> Tensor:
    """The mean of `x` [..., n, D] by weights [..., n] that add up to `total`; 0 if that is 0."""
    return ((weights / total.clamp(min=EPS)[..., None])[..., None].to(x.dtype) * x).sum(-2)


def _matrices(m: Tensor, k: Tensor, v: Tensor, log: Tensor, size: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The matrix memories and normalisers of nodes of `size` steps, if their keys and values are not fewer numbers."""
    count, dk, dv = m.shape[-1], k.shape[-1], v.shape[-1]
    if size * (dk + dv) <= dk * dv:
        return None, None
    of_steps = m[..., None].expand(*m.shape, size).flatten(-2)[..., : k.shape[2]]
    weighted = exp_from(log, of_steps)[..., None].to(k.dtype) * k
    weighted, v = (by_node(x, count, size) for x in (weighted, v))
    return weighted.transpose(-1, -2) @ v, weighted.sum(-2)


def by_node(x: Tensor, count: int, size: int, dim: int = 2) -> Tensor:
    """The steps of `x` along `dim` as those of each of `count` nodes of `size`, zeros where the last is not full."""
    behind = [0] * (2 * (x.dim() - dim) - 1)
    return F.pad(x, (*behind, count * size - x.shape[dim])).unflatten(dim, (count, size))


def in_pairs(x: Tensor, missing: float = 0.0) -> Tensor:
    """The nodes of `x` [..., N] beside their neighbours [..., (N + 1) // 2, 2]."""
    return F.pad(x, (0, x.shape[-1] % 2), value=missing).unflatten(-1, (-1, 2))


def exp_from(log: Tensor, m: Tensor) -> Tensor:
    """exp(log - m), and 0 where nothing is there."""
    return (log - m.masked_fill(m == -math.inf, 0.0)).exp()
