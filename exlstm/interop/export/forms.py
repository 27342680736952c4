"""The operators in forms that other formats can express: products and sums over a whole piece, and scans.

A single step is the reference's. A piece of any length T is one T x T matrix for an mLSTM (`exlstm.ops.chunkwise` with
one chunk as long as the piece), so work and memory grow with its square: long sequences are cut, and the state carried.
An sLSTM is a scan over the steps. Nothing here depends on values, on T or on the batch, so all of them may vary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.interop.export.hierarchical import NOTHING, hmlstm
from exlstm.ops import MLSTMState, SLSTMState
from exlstm.ops.mlstm import EPS, InputGate, normaliser_floor
from exlstm.ops.reference import gated_norm, qkv
from exlstm.ops.reference import mlstm as reference_mlstm
from exlstm.ops.reference import slstm as reference_slstm


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
    """`exlstm.ops.mlstm` with an exponential input gate, all steps at once; `chunk_size` has no meaning here."""
    require_no_reset(reset)
    time, state = q.shape[1], state or MLSTMState.empty_for(q, k, v, i, f)
    if isinstance(time, int) and time == 1 and mask is None:
        return reference_mlstm.mlstm(q, k, v, i, f, state, input_gate=input_gate)
    if input_gate != "exp":
        raise ValueError(f"only mLSTMs with an exponential input gate can be exported, got input_gate={input_gate!r}")
    C, n, m = state
    q, k, v, i, f = (x.to(C.dtype).transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v, i, f))
    lf = logsigmoid(f)
    if mask is not None:
        i, lf = i.masked_fill(~mask[:, None], NOTHING), lf.masked_fill(~mask[:, None], 0.0)
    F = lf.cumsum(-1)
    a = i - F  # [B, H, T], seen from the piece's start as in `chunkwise.gates`
    past = torch.ones(time, time, dtype=torch.bool, device=q.device).tril()
    log = a[..., None, :].masked_fill(~past, NOTHING)  # [B, H, T, T]
    M = torch.maximum(log.amax(-1), m[..., None])
    weights = (q @ k.transpose(-1, -2)) * (log - M[..., None]).exp()
    u = (m[..., None] - M).exp()
    numerator = weights @ v + u[..., None] * (q @ C)
    denominator = weights.sum(-1) + u * (q @ n[..., None])[..., 0]
    h = numerator / (torch.maximum(denominator.abs(), normaliser_floor(F + M)) + EPS)[..., None]

    M, total = M[..., -1], F[..., -1]
    kept, written = (m - M).exp(), k * (a - M[..., None]).exp()[..., None]
    C = kept[..., None, None] * C + written.transpose(-1, -2) @ v
    n = kept[..., None] * n + written.sum(-2)
    return shown(h.transpose(1, 2), mask), MLSTMState(C, n, total + M)


def slstm(
    x: Tensor,
    r: Tensor,
    state: SLSTMState,
    *,
    forget_cap: float = torch.inf,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`exlstm.ops.slstm` as a scan over the steps."""
    require_no_reset(reset)
    if isinstance(x.shape[1], int) and x.shape[1] == 1 and mask is None:
        return reference_slstm.slstm(x, r, state, forget_cap=forget_cap)
    from torch._higher_order_ops.scan import scan

    def step(before: list[Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        after = reference_slstm.step(inputs[0], r, SLSTMState(*before), forget_cap)
        if len(inputs) == 1:
            return [*after], after.h.clone()  # no two results of a scan's step may be the same tensor
        present = inputs[1][:, None, None]
        kept = [torch.where(present, new, old) for new, old in zip(after, before, strict=True)]
        return kept, torch.where(present, after.h, 0.0)

    inputs = [x] if mask is None else [x, mask]
    first = [part.clone() for part in state]  # nor may parts of its first state be views of one
    after, h = scan(step, first, [part.transpose(0, 1).contiguous() for part in inputs])
    return h.transpose(0, 1), SLSTMState(*after)


def require_no_reset(reset: Tensor | None) -> None:
    """A graph has no resets: a document begins where its consumer gives an empty state."""
    assert reset is None, "graphs are traced without resets"


def shown(h: Tensor, mask: Tensor | None) -> Tensor:
    """Outputs [B, T, H, D] with 0 at masked steps."""
    return h if mask is None else h.masked_fill(~mask[..., None, None], 0.0)


FORMS: dict[str, Callable[..., Any]] = {
    "mlstm": mlstm,
    "hmlstm": hmlstm,
    "slstm": slstm,
    "qkv_gates": qkv.qkv_gates,
    "gated_norm": gated_norm.gated_norm,
}
"""Every operator's form for tracing, as `exlstm.ops.backends.stand_ins` takes them."""
