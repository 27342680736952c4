"""The memory of an mLSTM after a whole sequence: every step's weight in it follows from the gates alone."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from exlstm.ops.checks import state_dtype
from exlstm.ops.mlstm import InputGate, MLSTMState


class FinalWeights(NamedTuple):
    """With what weights the memory C after the last step is made: C = keep C0 + sum_t write_t k_t v_t^T."""

    write: Tensor  # [B, T, H]
    keep: Tensor  # [B, H], of the memory before the first step; 0 if a reset empties it
    m: Tensor  # [B, H], the stabiliser after the last step


def mlstm_state(
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState | None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    input_gate: InputGate = "exp",
) -> MLSTMState:
    """`exlstm.ops.mlstm_state` by one product over all steps."""
    dtype = state_dtype(k, v, i, f)
    m0 = None if state is None else state.m
    write, keep, m = weights_after(i.to(dtype), f.to(dtype), m0, mask=mask, reset=reset, input_gate=input_gate)
    kw = k.to(dtype) * write[..., None]
    C, n = torch.einsum("bthk,bthv->bhkv", kw, v.to(dtype)), kw.sum(1)
    if input_gate == "sigmoid":
        n = torch.zeros_like(n)
    if state is not None:
        C, n = C + keep[..., None, None] * state.C, n + keep[..., None] * state.n
    return MLSTMState(C, n, m)


def weights_after(
    i: Tensor,
    f: Tensor,
    m0: Tensor | None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    input_gate: InputGate = "exp",
) -> FinalWeights:
    """From gate pre-activations [B, T, H] and the stabiliser before them [B, H], or None; differentiable."""
    log_f, log_i = logsigmoid(f), logsigmoid(i) if input_gate == "sigmoid" else i
    if mask is not None:
        log_f, log_i = log_f.masked_fill(~mask[..., None], 0), log_i.masked_fill(~mask[..., None], -torch.inf)
    # The sum of log f after each step, summed from the end, where it counts.
    from_here = log_f.flip(1).cumsum(1).flip(1)
    weight = log_i + pad(from_here[:, 1:], (0, 0, 0, 1))
    kept, before = from_here[:, 0], torch.zeros_like(from_here[:, 0]) if m0 is None else m0
    emptied = kept.new_zeros(kept.shape, dtype=torch.bool)
    if reset is not None:
        resets_from_here = reset.flip(1).cumsum(1).flip(1)[..., None]
        gone = resets_from_here - reset[..., None].long() > 0  # steps before the last reset
        weight, kept = weight.masked_fill(gone, -torch.inf), log_f.masked_fill(gone, 0).sum(1)
        emptied = (resets_from_here[:, 0] > 0).expand_as(kept)
        before = before.masked_fill(emptied, 0)
    if input_gate == "sigmoid":
        m = torch.zeros_like(kept)
    else:
        m = torch.maximum(kept + before, weight.amax(1))
    return FinalWeights((weight - m[:, None]).exp(), (kept + before - m).exp().masked_fill(emptied, 0), m)
