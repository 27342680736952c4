"""mLSTM on chunks: a masked matrix inside each chunk, a recurrence of the memory from chunk to chunk.

The chunkwise form of arXiv 2503.14376. Within a chunk, with F_t the sum of log f from the chunk's start up to t and
a_s = i_s - F_s, step s weighs F_t + a_s at step t (as a logarithm), and the memory at the chunk's start F_t + m. So
m_t = F_t + M_t, where M_t is the largest of those a_s and m, and every weight is exp(a_s - M_t): F_t cancels.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.chunkwise.chunks import Chunks
from exlstm.ops.chunkwise.products import Weights, products
from exlstm.ops.mlstm import InputGate, MLSTMState
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
    q, k, v = chunks.split(q * q.shape[-1] ** -0.5), chunks.split(k), chunks.split(v)  # [N, B, H, L, D]
    i, lf = chunks.split(i, fill=-torch.inf), chunks.split(lf)  # [N, B, H, L]
    # Which document of the chunk a step belongs to; 0 is the one that the memory at the chunk's start belongs to.
    document = None if reset is None else chunks.split(reset[..., None].expand(-1, -1, q.shape[2])).cumsum(-1)

    weights, m, final_m, visible = _weights(i, lf, document, state.m, stabilised=input_gate == "exp")
    h, C, n = products(q, k, v, weights, m, state.C, state.n, visible)
    h = chunks.join(h)
    if mask is not None:
        h = torch.where(mask[..., None, None], h, 0.0)
    return h.to(v.dtype), MLSTMState(C, n, final_m)


def _weights(
    i: Tensor, lf: Tensor, document: Tensor | None, initial_m: Tensor, *, stabilised: bool
) -> tuple[Weights, Tensor | None, Tensor, Tensor]:
    """All weights, the stabilisers of the steps (None if there are none) and the last, and what a step sees."""
    F = lf.cumsum(-1)
    a, total = i - F, F[..., -1]
    visible = torch.ones(F.shape[-1], F.shape[-1], dtype=torch.bool, device=F.device).tril()
    kept, to_end, later = total, a, None  # of the memory at the chunk's start and of the steps, up to its end
    if document is not None:
        visible = visible & (document[..., :, None] == document[..., None, :])
        later = document > 0
        kept = kept.masked_fill(later[..., -1], -torch.inf)
        to_end = a.masked_fill(document != document[..., -1:], -torch.inf)
    if not stabilised:
        u = F if later is None else F.masked_fill(later, -torch.inf)
        return Weights(a, -F, u, total[..., None] + to_end, kept), None, initial_m, visible

    largest = a.cummax(-1).values if document is None else _largest_so_far(a, F, document)
    stabilisers = [initial_m]
    for c in range(len(total)):
        stabilisers.append(torch.maximum(kept[c] + stabilisers[-1], total[c] + largest[c, ..., -1]))
    starts, ends = torch.stack(stabilisers[:-1]), torch.stack(stabilisers[1:])
    start = starts[..., None] if later is None else starts[..., None].masked_fill(later, -torch.inf)
    M = torch.maximum(largest, start)
    weights = Weights(a, M, start - M, (total - ends)[..., None] + to_end, kept + starts - ends)
    return weights, F + M, stabilisers[-1], visible


def _largest_so_far(a: Tensor, F: Tensor, document: Tensor) -> Tensor:
    """The largest a_s of a step's document up to it, the m = 0 that a document begins with (but for 0) included."""
    largest, same = torch.maximum(a, _floor(F, document).masked_fill(document == 0, -torch.inf)), document
    reach = 1
    while reach < a.shape[-1]:  # doubling the reach: log2(L) steps
        before = largest[..., :-reach].masked_fill(same[..., reach:] != same[..., :-reach], -torch.inf)
        largest = torch.cat([largest[..., :reach], torch.maximum(largest[..., reach:], before)], -1)
        reach *= 2
    return largest


def _floor(F: Tensor, document: Tensor) -> Tensor:
    """For every step the log weight, seen from the chunk's start, of the m = 0 that its document began with."""
    begins = document.diff(dim=-1, prepend=torch.zeros_like(document[..., :1])) > 0
    before = torch.cat([torch.zeros_like(F[..., :1]), F[..., :-1]], -1)
    step = torch.arange(F.shape[-1], device=F.device).expand_as(F)
    return -before.gather(-1, torch.where(begins, step, 0).cummax(-1).values)
