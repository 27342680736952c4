"""What depends on the gates of a chunkwise mLSTM: O(T) arithmetic on logarithms, left to autograd.

Within a chunk, with F_t the sum of log f from the chunk's start up to t and a_s = i_s - F_s, step s weighs F_t + a_s
at step t (as a logarithm), and the memory at the chunk's start F_t + m. So m_t = F_t + M_t, where M_t is the largest
of those a_s and m, and every weight is exp(a_s - M_t): F_t cancels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.chunkwise.chunks import Chunks
from exlstm.ops.mlstm import InputGate


class Weights(NamedTuple):
    """Logarithms of the weights; -inf is a weight of 0."""

    a: Tensor  # [N, B, H, L] of a step within its chunk, seen from the chunk's start
    M: Tensor  # [N, B, H, L] what is subtracted at step t
    u: Tensor  # [N, B, H, L] of the memory at the chunk's start, at step t
    w: Tensor  # [N, B, H, L] of a step in the memory at the chunk's end
    kept: Tensor  # [N, B, H] of the memory at the chunk's start in that at its end


class Gates(NamedTuple):
    """All that the products of a call need to know of its gates."""

    weights: Weights
    m: Tensor | None  # [N, B, H, L] stabilisers of the steps; None where reads are not normalised
    final_m: Tensor  # [B, H] stabiliser of the memory after the last step
    document: Tensor | None  # [N, B, H, L] int64, documents of a chunk from 0, that of its first memory; None: all 0


def gates(
    i: Tensor,
    f: Tensor,
    initial_m: Tensor,
    chunks: Chunks,
    *,
    mask: Tensor | None,
    reset: Tensor | None,
    input_gate: InputGate,
) -> Gates:
    """From pre-activations i, f [B, T, H] and the stabiliser [B, H] of the initial memory, in the latter's dtype."""
    i, lf = i.to(initial_m.dtype), logsigmoid(f.to(initial_m.dtype))
    if input_gate == "sigmoid":
        i = logsigmoid(i)
    if mask is not None:
        i, lf = i.masked_fill(~mask[..., None], -torch.inf), lf.masked_fill(~mask[..., None], 0.0)
    i, lf = chunks.split(i, fill=-torch.inf), chunks.split(lf)
    document = None if reset is None else chunks.split(reset[..., None].expand(-1, -1, i.shape[2])).cumsum(-1)

    F = lf.cumsum(-1)
    a, total = i - F, F[..., -1]
    kept, to_end, later = total, a, None  # of the memory at the chunk's start and of the steps, up to its end
    if document is not None:
        later = document > 0
        kept = kept.masked_fill(later[..., -1], -torch.inf)
        to_end = a.masked_fill(document != document[..., -1:], -torch.inf)
    if input_gate == "sigmoid":
        u = F if later is None else F.masked_fill(later, -torch.inf)
        return Gates(Weights(a, -F, u, total[..., None] + to_end, kept), None, initial_m, document)

    largest = a.cummax(-1).values if document is None else _largest_so_far(a, F, document)
    ends = _recurrence(kept, total + largest[..., -1], initial_m)
    starts = torch.cat([initial_m[None], ends[:-1]])
    start = starts[..., None] if later is None else starts[..., None].masked_fill(later, -torch.inf)
    M = torch.maximum(largest, start)
    weights = Weights(a, M, start - M, (total - ends)[..., None] + to_end, kept + starts - ends)
    return Gates(weights, F + M, ends[-1], document)


def _recurrence(kept: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """m_c = max(kept_c + m_{c - 1}, x_c) for all chunks c [N, ...], in log2(N) steps of all of them at once."""
    m = torch.cat([torch.maximum(kept[:1] + initial, x[:1]), x[1:]])
    reach = 1  # m and kept span the last `reach` chunks
    while reach < len(m):
        m = torch.cat([m[:reach], torch.maximum(kept[reach:] + m[:-reach], m[reach:])])
        kept = torch.cat([kept[:reach], kept[reach:] + kept[:-reach]])
        reach *= 2
    return m


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
