"""The memory of an mLSTM after a whole sequence, by the kernels of `mlstm` that make it, and no others."""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.checks import state_dtype
from exlstm.ops.chunkwise import mlstm_state as chunkwise
from exlstm.ops.mlstm import InputGate, MLSTMState
from exlstm.ops.operator import operator
from exlstm.ops.triton.launch import WIDEST, contiguous
from exlstm.ops.triton.mlstm_call import Call


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
    """`exlstm.ops.mlstm_state`; float64 and wide heads are left to the torch backend, as in `mlstm`."""
    if state_dtype(k, v, i, f) == torch.float64 or max(k.shape[-1], v.shape[-1]) > WIDEST:
        return chunkwise.mlstm_state(k, v, i, f, state, mask=mask, reset=reset, input_gate=input_gate)
    common = k.dtype if k.dtype == v.dtype else torch.float32
    memory = (None, None, None) if state is None else state
    return MLSTMState(*_forward(k.to(common), v.to(common), i, f, mask, reset, *memory, input_gate == "sigmoid"))


@operator("mlstm_triton_state")
def _forward(
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    C0: Tensor | None,
    n0: Tensor | None,
    m0: Tensor | None,
    sigmoid: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """C, n, m after the last step."""
    k, v, i, f, mask, reset, C0, n0, m0 = contiguous(k, v, i, f, mask, reset, C0, n0, m0)
    call = Call(k, v, 0, sigmoid)
    C, n, m = call.memory(v)
    steps, kept, document = call.gate_outputs(v, reset)
    call.gates(i, f, mask, reset, m0, m, steps, kept, None if reset is None else document)
    kw, nw, w = torch.empty_like(k), n.new_empty(call.rows, call.chunks, call.dk), steps[4]
    call.weight(k, kw, w, nw, w)
    call.carry(kw, v, nw, kept, C0, n0, None, None, C, n, reverse=False)
    return C, n, m


@_forward.register_fake
def _(k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return Call(k, v, 0, rest[-1]).memory(v)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, sigmoid = inputs
    ctx.input_gate = "sigmoid" if sigmoid else "exp"
    ctx.save_for_backward(*tensors)


def _derivative(ctx: Any, dC: Tensor, dn: Tensor, dm: Tensor) -> tuple[Tensor | None, ...]:
    """C = keep C0 + sum_t write_t k_t v_t^T: products with dC, and what they say of the weights."""
    k, v, i, f, mask, reset, C0, n0, m0 = ctx.saved_tensors
    if ctx.input_gate == "sigmoid":
        dn = torch.zeros_like(dn)
    with torch.enable_grad():
        gates = [x.detach().float().requires_grad_() for x in (i, f, m0) if x is not None]
        before = None if m0 is None else gates[2]
        weights = chunkwise.weights_after(gates[0], gates[1], before, mask=mask, reset=reset, input_gate=ctx.input_gate)
    of_k = torch.einsum("bthv,bhkv->bthk", v, dC.to(v.dtype)).float() + dn[:, None]
    dv = torch.einsum("bthk,bhkv->bthv", k, dC.to(k.dtype)) * weights.write[..., None]
    dwrite, dk = (k * of_k).sum(-1), of_k * weights.write[..., None]
    dkeep, dC0, dn0 = torch.zeros_like(weights.keep), None, None
    if C0 is not None and n0 is not None:
        dkeep = (dC * C0).sum((-1, -2)) + (dn * n0).sum(-1)
        dC0, dn0 = dC * weights.keep[..., None, None], dn * weights.keep[..., None]
    of_m = [] if ctx.input_gate == "sigmoid" else [(weights.m, dm)]  # which then is 0
    made, theirs = zip((weights.write, dwrite), (weights.keep, dkeep), *of_m, strict=True)
    sent = torch.autograd.grad(made, gates, theirs, allow_unused=True, materialize_grads=True)
    di, df = sent[0].to(i.dtype), sent[1].to(f.dtype)
    dm0 = None if m0 is None else sent[2]
    return dk.detach().to(k.dtype), dv.detach().to(v.dtype), di, df, None, None, dC0, dn0, dm0, None


_forward.register_autograd(_derivative, setup_context=_setup)
