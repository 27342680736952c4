"""mLSTM on chunks as Triton kernels: products on tensor cores, memories of the chunks kept for the backward.

The chunkwise form of arXiv 2503.14376 (TFLA): chunks of up to 256 steps, themselves cut into tiles, so that the
memories of all chunks together are about as large as the outputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from exlstm.ops.checks import state_dtype
from exlstm.ops.chunkwise import mlstm as chunkwise
from exlstm.ops.mlstm import InputGate, MLSTMState
from exlstm.ops.operator import operator
from exlstm.ops.reference import mlstm as reference
from exlstm.ops.triton.launch import WIDEST, as_bytes, contiguous, launch, padded
from exlstm.ops.triton.mlstm_call import Call
from exlstm.ops.triton.mlstm_step import step


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
    """`exlstm.ops.mlstm` in chunks of about `chunk_size` steps: the next power of two, 16 to 256.

    Float64 is left to the torch backend, for a GPU has no tensor cores for it worth the name, and so are heads of more
    than 512 columns, whose gradients fit no program's registers.
    """
    options: dict[str, Any] = {"mask": mask, "reset": reset, "input_gate": input_gate}
    if state_dtype(q, k, v, i, f) == torch.float64 or max(q.shape[-1], v.shape[-1]) > WIDEST:
        return chunkwise.mlstm(q, k, v, i, f, state, chunk_size=chunk_size, **options)
    if q.shape[1] == 1 and not _differentiated(q, k, v, i, f, *(state or ())):
        h, *after = step(q, k, v, i, f, mask, reset, *(state or (None, None, None)), input_gate == "sigmoid")
        return h, MLSTMState(*after)
    if q.shape[1] == 1:
        return reference.mlstm(q, k, v, i, f, state or MLSTMState.empty_for(q, k, v, i, f), **options)
    common = q.dtype if q.dtype == k.dtype == v.dtype else torch.float32
    C0, n0, m0 = (None, None, None) if state is None else state
    qkv = (x.to(common) for x in (q, k, v))
    h, C, n, m, *_ = _forward(*qkv, i, f, mask, reset, C0, n0, m0, chunk_size or 0, input_gate == "sigmoid")
    return h.to(v.dtype), MLSTMState(C, n, m)


@operator("mlstm_triton")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    C0: Tensor | None,
    n0: Tensor | None,
    m0: Tensor | None,
    chunk_size: int,
    sigmoid: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h, the memory C, n, m after the last step, and what the backward needs.

    That is a, F, M, u, w, d of all steps, one of `kept` and, with resets, the document of each, and C, n at all
    chunks' starts.
    """
    from exlstm.ops.triton import mlstm_kernels as kernels

    q, k, v, i, f, mask, reset, C0, n0, m0 = contiguous(q, k, v, i, f, mask, reset, C0, n0, m0)
    call = Call(q, v, chunk_size, sigmoid)
    h, C1, n1, m1, steps, kept, document, C, n = call.outputs(v, reset)
    a, F, M, u, w, d = steps
    documents = None if reset is None else document
    call.gates(i, f, mask, reset, m0, m1, steps, kept, documents)
    kw, nw = torch.empty_like(k), torch.empty_like(n)
    call.weight(k, kw, w, nw, w)
    call.carry(kw, v, nw, kept, C0, n0, C, n, C1, n1, reverse=False)
    A, tile = call.pairs(q), call.tiles.scores
    launch(
        kernels.scores_kernel, (call.blocks(tile.rows), *call.over_chunks), **tile.compiled,
        q_ptr=q, k_ptr=k, a_ptr=a, M_ptr=M, u_ptr=u, document_ptr=documents, n_ptr=n, A_ptr=A, d_ptr=d,
        scale=call.scale, B=tile.rows, BD=tile.inner, **call.sizes, **call.products,
    )  # fmt: skip
    tile = call.tiles.outputs
    launch(
        kernels.outputs_kernel, (call.blocks(tile.rows) * tile.across(call.dv), *call.over_chunks), **tile.compiled,
        q_ptr=q, v_ptr=v, A_ptr=A, F_ptr=F, M_ptr=M, u_ptr=u, d_ptr=d, C_ptr=C, h_ptr=h,
        scale=call.scale, BT=tile.rows, BV=tile.columns, BD=tile.inner, **call.sizes, **call.products,
    )  # fmt: skip
    return h, C1, n1, m1, steps, kept, document, C, n


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, chunk_size, sigmoid = rest
    return Call(q, v, chunk_size, sigmoid).outputs(v, rest[3])


@operator("mlstm_triton_backward")
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    C0: Tensor | None,
    n0: Tensor | None,
    h: Tensor,
    steps: Tensor,
    kept: Tensor,
    document: Tensor,
    C: Tensor,
    n: Tensor,
    dh: Tensor,
    dC1: Tensor | None,
    dn1: Tensor | None,
    chunk_size: int,
    sigmoid: bool,
) -> list[Tensor]:
    """The gradients of q, k, v, i, f and, if there is one, of the initial C, n and m."""
    from exlstm.ops.triton import mlstm_backward_kernels as kernels

    gradients = _gradients(q, k, v, i, f, C0, n0, dC1, dn1)
    dq, dk, dv, di, df, *initial = gradients
    dC0, dn0, dm0 = initial or (None, None, None)
    q, k, v, i, f, mask, dh, dC1, dn1 = contiguous(q, k, v, i, f, mask, dh, dC1, dn1)
    call = Call(q, v, chunk_size, sigmoid)
    a, F, M, u, w, d = steps
    r, dd, ur, ud, qdq, kdk, sums_t = steps.new_empty(7, *steps.shape[1:])
    common = {**call.sizes, **call.products}
    rows, columns = 16, padded(call.dv)
    launch(
        kernels.reads_kernel, (-(-call.chunks * call.tiles.chunk // rows), call.rows), warps=4, stages=1,
        h_ptr=h, dh_ptr=dh, d_ptr=d, F_ptr=F, M_ptr=M, u_ptr=u, r_ptr=r, dd_ptr=dd, ur_ptr=ur, ud_ptr=ud,
        scale=call.scale, BT=rows, BV=columns, DV=call.dv, NORMALISED=call.normalised, **call.sizes,
    )  # fmt: skip

    qw, dn_of_chunk = torch.empty_like(q), torch.empty_like(n)
    call.weight(q, qw, ur, dn_of_chunk, ud)
    dC, dn = torch.empty_like(C), torch.empty_like(n)
    call.carry(qw, dh, dn_of_chunk, kept, dC1, dn1, dC, dn, dC0, dn0, reverse=True)
    X = torch.empty_like(kept)
    launch(
        kernels.beyond_kernel, call.over_chunks, warps=8, stages=2,
        C_ptr=C, n_ptr=n, dC_ptr=dC, dn_ptr=dn, kept_ptr=kept, X_ptr=X, N=call.chunks, DK=call.dk, DV=call.dv,
        BLOCK=4096, BK=padded(call.dk), NORMALISED=call.normalised,
    )  # fmt: skip

    A, dS, tile = call.pairs(q), call.pairs(q), call.tiles.scores_backward
    sums_s = steps.new_empty(call.rows, call.chunks, call.blocks(tile.rows), call.tiles.chunk)
    sums: dict[str, Any] = {"sums_t_ptr": sums_t, "sums_s_ptr": sums_s, "B": tile.rows}
    launch(
        kernels.scores_backward_kernel, (call.blocks(tile.rows), *call.over_chunks), **tile.compiled,
        q_ptr=q, k_ptr=k, v_ptr=v, dh_ptr=dh, a_ptr=a, M_ptr=M, r_ptr=r, dd_ptr=dd,
        document_ptr=None if reset is None else document, A_ptr=A, dS_ptr=dS,
        scale=call.scale, BD=tile.inner, **sums, **common,
    )  # fmt: skip
    tile = call.tiles.queries
    launch(
        kernels.queries_kernel, (call.blocks(tile.rows), *call.over_chunks), **tile.compiled,
        q_ptr=q, k_ptr=k, dh_ptr=dh, dS_ptr=dS, ur_ptr=ur, ud_ptr=ud, C_ptr=C, n_ptr=n, dq_ptr=dq, qdq_ptr=qdq,
        BT=tile.rows, BK=padded(call.dk), BD=tile.inner, **common,
    )  # fmt: skip
    tile = call.tiles.keys
    launch(
        kernels.keys_kernel, (call.blocks(tile.rows), *call.over_chunks), **tile.compiled,
        q_ptr=q, k_ptr=k, v_ptr=v, dS_ptr=dS, w_ptr=w, dC_ptr=dC, dn_ptr=dn, dk_ptr=dk, kdk_ptr=kdk,
        BS=tile.rows, BK=padded(call.dk), BD=tile.inner, **common,
    )  # fmt: skip
    tile = call.tiles.values
    launch(
        kernels.values_kernel, (call.blocks(tile.rows) * tile.across(call.dv), *call.over_chunks), **tile.compiled,
        k_ptr=k, dh_ptr=dh, A_ptr=A, w_ptr=w, dC_ptr=dC, dv_ptr=dv,
        BS=tile.rows, BV=tile.columns, BD=tile.inner, **common,
    )  # fmt: skip
    launch(
        kernels.gates_backward_kernel, call.over_chunks, warps=4, stages=1,
        i_ptr=i, f_ptr=f, mask_ptr=as_bytes(mask), qdq_ptr=qdq, kdk_ptr=kdk, X_ptr=X, di_ptr=di, df_ptr=df,
        SIGMOID=sigmoid, **sums, **call.sizes,
    )  # fmt: skip
    if initial and C0 is not None and n0 is not None:
        dC0, dn0, dm0 = initial
        if sigmoid:  # which has neither n nor m
            dn0.zero_()
            dm0.zero_()
        else:
            dm0.copy_((dC0 * C0).sum((-1, -2)) + (dn0 * n0).sum(-1))
    return gradients


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *rest: Any) -> list[Tensor]:
    return _gradients(q, k, v, i, f, rest[2], rest[3], rest[-4], rest[-3])


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C0: Tensor | None,
    n0: Tensor | None,
    dC1: Tensor | None,
    dn1: Tensor | None,
) -> list[Tensor]:
    # What gates receive by way of the final memory may cancel with what they receive by its m, which is added later.
    whole = dC1 is None and dn1 is None
    gates = [x.new_empty(x.shape, dtype=x.dtype if whole else torch.float32) for x in (i, f)]
    like = [*(x.new_empty(x.shape) for x in (q, k, v)), *gates]
    if C0 is None or n0 is None:
        return like
    return [*like, C0.new_empty(C0.shape), n0.new_empty(n0.shape), n0.new_empty(n0.shape[:-1])]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.chunk_size, ctx.sigmoid = inputs
    h, C1, n1, _, *kept = output
    ctx.save_for_backward(*tensors, h, C1, n1, *kept)
    ctx.set_materialize_grads(False)  # of a final memory that nothing reads


def _derivative(
    ctx: Any, dh: Tensor | None, dC1: Tensor | None, dn1: Tensor | None, dm1: Tensor | None, *_: Tensor
) -> tuple[Tensor | None, ...]:
    q, k, v, i, f, mask, reset, C0, n0, m0, h, C1, n1, *kept = ctx.saved_tensors
    dh = torch.zeros_like(h) if dh is None else dh.to(h.dtype)
    through = (q, k, v, i, f, mask, reset, C0, n0, h, *kept, dh, dC1, dn1)
    dq, dk, dv, di, df, *rest = _backward(*through, ctx.chunk_size, ctx.sigmoid)
    dC0, dn0, dm0 = rest or (None, None, None)
    if not ctx.sigmoid and any(x is not None for x in (dC1, dn1, dm1)):
        # C and n are scaled by exp(-m): seen unscaled, m gets what is its own less what they get.
        dm = torch.zeros_like(n1[..., 0]) if dm1 is None else dm1
        dm = dm if dC1 is None else dm - (dC1 * C1).sum((-1, -2))
        dm = dm if dn1 is None else dm - (dn1 * n1).sum(-1)
        to_i, to_f, to_m0 = through_final_m(dm, i, f, m0, mask, reset)
        di, df = di + to_i, df + to_f
        dm0 = None if dm0 is None else dm0 + to_m0
    return dq, dk, dv, di.to(i.dtype), df.to(f.dtype), None, None, dC0, dn0, dm0, None, None


_forward.register_autograd(_derivative, setup_context=_setup)


def through_final_m(
    dm: Tensor, i: Tensor, f: Tensor, m0: Tensor | None, mask: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that the stabiliser after the last step [B, H] sends to i, f and m0: to the largest log weight."""
    lf, i_ = logsigmoid(f.float()), i.float()
    if mask is not None:
        lf, i_ = lf.masked_fill(~mask[..., None], 0.0), i_.masked_fill(~mask[..., None], -torch.inf)
    reaching = lf.double().flip(1).cumsum(1).flip(1)  # the sum of log f from a step on
    weight = i_ + reaching - lf
    step = torch.arange(i.shape[1], device=i.device)[None, :, None]
    begin = step.new_zeros(len(i), 1, 1) if reset is None else torch.where(reset[..., None], step, 0).amax(1, True)
    beginning = reaching.gather(1, begin.expand(-1, -1, i.shape[2]))[:, 0]  # of the m that the document began with
    from_m0 = torch.ones_like(dm, dtype=torch.bool) if reset is None else ~reset.any(1, keepdim=True).expand_as(dm)
    if m0 is not None:
        beginning = beginning + torch.where(from_m0, m0, 0.0)
    largest, where = weight.masked_fill(step < begin, -torch.inf).max(1)
    of_step = largest >= beginning
    to_i = torch.zeros_like(weight).scatter(1, where[:, None], torch.where(of_step, dm, 0.0)[:, None].to(weight.dtype))
    where = torch.where(of_step, where, begin[:, 0] - 1)
    to_f = torch.where(step > where[:, None], dm[:, None], 0.0) * torch.sigmoid(-f.float())
    if mask is not None:
        to_f = to_f.masked_fill(~mask[..., None], 0.0)
    return to_i, to_f, torch.where(from_m0 & ~of_step, dm, 0.0)


def _differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
