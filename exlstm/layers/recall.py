"""Reading a hierarchical memory from coarse to fine, as pure functions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from exlstm.layers.reading import Attended, Trace
from exlstm.layers.search import Form, Found, at, search, sparse_is_cheaper
from exlstm.layers.tree import Node, Stored, exp_from


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

    At every level, from the root on: the nodes below those kept are scored by q . mean key / sqrt(DK) and the logarithm
    of the sum of their weights, and the best `keep` are kept. The best quarter of these are read, weighed by the
    softmax of their scores: a node gives what an mLSTM's memory would, were its weights to add up to 1, C^T q /
    sqrt(DK) / max(|n . q| / sqrt(DK), 1): so nodes of few and many steps give values of like size, as attention does.
    The leaves kept, if they are to be attended to, give together the attention to their steps: the softmax of q . k /
    sqrt(DK) and a step's log weight.
    The levels are mixed by the softmax of `level`. A source of no more leaves than `keep` is read by attention to all
    of its steps alone, for there is nothing to look for: nodes above its leaves could but repeat them in outline.

    Args:
        q: queries [B, H, T, DK].
        level: [B, H, T, levels] log weights of the levels from the leaves on; the last serves all above.
        keep: nodes kept at a level.
        form: "dense" forms all T x S products, "sparse" reads the kept nodes alone, "auto" takes what costs less.
        whole: the dense form, which has all products, attends to the steps of all leaves: for learning, where a key
            that is not found is taught nothing, and so would not be found.
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
    found = search(stored, q, keep, form, whole=whole and stored.attend and form == "dense")
    if stored.attend:
        found[0] = _or_all_leaves(stored, found[0], fits)
    h, attended = (_read_dense if form == "dense" else _read_sparse)(stored, q, found, mix)
    return h, _told(stored, attended, found, mix) if trace else Trace(attended)


def _told(stored: Stored, attended: Attended | None, found: Sequence[Found], mix: Tensor) -> Trace:
    """What was read, with the weights of all nodes and levels; nothing of levels that were not looked at."""
    sizes = stored.sizes()
    read = mix > 0
    nodes = [x.of_all(x.weight * read[..., n, None], sizes[n]) for n, x in enumerate(found)]
    nodes += [mix.new_zeros(*mix.shape[:3], size) for size in sizes[len(found) :]]
    if stored.attend and attended is not None:
        nodes[0] = attended.over(stored.k.shape[2]).unflatten(-1, (-1, stored.leaf)).sum(-1)
    return Trace(attended, tuple(nodes), mix)


def _or_all_leaves(stored: Stored, leaves: Found, fits: Tensor) -> Found:
    """The leaves found, but all in rows `fits` [B]: the first ones, for those that are not there come last."""
    if leaves.place is None:
        return leaves
    rows, count = fits[:, None, None, None], leaves.place.shape[-1]
    there = stored.there[:, None, None, :count].to(leaves.weight.dtype)
    first = torch.arange(count, device=fits.device)
    return leaves._replace(weight=there.where(rows, leaves.weight), place=first.where(rows, leaves.place))


def _attention_to_all(stored: Stored, products: Tensor) -> Tensor:
    """The weights of all steps [B, H, T, S]."""
    nothing = _empty(stored)
    return (products + stored.log.masked_fill(nothing[..., 0], 0)[:, :, None]).softmax(-1).masked_fill(nothing, 0)


def _attention(stored: Stored, scores: Tensor, leaves: Tensor) -> Tensor:
    """The softmax of scores [B, H, T, K, leaf] over the steps of `leaves` [B, H, T, K], [B, H, T, K leaf]."""
    scores = scores.masked_fill(leaves[..., None] == 0, torch.finfo(scores.dtype).min)
    return scores.flatten(-2).softmax(-1).masked_fill(_empty(stored), 0)


def _empty(stored: Stored) -> Tensor:
    """Rows without a source [B, 1, 1, 1]: they would read NaN, so they see what is not there, and it is dropped."""
    return ~stored.there[:, :1, None, None]


def _read_dense(stored: Stored, q: Tensor, found: list[Found], mix: Tensor) -> tuple[Tensor, Attended | None]:
    """Every node's read is a sum over its steps: what a step counts for in all of them is summed first."""
    products = q @ stored.k.transpose(-1, -2)
    total, attended = products * _shares(stored, found, mix).to(products.dtype), None
    if stored.attend and found[0].place is None:
        attended = Attended(_attention_to_all(stored, products))
        total = total + (mix[..., :1] * attended.weight).to(total.dtype)
    elif stored.attend and found[0].place is not None:
        steps = found[0].place[..., None] * stored.leaf + torch.arange(stored.leaf, device=q.device)
        scores = (products + stored.log[:, :, None]).gather(-1, steps.flatten(-2)).view(steps.shape)
        seen, steps = _attention(stored, scores, found[0].weight), steps.flatten(-2)
        total, attended = total.scatter_add(-1, steps, (mix[..., :1] * seen).to(total.dtype)), Attended(seen, steps)
    return total @ stored.v, attended


def _shares(stored: Stored, found: list[Found], mix: Tensor) -> Tensor:
    """What the products of steps count for in the reads of all matrices [B, H, T, S]."""
    share = torch.zeros_like(mix[..., :1])
    for number, (node, nodes) in reversed([*enumerate(zip(stored.levels, found, strict=True))]):
        size = node.m.shape[-1]
        share = (share[..., None] * node.rise[:, :, None]).flatten(-2)[..., :size]
        if number or not stored.attend:
            share = share + nodes.of_all(mix[..., number, None] * nodes.weight / nodes.denominator, size)
    return share.repeat_interleave(stored.leaf, -1) * stored.weight[:, :, None]


def _read_sparse(stored: Stored, q: Tensor, found: list[Found], mix: Tensor) -> tuple[Tensor, Attended | None]:
    """The nodes that were found alone, which are gathered."""
    total, attended = q.new_zeros(*q.shape[:3], stored.v.shape[-1]), None
    for number, (node, nodes) in enumerate(zip(stored.levels, found, strict=True)):
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
        return torch.einsum("bhtd,bhtkdv->bhtkv", q, node.C[:, :, None] if place is None else at(node.C, place))
    if place is None:
        place = torch.arange(node.m.shape[-1], device=q.device).expand(*q.shape[:3], -1)
    _, k, v, log = _steps_of(stored, place, size)
    m = at(node.m, place)[..., None]
    weight = exp_from(log, m).to(q.dtype) * torch.einsum("bhtd,bhtksd->bhtks", q, k)
    return torch.einsum("bhtks,bhtksv->bhtkv", weight, v)


def _attend(stored: Stored, q: Tensor, leaves: Found) -> tuple[Tensor, Attended]:
    """Attention to the steps of the leaves found."""
    assert leaves.place is not None  # of more leaves than are kept
    steps, k, v, log = _steps_of(stored, leaves.place, stored.leaf)
    seen = _attention(stored, torch.einsum("bhtd,bhtksd->bhtks", q, k) + log, leaves.weight)
    h = torch.einsum("bhtp,bhtpv->bhtv", seen.to(v.dtype), v.flatten(3, 4))
    return h, Attended(seen, steps.flatten(-2))


def _steps_of(stored: Stored, place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The steps [B, H, T, K, size] of nodes kept as steps, and their keys, values and log weights."""
    steps = place[..., None] * size + torch.arange(size, device=place.device)
    there = steps < stored.k.shape[2]  # the last node may not be full
    steps = steps.clamp(max=stored.k.shape[2] - 1)
    k, v, log = (at(x, steps.flatten(-2)).unflatten(3, (-1, size)) for x in (stored.k, stored.v, stored.log))
    return steps, k, v, log.masked_fill(~there, -math.inf)
