"""mLSTM, one step after another."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.mlstm import EPS, InputGate, MLSTMState, normaliser_floor


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState | None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int | None = None,
    input_gate: InputGate = "exp",
) -> tuple[Tensor, MLSTMState]:
    """`exlstm.ops.mlstm` as its formulas read; `chunk_size` has no meaning here."""
    outputs, state = [], state or MLSTMState.empty_for(q, k, v, i, f)
    for t in range(q.shape[1]):
        if reset is not None:
            emptied = reset[:, t, None]
            state = MLSTMState(*(torch.where(_as(emptied, s), 0.0, s) for s in state))
        h, after = step(q[:, t], k[:, t], v[:, t], i[:, t], f[:, t], state, input_gate=input_gate)
        if mask is not None:
            present = mask[:, t, None]
            after = MLSTMState(*(torch.where(_as(present, s), a, s) for s, a in zip(state, after, strict=True)))
            h = torch.where(present[..., None], h, 0.0)
        outputs.append(h)
        state = after
    return torch.stack(outputs, dim=1).to(v.dtype), state


def mlstm_state(k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState | None, **options: Any) -> MLSTMState:
    """`exlstm.ops.mlstm_state`: the memory after reads by any queries."""
    return mlstm(torch.zeros_like(k), k, v, i, f, state, **options)[1]


def step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState, *, input_gate: InputGate = "exp"
) -> tuple[Tensor, MLSTMState]:
    """One step: q, k [B, H, DK], v [B, H, DV], i, f [B, H] to h [B, H, DV] in the state's dtype."""
    C, n, m = state
    q, k, v, i, f = (x.to(C.dtype) for x in (q, k, v, i, f))
    q = q / k.shape[-1] ** 0.5
    lf = logsigmoid(f)
    if input_gate == "sigmoid":
        C = lf.exp()[..., None, None] * C + i.sigmoid()[..., None, None] * k[..., :, None] * v[..., None, :]
        return (q[..., None, :] @ C)[..., 0, :], MLSTMState(C, n, m)
    m_new = torch.maximum(lf + m, i)
    keep, write = (lf + m - m_new).exp(), (i - m_new).exp()
    C = keep[..., None, None] * C + write[..., None, None] * k[..., :, None] * v[..., None, :]
    n = keep[..., None] * n + write[..., None] * k
    numerator = (q[..., None, :] @ C)[..., 0, :]
    denominator = torch.maximum((q * n).sum(-1).abs(), normaliser_floor(m_new)) + EPS
    return numerator / denominator[..., None], MLSTMState(C, n, m_new)


def _as(rows: Tensor, like: Tensor) -> Tensor:
    """View [B, 1] so that it broadcasts against `like` [B, H, ...]."""
    return rows.reshape(rows.shape[0], *[1] * (like.dim() - 1))
