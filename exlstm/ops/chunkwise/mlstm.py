"""mLSTM on chunks: a masked matrix inside each chunk, a recurrence of the memory from chunk to chunk.

The chunkwise form of arXiv 2503.14376, in plain PyTorch.
"""

import torch
from torch import Tensor

from exlstm.ops.chunkwise.chunks import Chunks
from exlstm.ops.chunkwise.gates import gates
from exlstm.ops.chunkwise.products import products
from exlstm.ops.mlstm import InputGate, MLSTMState
from exlstm.ops.reference import mlstm as reference

CHUNK_SIZE = 64


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
    """`exlstm.ops.mlstm` in chunks of `chunk_size` steps."""
    time, state = q.shape[1], state or MLSTMState.empty_for(q, k, v, i, f)
    if time == 1:
        return reference.mlstm(q, k, v, i, f, state, mask=mask, reset=reset, input_gate=input_gate)
    chunks = Chunks(time, min(chunk_size or CHUNK_SIZE, time))
    at = gates(i, f, state.m, chunks, mask=mask, reset=reset, input_gate=input_gate)
    q, k, v_ = chunks.split(q * q.shape[-1] ** -0.5), chunks.split(k), chunks.split(v)
    h, C, n = products(q, k, v_, at, state.C, state.n)
    h = chunks.join(h)
    if mask is not None:
        h = torch.where(mask[..., None, None], h, 0.0)
    return h.to(v.dtype), MLSTMState(C, n, at.final_m)
