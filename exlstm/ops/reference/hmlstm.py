"""Hierarchical mLSTM, one step after another: a binary counter of matrix memories."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.hmlstm import HMLSTMState
from exlstm.ops.mlstm import EPS, normaliser_floor


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
    """`exlstm.ops.hmlstm` by recurrence; `chunk_size` has no meaning here."""
    state = state or HMLSTMState.empty_for(q, k, v, i, f, level)
    outputs = []
    for t in range(q.shape[1]):
        if reset is not None:
            state = HMLSTMState(*(torch.where(_as(reset[:, t], s), torch.zeros_like(s), s) for s in state))
        h, after = step(q[:, t], k[:, t], v[:, t], i[:, t], f[:, t], level[:, t], state)
        if mask is not None:
            after = HMLSTMState(*(torch.where(_as(mask[:, t], s), a, s) for s, a in zip(state, after, strict=True)))
            h = torch.where(_as(mask[:, t], h), h, 0.0)
        outputs.append(h)
        state = after
    return torch.stack(outputs, dim=1).to(v.dtype), state if return_state else None


def step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, level: Tensor, state: HMLSTMState
) -> tuple[Tensor, HMLSTMState]:
    """One step: q, k [B, H, DK], v [B, H, DV], i, f [B, H], level [B, H, levels] to h [B, H, DV]."""
    C, n, m, log_decay, position = state
    q, k, v, i, f, level = (x.to(C.dtype) for x in (q, k, v, i, f, level))
    q = q / k.shape[-1] ** 0.5
    lf = logsigmoid(f)
    held = held_slots(position, m.shape[-1])[:, None]  # [B, 1, levels]
    m = torch.where(held, m + lf[..., None], 0.0)
    log_decay = log_decay + lf

    itself = i + level[..., 0]
    slots = torch.where(held, m + torch.cat([level[..., 1:], level[..., -1:]], -1), -torch.inf)
    m_read = torch.maximum(torch.maximum(log_decay, itself), slots.amax(-1))
    w_itself, w_slots = (itself - m_read).exp(), (slots - m_read[..., None]).exp()
    qk = (q * k).sum(-1)
    numerator = torch.einsum("bhl,bhlkd,bhk->bhd", w_slots, C, q) + (w_itself * qk)[..., None] * v
    denominator = torch.einsum("bhl,bhlk,bhk->bh", w_slots, n, q) + w_itself * qk
    h = numerator / (torch.maximum(denominator.abs(), normaliser_floor(m_read)) + EPS)[..., None]

    C, n, m = _count(C, n, m, k, v, i, position)
    return h, HMLSTMState(C, n, m, log_decay, position + 1)


def held_slots(position: Tensor, levels: int) -> Tensor:
    """Which slots hold something at `position` [B]: bool [B, levels]."""
    slot = torch.arange(levels, device=position.device)
    bits = position[:, None] // 2**slot
    return (bits % 2 == 1) | ((slot == levels - 1) & (bits > 0))


def _count(
    C: Tensor, n: Tensor, m: Tensor, k: Tensor, v: Tensor, i: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add one step to the slots as one is added to a binary counter: full slots merge into the next free one."""
    levels = m.shape[-1]
    slot = torch.arange(levels, device=position.device)
    trailing_ones = ((position[:, None] + 1) % 2**slot == 0).sum(-1) - 1  # at most levels - 1
    target = slot == trailing_ones[:, None]  # [B, levels]; the last slot is never freed
    held = held_slots(position, levels)
    merged = held & (slot <= trailing_ones[:, None])

    logs = torch.cat([torch.where(merged[:, None], m, -torch.inf), i[..., None]], -1)
    m_new = logs.amax(-1)
    weights = (logs - m_new[..., None]).exp()
    C_new = torch.einsum("bhl,bhlkd->bhkd", weights[..., :-1], C) + torch.einsum(
        "bh,bhk,bhd->bhkd", weights[..., -1], k, v
    )
    n_new = torch.einsum("bhl,bhlk->bhk", weights[..., :-1], n) + weights[..., -1:] * k

    def place(slots: Tensor, new: Tensor) -> Tensor:
        kept = torch.where(_as(held & ~merged, slots, 1), slots, 0.0)
        return torch.where(_as(target, slots, 1), new.unsqueeze(2), kept)

    return place(C, C_new), place(n, n_new), place(m, m_new)


def _as(rows: Tensor, like: Tensor, axis: int | None = None) -> Tensor:
    """View [B] or, with `axis=1`, [B, levels] as [B, 1, levels], so that it broadcasts against `like`."""
    shape = [rows.shape[0]] if axis is None else [rows.shape[0], 1, rows.shape[1]]
    return rows.reshape(*shape, *[1] * (like.dim() - len(shape)))
