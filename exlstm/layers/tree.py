"""The tree of a hierarchical memory: what a source wrote, in nodes of more and more steps."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from exlstm.ops.mlstm import EPS


class Node(NamedTuple):
    """The N nodes of one level; sums are scaled by exp(-m)."""

    # Matrix memories, sums of weight key value^T; None where a node's steps are fewer numbers, or in a memory that is
    # not to be read by its matrices.
    C: Tensor | None  # [B, H, N, DK, DV]
    m: Tensor  # [B, H, N] the largest log weight; -inf in a node that holds nothing
    rise: Tensor  # [B, H, (N + 1) // 2, 2] exp(m - that of the node above), by which sums grow into those above


class Outline(NamedTuple):
    """What nodes are found by, and what their reads are divided by."""

    key: Tensor  # [B, H, N, DK] mean of the keys by weight
    total: Tensor  # [B, H, N] sum of weights, scaled by exp(-m): at least 1 in a node that holds something
    log: Tensor  # [B, H, N] the logarithm of the sum of weights


class Stored(NamedTuple):
    """A source in memory: what its steps wrote, and the tree of it. S is a multiple of the leaf."""

    k: Tensor  # [B, H, S, DK]
    v: Tensor  # [B, H, S, DV]
    log: Tensor  # [B, H, S] log weights; -inf for steps that are not there
    weight: Tensor  # [B, H, S] weights by that of the leaf's heaviest step, exp(log - m)
    levels: tuple[Node, ...]  # from the leaves to the root
    outline: Outline  # of all nodes, leaves first
    there: Tensor  # bool [B, nodes] whether they hold something
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
    # Contiguous, or each read that gathers from them would copy them whole.
    k, v = (F.pad(x, (0, 0, 0, short)).contiguous() for x in (k, v))
    log = F.pad(log, (0, short), value=-math.inf).contiguous()
    weight, level = _leaves(k, log, leaf)
    levels, rises = [level], []
    if matrices and not attend:
        levels[0] = level._replace(C=_matrices(level.m, k, v, log, leaf))
    while levels[-1].m.shape[-1] > 1:
        rise, level = _joined(levels[-1])
        rises.append(rise)
        if matrices and level.C is None:
            level = level._replace(C=_matrices(level.m, k, v, log, leaf << len(levels)))
        levels.append(level)
    rises.append(torch.ones_like(log[..., :1, None].expand(-1, -1, -1, 2)))
    nodes = tuple(Node(level.C, level.m, rise) for level, rise in zip(levels, rises, strict=True))
    there = [node.m[:, 0] > -math.inf for node in nodes]
    depth = 1 + torch.stack([here.sum(-1) > 1 for here in there]).sum(0)
    m, key, total = (torch.cat([getattr(level, x) for level in levels], 2) for x in ("m", "key", "total"))
    m = m.masked_fill(m == -math.inf, 0.0)  # a node that holds nothing has no weight; anything finite will do
    outline = Outline(key, total, m + total.clamp(min=EPS).log())
    return Stored(k, v, log, weight, nodes, outline, torch.cat(there, -1), leaf, attend, depth)


class _Level(NamedTuple):
    """The nodes of a level while the tree is built, with what those above are made of."""

    C: Tensor | None
    m: Tensor
    key: Tensor  # [B, H, N, DK] mean of the keys by weight
    total: Tensor  # [B, H, N] sums of weights


def _leaves(k: Tensor, log: Tensor, leaf: int) -> tuple[Tensor, _Level]:
    """The weights of steps [B, H, S], and the leaves."""
    keys, weights = (x.unflatten(2, (-1, leaf)) for x in (k, log))  # [B, H, N, leaf, ...]
    m = weights.amax(-1)
    weights = exp_from(weights, m[..., None])
    total = weights.sum(-1)
    return weights.flatten(2), _Level(None, m, _mean(weights, keys, total), total)


def _joined(below: _Level) -> tuple[Tensor, _Level]:
    """Two neighbours each become one node, a last one without a neighbour one by itself; and how those below rise."""
    m = in_pairs(below.m, -math.inf)
    top = m.amax(-1)
    rise = exp_from(m, top[..., None])
    C = None
    if below.C is not None:
        C = (rise[..., None, None].to(below.C.dtype) * by_node(below.C, rise.shape[2], 2)).sum(3)
    weights = rise * in_pairs(below.total)
    total = weights.sum(-1)
    return rise, _Level(C, top, _mean(weights, by_node(below.key, rise.shape[2], 2), total), total)


def _mean(weights: Tensor, x: Tensor, total: Tensor) -> Tensor:
    """The mean of `x` [..., n, D] by weights [..., n] that add up to `total`; 0 if that is 0."""
    return ((weights / total.clamp(min=EPS)[..., None])[..., None].to(x.dtype) * x).sum(-2)


def _matrices(m: Tensor, k: Tensor, v: Tensor, log: Tensor, size: int) -> Tensor | None:
    """The matrix memories of nodes of `size` steps, if the keys and values of these are not fewer numbers."""
    count, dk, dv = m.shape[-1], k.shape[-1], v.shape[-1]
    if size * (dk + dv) <= dk * dv:
        return None
    of_steps = m[..., None].expand(*m.shape, size).flatten(-2)[..., : k.shape[2]]
    weighted = exp_from(log, of_steps)[..., None].to(k.dtype) * k
    weighted, v = (by_node(x, count, size) for x in (weighted, v))
    return weighted.transpose(-1, -2) @ v


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
