"""The matrix products of the chunkwise mLSTM, with a backward that recomputes instead of storing.

What depends on gates alone is O(T) and left to autograd (`chunkwise.gates`). This node takes the logarithms of all
weights and does the rest. With the memory C_c, n_c at the start of chunk c, t and s steps of one chunk:

    A_ts    = exp(a_s - M_t) q_t . k_s                               for visible s
    h_t     = (sum_s A_ts v_s + exp(u_t) C_c^T q_t) / (max(|d_t|, exp(-m_t)) + eps)
    d_t     = sum_s A_ts + exp(u_t) n_c . q_t
    C_{c+1} = exp(kept_c) C_c + sum_s exp(w_s) k_s v_s^T             (n likewise, of k alone)

Only inputs, h, d and the memories at the start of every group of chunks are kept; a group's other memories and its
L x L matrices are computed again in the backward, so that the memory of a call is that of its inputs and outputs.
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.chunkwise.gates import Gates, Weights
from exlstm.ops.mlstm import EPS, largest_floor, normaliser_floor
from exlstm.ops.operator import IN_REFERENCE, differentiable_once

GROUP = 1024  # steps whose memories and L x L matrices exist at one time


def products(q: Tensor, k: Tensor, v: Tensor, gates: Gates, C: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h [N, B, H, L, DV], and the memory C [B, H, DK, DV], n [B, H, DK] after the last chunk.

    Args:
        q, k, v: [N, B, H, L, D], q scaled.
        gates: the weights, in the dtype of the state.
        C, n: the memory before the first chunk.
    """
    size = q.shape[-2]
    visible = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    if gates.document is not None:
        visible = visible & (gates.document[..., :, None] == gates.document[..., None, :])
    return _Products.apply(q, k, v, *gates.weights, gates.m, C, n, visible)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        weights, (m, C, n, visible) = Weights(*rest[:5]), rest[5:]
        h, d = v.new_empty(v.shape, dtype=C.dtype), torch.empty_like(weights.a)
        starts = []
        for group in _groups(q):
            starts.append((C, n))
            part = Weights(*(x[group] for x in weights))
            Cs, ns, C, n = _carry(k[group], v[group], part, C, n, normalised=m is not None)
            A, _ = _within(q[group], k[group], part, visible, group)
            scaled = q[group] * part.u.exp()[..., None].to(q.dtype)
            read = (A @ v[group]).to(C.dtype) + (scaled @ Cs.to(q.dtype)).to(C.dtype)
            if m is not None:
                d[group] = A.sum(-1).to(C.dtype) + (scaled @ ns[..., None].to(q.dtype))[..., 0].to(C.dtype)
                read = read / _denominator(d[group], m[group])[..., None]
            h[group] = read
        ctx.save_for_backward(q, k, v, *weights, m, visible, h, d, *(x for pair in starts for x in pair))
        return h, C.clone(), n.clone()

    @staticmethod
    @differentiable_once(IN_REFERENCE)
    def backward(ctx: Any, dh: Tensor, dC: Tensor, dn: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *rest = ctx.saved_tensors
        weights, (m, visible, h, d), starts = Weights(*rest[:5]), rest[5:9], rest[9:]
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        dweights = Weights(*(torch.empty_like(x) for x in weights))
        dm = None if m is None else torch.empty_like(m)
        for number, group in reversed(list(enumerate(_groups(q)))):
            part = Weights(*(x[group] for x in weights))
            qg, kg, vg = (x[group] for x in (q, k, v))
            dpart = Weights(*(x[group] for x in dweights))
            Cs, ns, _, _ = _carry(kg, vg, part, starts[2 * number], starts[2 * number + 1], normalised=m is not None)

            # h = read / denominator(d, m)
            dread, dd = dh[group], None
            if m is not None and dm is not None:
                mg, dg = m[group], d[group]
                dread = dread / _denominator(dg, mg)[..., None]
                through = -(dread * h[group]).sum(-1)
                floor = normaliser_floor(mg)
                to_d = ((dg.abs() - floor).sign() + 1) / 2  # half each where equal, as torch.maximum has it
                dd = through * to_d * dg.sign()
                dm[group] = -through * (1 - to_d) * floor.masked_fill(-mg > largest_floor(mg.dtype), 0.0)
            dr = dread.to(q.dtype)

            # read = A v + exp(u) q C and d = A 1 + exp(u) q n
            A, E = _within(qg, kg, part, visible, group)
            dA = dr @ vg.transpose(-1, -2)
            from_C = dr @ Cs.to(q.dtype).transpose(-1, -2)
            if dd is not None:
                dA = dA + dd[..., None].to(q.dtype)
                from_C = from_C + dd[..., None].to(q.dtype) * ns[..., None, :].to(q.dtype)
            u = part.u.exp()[..., None].to(q.dtype)
            dlog = dA * A
            dpart.a.copy_(dlog.sum(-2))
            dpart.M.copy_(-dlog.sum(-1))
            dpart.u.copy_((from_C * qg * u).sum(-1))
            dS = dA.mul_(E)
            dq[group] = dS @ kg + u * from_C
            dk_within, dv_within = dS.transpose(-1, -2) @ qg, A.transpose(-1, -2) @ dr

            # C_{c+1} = exp(kept_c) C_c + (exp(w) k)^T v
            dCs_read = ((qg * u).transpose(-1, -2) @ dr).to(dC.dtype)
            dns_read = (
                None if dd is None else ((qg * u).transpose(-1, -2) @ dd[..., None].to(q.dtype))[..., 0].to(dn.dtype)
            )
            dCs, dns, dC, dn = _carry_back(dCs_read, dns_read, part.kept.exp(), dC, dn)
            w = part.w.exp()[..., None].to(q.dtype)
            dkw = vg @ dCs.to(q.dtype).transpose(-1, -2)
            dkept = (dCs * Cs).sum((-1, -2))
            if dd is not None:
                dkw = dkw + dns[..., None, :].to(q.dtype)
                dkept = dkept + (dns * ns).sum(-1)
            dk[group] = dk_within + dkw * w
            dv[group] = dv_within + (kg * w) @ dCs.to(q.dtype)
            dpart.w.copy_((dkw * kg * w).sum(-1))
            dpart.kept.copy_(dkept * part.kept.exp())
        return dq, dk, dv, *dweights, dm, dC, dn, None


def _groups(q: Tensor) -> list[slice]:
    chunks, size = len(q), max(1, GROUP // q.shape[-2])
    return [slice(begin, min(begin + size, chunks)) for begin in range(0, chunks, size)]


def _within(q: Tensor, k: Tensor, weights: Weights, visible: Tensor, group: slice) -> tuple[Tensor, Tensor]:
    """A and its weights exp(a_s - M_t), each [n, B, H, L, L]."""
    if visible.dim() > 2:
        visible = visible[group]
    log = (weights.a[..., None, :] - weights.M[..., None]).masked_fill_(~visible, -torch.inf)
    E = log.exp_().to(q.dtype)
    return (q @ k.transpose(-1, -2)).mul_(E), E


def _denominator(d: Tensor, m: Tensor) -> Tensor:
    return torch.maximum(d.abs(), normaliser_floor(m)) + EPS


def _carry(
    k: Tensor, v: Tensor, weights: Weights, C: Tensor, n: Tensor, *, normalised: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The memories at the start of all chunks, C [n, B, H, DK, DV] and n [n, B, H, DK], and those after the last."""
    k = k * weights.w.exp()[..., None].to(k.dtype)
    added, n_added, kept = (k.transpose(-1, -2) @ v).to(C.dtype), k.sum(-2, dtype=C.dtype), weights.kept.exp()
    Cs, ns = torch.empty_like(added), torch.empty_like(n_added)
    for c in range(len(k)):
        Cs[c], ns[c] = C, n
        C = torch.addcmul(added[c], kept[c, ..., None, None], C)
        n = torch.addcmul(n_added[c], kept[c, ..., None], n) if normalised else n
    return Cs, ns, C, n


def _carry_back(
    dC_read: Tensor, dn_read: Tensor | None, kept: Tensor, dC: Tensor, dn: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the memories at the end of all chunks, and of that at the start of the first."""
    dCs, dns = torch.empty_like(dC_read), dn.new_zeros(*dC_read.shape[:-1])
    for c in reversed(range(len(kept))):
        dCs[c] = dC
        dC = torch.addcmul(dC_read[c], kept[c, ..., None, None], dC)
        if dn_read is not None:
            dns[c] = dn
            dn = torch.addcmul(dn_read[c], kept[c, ..., None], dn)
    return dCs, dns, dC, dn
