"""sLSTM, one step after another."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.slstm import SLSTMState


def slstm(
    x: Tensor,
    r: Tensor,
    state: SLSTMState,
    *,
    forget_cap: float = math.inf,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`exlstm.ops.slstm` as its formulas read."""
    outputs = []
    for t in range(x.shape[1]):
        if reset is not None:
            state = SLSTMState(*(torch.where(reset[:, t, None, None], 0.0, s) for s in state))
        after = step(x[:, t], r, state, forget_cap)
        h = after.h
        if mask is not None:
            present = mask[:, t, None, None]
            after = SLSTMState(*(torch.where(present, a, s) for s, a in zip(state, after, strict=True)))
            h = torch.where(present, h, 0.0)
        outputs.append(h)
        state = after
    return torch.stack(outputs, dim=1).to(x.dtype), state


def step(x: Tensor, r: Tensor, state: SLSTMState, forget_cap: float) -> SLSTMState:
    """One step: x [B, 4, H, D] to the next state, whose h is the output."""
    c, n, m, h = state
    gates = x.to(c.dtype) + torch.einsum("bhd,ghde->bghe", h, r.to(c.dtype))
    i, f, z, o = gates.unbind(1)
    lf = logsigmoid(f.clamp(max=forget_cap))
    m_new = torch.where(n == 0, i, torch.maximum(lf + m, i))
    keep, write = torch.where(n == 0, 0.0, (lf + m - m_new).exp()), (i - m_new).exp()
    c = keep * c + write * z.tanh()
    n = keep * n + write
    return SLSTMState(c, n, m_new, o.sigmoid() * c / n)
