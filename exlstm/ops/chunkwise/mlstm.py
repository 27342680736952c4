"""mLSTM on chunks: a masked matrix inside each chunk, a recurrence of the memory from chunk to chunk.

The chunkwise form of arXiv 2503.14376. Within a chunk, with F_t the sum of log f from the chunk's start up to t and
a_s = i_s - F_s, step s weighs F_t + a_s at step t (as a logarithm), and the memory at the chunk's start F_t + m. So
m_t = F_t + M_t, where M_t is the largest of those a_s and m, and every weight is exp(a_s - M_t): F_t cancels.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.chunkwise.chunks import Chunks
from exlstm.ops.mlstm import EPS, InputGate, MLSTMState, normaliser_floor
from exlstm.ops.reference import mlstm as reference

CHUNK_SIZE = 64


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int | None = None,
    input_gate: InputGate = "exp",
) -> tuple[Tensor, MLSTMState]:
    """`exlstm.ops.mlstm` in chunks of `chunk_size` steps."""
    time, dtype = q.shape[1], state.C.dtype
    if time == 1:
        return reference.mlstm(q, k, v, i, f, state, mask=mask, reset=reset, input_gate=input_gate)
    i, lf = i.to(dtype), logsigmoid(f.to(dtype))
    if input_gate == "sigmoid":
        i = logsigmoid(i)
    if mask is not None:
        i, lf = i.masked_fill(~mask[..., None], -torch.inf), lf.masked_fill(~mask[..., None], 0.0)
    chunks = Chunks(time, min(chunk_size or CHUNK_SIZE, time))
    q, k, v = chunks.split(q * q.shape[-1] ** -0.5), chunks.split(k), chunks.split(v)  # [B, H, N, L, D]
    i, lf = chunks.split(i, fill=-torch.inf), chunks.split(lf)  # [B, H, N, L]
    # Which document of the chunk a step belongs to; 0 is the one that the memory at the chunk's start belongs to.
    document = None if reset is None else chunks.split(reset[..., None].expand(-1, -1, q.shape[1])).cumsum(-1)

    F = lf.cumsum(-1)
    stabilised = input_gate == "exp"
    C, n, m, final = _carry(k, v, i - F, F, document, state, stabilised)
    h = _read(q, k, v, i - F, F, document, C, n, m, stabilised)
    h = chunks.join(h)
    if mask is not None:
        h = torch.where(mask[..., None, None], h, 0.0)
    return h.to(v.dtype), final


def _carry(
    k: Tensor, v: Tensor, a: Tensor, F: Tensor, document: Tensor | None, state: MLSTMState, stabilised: bool
) -> tuple[Tensor, Tensor, Tensor, MLSTMState]:
    """The memory at the start of every chunk (C [B, H, N, DK, DV], n [B, H, N, DK], m [B, H, N]) and after the last."""
    total = F[..., -1]
    if document is None:
        kept, floor = torch.zeros_like(total), torch.full_like(total, -torch.inf)
    else:
        kept = torch.zeros_like(total).masked_fill(document[..., -1] > 0, -torch.inf)
        a = a.masked_fill(document != document[..., -1:], -torch.inf)
        floor = _floor(F, document)[..., -1].masked_fill(document[..., -1] == 0, -torch.inf)
    own = torch.maximum(a.amax(-1), floor)

    stabilisers = [state.m]
    for c in range(total.shape[-1]):
        m_next = total[..., c] + torch.maximum(stabilisers[-1] + kept[..., c], own[..., c])
        stabilisers.append(m_next if stabilised else state.m)
    m = torch.stack(stabilisers, -1)
    keep = (total + kept + m[..., :-1] - m[..., 1:]).exp()
    k = k * (total[..., None] + a - m[..., 1:, None]).exp()[..., None].to(k.dtype)
    C_chunk, n_chunk = (k.transpose(-1, -2) @ v).to(keep.dtype), k.sum(-2).to(keep.dtype)
    C, n = [state.C], [state.n]
    for c in range(total.shape[-1]):
        C.append(torch.addcmul(C_chunk[:, :, c], keep[..., c, None, None], C[-1]))
        n.append(torch.addcmul(n_chunk[:, :, c], keep[..., c, None], n[-1]) if stabilised else state.n)
    return torch.stack(C[:-1], 2), torch.stack(n[:-1], 2), m[..., :-1], MLSTMState(C[-1], n[-1], stabilisers[-1])


def _read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    F: Tensor,
    document: Tensor | None,
    C: Tensor,
    n: Tensor,
    m: Tensor,
    stabilised: bool,
) -> Tensor:
    """What every step reads, h [B, H, N, L, DV], from its chunk and from the memory at the chunk's start."""
    size = q.shape[-2]
    visible = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    start = m[..., None].expand_as(F)
    if document is not None:
        visible = visible & (document[..., :, None] == document[..., None, :])
        start = start.masked_fill(document > 0, -torch.inf)
    a = a[..., None, :].masked_fill(~visible, -torch.inf)  # [B, H, N, L, L]
    if stabilised:
        M = torch.maximum(a.amax(-1), start)
        if document is not None:
            M = torch.maximum(M, _floor(F, document).masked_fill(document == 0, -torch.inf))
    else:
        M = -F
    weights = (q @ k.transpose(-1, -2)) * (a - M[..., None]).exp().to(q.dtype)
    q = q * (start - M).exp()[..., None].to(q.dtype)
    h = (weights @ v + q @ C.to(q.dtype)).to(F.dtype)
    if not stabilised:
        return h
    normaliser = weights.sum(-1) + (q @ n[..., None].to(q.dtype))[..., 0]
    return h / (torch.maximum(normaliser.to(F.dtype).abs(), normaliser_floor(F + M)) + EPS)[..., None]


def _floor(F: Tensor, document: Tensor) -> Tensor:
    """For every step the log weight, seen from the chunk's start, of the m = 0 that its document began with."""
    begins = document.diff(dim=-1, prepend=torch.zeros_like(document[..., :1])) > 0
    before = torch.cat([torch.zeros_like(F[..., :1]), F[..., :-1]], -1)
    step = torch.arange(F.shape[-1], device=F.device).expand_as(F)
    return -before.gather(-1, torch.where(begins, step, 0).cummax(-1).values)
