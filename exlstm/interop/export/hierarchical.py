"""Hierarchical mLSTM over a whole piece at once, wherever in its document the piece begins.

The dense form of the definition (`exlstm.ops.hmlstm`): T x T weights for the steps of the piece, and T x levels weights
for the memories that it began with. Positions differ from row to row and are known only when the graph runs, so levels
are told by comparing quotients of positions, which every format has; shifts and xor of tensors not all have.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops import HMLSTMState
from exlstm.ops.mlstm import EPS, normaliser_floor
from exlstm.ops.reference import hmlstm as reference

NOTHING = -1e30
"""The log weight of what is not there: finite, for not every runtime computes with infinities."""


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
    """`exlstm.ops.hmlstm`, all steps at once; `chunk_size` has no meaning here."""
    assert reset is None, "graphs are traced without resets"
    state = state or HMLSTMState.empty_for(q, k, v, i, f, level)
    if isinstance(q.shape[1], int) and q.shape[1] == 1 and mask is None:
        return reference.hmlstm(q, k, v, i, f, level, state, return_state=return_state)
    C, n, m, log_decay, begin = state
    levels, dtype = m.shape[-1], C.dtype
    present = torch.ones_like(i[..., 0], dtype=torch.bool) if mask is None else mask
    step = begin[:, None] + present.long().cumsum(1) - present.long()  # [B, T] position of every step
    end = begin + present.long().sum(1)
    q, k, v, i, f, level = (x.to(dtype).transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v, i, f, level))
    lf = logsigmoid(f).masked_fill(~present[:, None], 0.0)
    F = lf.cumsum(-1)
    a = (i - F).masked_fill(~present[:, None], NOTHING)  # [B, H, T], seen from the piece's start
    first = begins_of_slots(begin, levels)  # [B, levels]
    held = reference.held_slots(begin, levels)[:, None]
    slots = torch.where(held, m, NOTHING)  # [B, H, levels]

    # Reading: logarithms of all weights, then their products.
    inside = read(level, levels_between(step[:, :, None], step[:, None, :], levels)) + a[..., None, :]
    past = torch.ones_like(inside[0, 0], dtype=torch.bool).tril()
    inside = inside.masked_fill(~past, NOTHING)  # [B, H, T, T]
    top = torch.arange(levels, device=q.device) == levels - 1
    between = levels_between(step[:, :, None], first[:, None, :], levels)
    outside = read(level, torch.where(top, levels - 1, between)) + slots[..., None, :]  # [B, H, T, levels]
    M = torch.maximum(inside.amax(-1), torch.maximum(outside.amax(-1), log_decay[..., None]))
    weights = (q @ k.transpose(-1, -2)) * (inside - M[..., None]).exp()
    u = (outside - M[..., None]).exp()
    spread = (u[..., None] * q[..., None, :]).flatten(-2)  # [B, H, T, levels DK]
    numerator = weights @ v + spread @ C.flatten(2, 3)
    denominator = weights.sum(-1) + (spread @ n.flatten(2)[..., None])[..., 0]
    h = numerator / (torch.maximum(denominator.abs(), normaliser_floor(F + M)) + EPS)[..., None]
    h = h.transpose(1, 2).masked_fill(~present[..., None, None], 0.0)
    if not return_state:
        return h, None

    # Writing: every slot after the piece is the sum of the steps and of the slots before it that lie in its block.
    total = F[..., -1]
    lower = begins_of_slots(end, levels)[..., None]  # [B, levels, 1]
    upper = ends_of_slots(end, levels)[..., None]
    steps_in = ((step[:, None] >= lower) & (step[:, None] < upper) & present[:, None])[:, None]
    slots_in = ((first[:, None] >= lower) & (first[:, None] < upper))[:, None]
    log = torch.cat(
        [a[..., None, :].masked_fill(~steps_in, NOTHING), slots[..., None, :].masked_fill(~slots_in, NOTHING)], -1
    )  # [B, H, levels, T + levels]
    log = log + total[..., None, None]
    m = log.amax(-1)
    some = m > NOTHING / 2
    m = torch.where(some, m, 0.0)
    w_steps, w_slots = (log - m[..., None]).exp().split([q.shape[2], levels], -1)
    C = (w_steps[..., None] * k[:, :, None]).transpose(-1, -2) @ v[:, :, None] + (w_slots @ C.flatten(3)).unflatten(
        -1, C.shape[3:]
    )
    n = w_steps @ k + w_slots @ n
    return h, HMLSTMState(C, n, m, log_decay + total, end)


def read(level: Tensor, table: Tensor) -> Tensor:
    """The log weights `level` [B, H, T, levels] at the levels `table` [B, T, N]: [B, H, T, N]."""
    return level.gather(-1, table[:, None].expand(-1, level.shape[1], -1, -1))


def levels_between(a: Tensor, b: Tensor, levels: int) -> Tensor:
    """The level between positions, min(bit length of a xor b, levels - 1): in so many lowest bits they may differ."""
    differ = torch.zeros_like(a - b)
    for bit in range(levels - 1):
        differ = differ + (a // 2**bit != b // 2**bit).long()
    return differ


def begins_of_slots(position: Tensor, levels: int) -> Tensor:
    """Where the block of every slot of a memory at `position` [B] begins: [B, levels]; in the last slot at 0."""
    slot = torch.arange(levels, device=position.device)
    size = 2 ** (slot + 1)
    return torch.where(slot == levels - 1, 0, position[:, None] // size * size)


def ends_of_slots(position: Tensor, levels: int) -> Tensor:
    """Where it ends: [B, levels]; where it begins in a slot that holds nothing."""
    size = 2 ** torch.arange(levels, device=position.device)
    return position[:, None] // size * size
