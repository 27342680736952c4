"""sLSTM as a loop of few torch calls a step, with a hand-derived backward.

Memory mixing makes the recurrence sequential, so there is nothing to chunk; what is saved is the graph: one autograd
node for the sequence, and the gradient of r as a single product over all steps.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.backends import uncompiled
from exlstm.ops.operator import IN_REFERENCE, differentiable_once
from exlstm.ops.slstm import SLSTMState


@uncompiled
def slstm(
    x: Tensor,
    r: Tensor,
    state: SLSTMState,
    *,
    forget_cap: float = math.inf,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`exlstm.ops.slstm` on any device."""
    h, *final = _Sequence.apply(x, r, *state, forget_cap, mask, reset)
    return h, SLSTMState(*final)


class _Sequence(torch.autograd.Function):
    """The whole sequence as one node. Inside, time comes first and a state is one tensor [4, H, B, D]: c, n, m, h."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        r: Tensor,
        c: Tensor,
        n: Tensor,
        m: Tensor,
        h: Tensor,
        forget_cap: float,
        mask: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, ...]:
        weight = r.to(c.dtype)
        # [T, 4, H, B, D], a copy: the loop adds the recurrent part.
        gates = x.to(c.dtype).permute(1, 2, 3, 0, 4).clone(memory_format=torch.contiguous_format)
        states = c.new_empty(len(gates) + 1, *gates.shape[1:])
        states[0] = torch.stack([c, n, m, h]).transpose(1, 2)
        for t in range(len(gates)):
            before = _before(states, t, reset)
            gates[t] += before[3] @ weight
            states[t + 1] = _cell(gates[t], before, forget_cap)
            if mask is not None:
                states[t + 1] = torch.where(_rows(mask[:, t]), states[t + 1], before)
        out = states[1:, 3].permute(2, 0, 1, 3)
        out = out.contiguous() if mask is None else torch.where(mask[..., None, None], out, 0.0)
        out = out.to(x.dtype)
        ctx.save_for_backward(gates, states, r, mask, reset, out)
        ctx.forget_cap = forget_cap
        return out, *states[-1].transpose(1, 2).clone().unbind(0)

    @staticmethod
    @differentiable_once(IN_REFERENCE)
    def backward(ctx: Any, grad_out: Tensor, *grad_final: Tensor) -> tuple[Tensor | None, ...]:
        gates, states, r, mask, reset, out = ctx.saved_tensors
        weight_t = r.to(states.dtype).transpose(-1, -2)
        grad_out = grad_out.to(states.dtype).permute(1, 2, 0, 3)  # [T, H, B, D]
        grad_gates = torch.empty_like(gates)
        grad = torch.stack(grad_final).transpose(1, 2).contiguous()  # [4, H, B, D]
        for t in reversed(range(len(gates))):
            before, after = _before(states, t, reset), states[t + 1]
            through = grad
            grad = torch.cat([grad[:3], grad[3:] + grad_out[t]])
            d_gates, grad = _cell_backward(gates[t], before, after, grad, ctx.forget_cap)
            if mask is not None:
                present = _rows(mask[:, t])
                d_gates, grad = torch.where(present, d_gates, 0.0), torch.where(present, grad, through)
            grad_gates[t] = d_gates
            grad[3] += (d_gates @ weight_t).sum(0)
            if reset is not None:
                grad = torch.where(_rows(reset[:, t]), 0.0, grad)
        h_before = states[:-1, 3]
        if reset is not None:
            h_before = torch.where(reset.t()[:, None, :, None], 0.0, h_before)
        grad_r = torch.einsum("thbd,tghbe->ghde", h_before, grad_gates).to(r.dtype)
        grad_x = grad_gates.permute(3, 0, 1, 2, 4).to(out.dtype)
        return grad_x, grad_r, *grad.transpose(1, 2).unbind(0), None, None, None


def _cell(gates: Tensor, before: Tensor, forget_cap: float) -> Tensor:
    i, f, z, o = gates
    c, n, m, _ = before
    empty, lf = n == 0, logsigmoid(f.clamp(max=forget_cap))
    m_new = torch.where(empty, i, torch.maximum(lf + m, i))
    keep, write = torch.where(empty, 0.0, (lf + m - m_new).exp()), (i - m_new).exp()
    c, n = keep * c + write * z.tanh(), keep * n + write
    return torch.stack([c, n, m_new, o.sigmoid() * c / n])


def _cell_backward(
    gates: Tensor, before: Tensor, after: Tensor, grad: Tensor, forget_cap: float
) -> tuple[Tensor, Tensor]:
    """The gradients of the gates and, but for the part through the gates, of the state before (whose h part is 0)."""
    i, f, z, o = gates
    (c, n, m, _), (_, n_new, m_new, h_new) = before, after
    dc, dn, dm, dh = grad
    empty, lf, tanh_z, sigmoid_o = n == 0, logsigmoid(f.clamp(max=forget_cap)), z.tanh(), o.sigmoid()
    keep, write = torch.where(empty, 0.0, (lf + m - m_new).exp()), (i - m_new).exp()

    do = dh * h_new * (1 - sigmoid_o)
    dc = dc + dh * sigmoid_o / n_new
    dn = dn - dh * h_new / n_new
    dz = dc * write * (1 - tanh_z * tanh_z)
    d_keep, d_write = (dc * c + dn * n) * keep, (dc * tanh_z + dn) * write
    dm = dm - d_keep - d_write
    # m_new is the larger of lf + m and i (half each where equal, as torch.maximum has it), and i on an empty state.
    to_keep = torch.where(empty, 0.0, ((lf + m - i).sign() + 1) / 2)
    d_keep, d_write = d_keep + dm * to_keep, d_write + dm * (1 - to_keep)
    df = torch.where(f <= forget_cap, d_keep * (-f).sigmoid(), 0.0)
    d_gates = torch.stack([d_write, df, dz, do])
    return d_gates, torch.stack([dc * keep, dn * keep, d_keep, torch.zeros_like(dc)])


def _before(states: Tensor, t: int, reset: Tensor | None) -> Tensor:
    """The state that step t starts from."""
    return states[t] if reset is None else torch.where(_rows(reset[:, t]), 0.0, states[t])


def _rows(x: Tensor) -> Tensor:
    """View [B] so that it broadcasts against [..., H, B, D]."""
    return x[:, None]
