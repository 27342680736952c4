"""The operators of the hierarchical mLSTM in Triton: the launches of a call, forward and backward, and its derivative.

The kernels read and write sequences through index tables (`hmlstm_tables`), so that rows with masks, resets and states
are not realigned.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.operator import operator
from exlstm.ops.triton.hmlstm_tables import (
    Counts,
    Tables,
    sizes_of,
    sizes_of_full_rows,
    tables_of_full_rows,
    through_final_m,
)
from exlstm.ops.triton.hmlstm_tiles import Tiles, tiles_of
from exlstm.ops.triton.launch import contiguous, launch, padded, precision

SMALL = 3  # gradients of memories of up to 2^3 chunks are finished as they are summed: larger ones are few, and long
SUMMED = 256  # chunks over which sums are taken at once


class Call:
    """The sizes of a call and what its launches have in common; without tables all rows are full."""

    def __init__(self, q: Tensor, v: Tensor, level: Tensor, tables: Sequence[Tensor], chunk_size: int) -> None:
        self.batch, self.time, self.heads, self.dk = q.shape
        self.dv, self.levels, self.scale = v.shape[-1], level.shape[-1], q.shape[-1] ** -0.5
        self.tiles: Tiles = tiles_of(q.dtype, self.dk, self.dv, self.time, chunk_size)
        self.chunks, self.memories, self.columns = (
            sizes_of(Tables(*tables)) if tables else sizes_of_full_rows(self.batch, self.time, self.tiles.chunk)
        )
        self.inside = self.tiles.chunk.bit_length() - 1
        # Sums over all steps: float16 could not hold them.
        self.memory_dtype = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32
        self.widths = {"DK": self.dk, "DV": self.dv}
        self.sizes: dict[str, Any] = {
            "steps_ptr": Tables(*tables).steps if tables else None, "T": self.time,
            "PER_ROW": self.chunks // self.batch, "H": self.heads, "L": self.tiles.chunk,
        }  # fmt: skip
        self.products = {"PRECISION": precision(q.dtype)}
        self.table = {"R": self.columns, "INSIDE": self.inside}
        self.over_chunks = (self.chunks, self.heads)

    def tables(self, given: Sequence[Tensor], counts: Sequence[int], device: torch.device) -> tuple[Tables, Counts]:
        """Those given, or those of full rows."""
        if given:
            return Tables(*given), counts
        return tables_of_full_rows(self.batch, self.time, self.tiles.chunk, self.levels, device)

    def grid(self, programs: int) -> tuple[int, int]:
        """So many programs for every chunk and head."""
        return self.chunks * programs, self.heads

    def outputs(self, v: Tensor, all_present: bool, return_state: bool) -> tuple[Tensor, ...]:
        """Room for the results of the forward op; none for slots unless `return_state`."""
        real, double = torch.float32, torch.float64
        M, N, H, L = self.chunks, self.memories, self.heads, self.tiles.chunk
        slots = (self.batch if return_state else 0, H, self.levels)
        return (
            v.new_empty(v.shape) if all_present else v.new_zeros(v.shape),
            v.new_empty(*slots, self.dk, self.dv, dtype=real),
            v.new_empty(*slots, self.dk, dtype=real),
            v.new_empty(slots, dtype=real),
            v.new_empty(self.batch, H, dtype=real),
            v.new_empty(4, M, H, L, dtype=real),
            v.new_empty(M, H, self.inside + 1 + self.columns, L, dtype=real),
            v.new_empty(N, H, self.dk, self.dv, dtype=self.memory_dtype),
            v.new_empty(N, H, self.dk, dtype=real),
            v.new_empty(N, H, dtype=double),
            v.new_empty(M + 1, H, dtype=double),
            v.new_empty(slots, dtype=double),
        )


@operator("hmlstm_triton")
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    level: Tensor,
    C0: Tensor | None,
    n0: Tensor | None,
    m0: Tensor | None,
    decay0: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    begun: Tensor | None,
    tables: Sequence[Tensor],
    counts: Sequence[int],
    chunk_size: int,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h, C, n, m of the final state, the sum of log f in a row's last document, and what the backward needs.

    That is a, F, M, d of all steps, the table of weights, all memories' C, n and G, the sum of log f before every
    chunk, and G of the final state.
    """
    from exlstm.ops.triton import hmlstm_kernels as kernels

    q, k, v, i, f, level, decay0 = contiguous(q, k, v, i, f, level, decay0)
    call = Call(q, v, level, tables, chunk_size)
    (at, counts), tiles = call.tables(tables, counts, q.device), call.tiles
    h, C1, n1, m1, decay1, steps, table, C, n, G, elapsed, G1 = call.outputs(v, mask is None, return_state)
    a, F, M, d = steps
    totals = torch.empty_like(elapsed[1:])
    launch(
        kernels.gates_kernel, call.over_chunks, warps=4, stages=1,
        i_ptr=i, f_ptr=f, a_ptr=a, F_ptr=F, total_ptr=totals, **call.sizes,
    )  # fmt: skip
    launch(
        kernels.elapsed_kernel, (call.heads,), warps=4, stages=1,
        total_ptr=totals, elapsed_ptr=elapsed, M=call.chunks, H=call.heads, BLOCK=min(SUMMED, padded(call.chunks)),
    )  # fmt: skip
    if C0 is not None and n0 is not None and m0 is not None:
        base = elapsed[at.first]
        for x, y, fill in ((C, C0, 0.0), (n, n0, 0.0), (G, m0.double() - base[..., None], -torch.inf)):
            slots = x[call.chunks :].unflatten(0, at.held.shape)
            slots.fill_(fill)
            slots[: call.levels - 1] = y.movedim(2, 0)[:-1]
            slots[-1] = y.movedim(2, 0)[-1]
        G[call.chunks :].unflatten(0, at.held.shape).masked_fill_(at.held[..., None] == 0, -torch.inf)
    tile = tiles.memories
    programs = tile.across(call.dk, call.dv)
    memories: dict[str, Any] = {
        "k_ptr": k, "v_ptr": v, "a_ptr": a, "elapsed_ptr": elapsed, "C_ptr": C, "n_ptr": n, "G_ptr": G,
        "order_ptr": at.order, "slot_chunk_ptr": at.slot_chunk, "slot_steps_ptr": at.slot_steps,
        "C1_ptr": C1, "n1_ptr": n1, "m1_ptr": m1, "G1_ptr": G1, "slots": call.batch * call.levels,
        "LEVELS": call.levels, **tile.blocks, **call.sizes, **call.widths, **call.products,
    }  # fmt: skip
    begin = call.chunks
    for count in reversed(counts):  # from the smallest memories, of which larger ones are made
        begin -= count
        if count > 0:
            launch(
                kernels.memories_kernel, (count * programs, call.heads), **tile.compiled, **memories,
                source_ptr=at.source, sources_ptr=at.sources, S=at.source.shape[1], begin=begin, FINAL=False,
            )  # fmt: skip
    if return_state:
        launch(
            kernels.memories_kernel, (call.batch * call.levels * programs, call.heads), **tile.compiled, **memories,
            source_ptr=at.slot_source, sources_ptr=at.slot_sources, S=at.slot_source.shape[1], begin=0, FINAL=True,
        )  # fmt: skip
    launch(
        kernels.weights_kernel, call.over_chunks, warps=4, stages=1,
        a_ptr=a, level_ptr=level, elapsed_ptr=elapsed, start_ptr=at.start, ending_ptr=at.ending,
        going_on_ptr=at.going_on, decay0_ptr=decay0, decay1_ptr=decay1, G_ptr=G, read_ptr=at.read, place_ptr=at.place,
        reads_ptr=at.reads, M_ptr=M, table_ptr=table,
        LEVELS=call.levels, **call.sizes, **call.table,
    )  # fmt: skip
    A = q.new_empty(call.chunks, call.heads, tiles.chunk, tiles.chunk)
    read: dict[str, Any] = {
        "q_ptr": q, "A_ptr": A, "d_ptr": d, "table_ptr": table, "read_ptr": at.read, "reads_ptr": at.reads,
        "scale": call.scale, **call.sizes, **call.table, **call.products,
    }  # fmt: skip
    tile = tiles.scores
    launch(
        kernels.scores_kernel, call.grid(tiles.chunk // tile.blocks["B"]), **tile.compiled,
        k_ptr=k, a_ptr=a, n_ptr=n, DK=call.dk, BLOCK=tiles.block, **tile.blocks, **read,
    )  # fmt: skip
    tile = tiles.outputs
    launch(
        kernels.outputs_kernel, call.grid(tiles.chunk // tile.blocks["BT"] * -(-call.dv // tile.blocks["BV"])),
        **tile.compiled, v_ptr=v, F_ptr=F, M_ptr=M, C_ptr=C, h_ptr=h, **tile.blocks, **call.widths, **read,
    )  # fmt: skip
    return h, C1, n1, m1, decay1, steps, table, C, n, G, elapsed, G1


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, level: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    tables, _, chunk_size, return_state = rest[-4:]
    return Call(q, v, level, tables, chunk_size).outputs(v, rest[4] is None, return_state)


@operator("hmlstm_triton_backward")
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    level: Tensor,
    C0: Tensor | None,
    n0: Tensor | None,
    mask: Tensor | None,
    h: Tensor,
    steps: Tensor,
    table: Tensor,
    C: Tensor,
    n: Tensor,
    G: Tensor,
    elapsed: Tensor,
    G1: Tensor,
    dh: Tensor,
    dC1: Tensor | None,
    dn1: Tensor | None,
    tables: Sequence[Tensor],
    counts: Sequence[int],
    chunk_size: int,
) -> list[Tensor]:
    """The gradients of q, k, v, i, f, level and, if there is one, of the initial C, n and m."""
    from exlstm.ops.triton import hmlstm_backward_kernels as kernels
    from exlstm.ops.triton import hmlstm_gates_kernels as gates_kernels

    gradients = _gradients(q, k, v, i, f, level, C0, n0, mask, dC1)
    dq, dk, dv, di, df, dlevel, *initial = gradients
    q, k, v, f, dh, dC1, dn1 = contiguous(q, k, v, f, dh, dC1, dn1)
    call = Call(q, v, level, tables, chunk_size)
    (at, counts), tiles, M = call.tables(tables, counts, q.device), call.tiles, call.chunks
    a, F, largest, d = steps
    r, dd, kdk = (torch.empty_like(a) for _ in range(3))
    launch(
        kernels.reads_kernel, call.grid(tiles.chunk // 16), warps=4, stages=1,
        h_ptr=h, dh_ptr=dh, F_ptr=F, M_ptr=largest, d_ptr=d, r_ptr=r, dd_ptr=dd, DV=call.dv, B=16, BV=padded(call.dv),
        **call.sizes,
    )  # fmt: skip
    rows = torch.empty_like(table)
    A, dS = (q.new_empty(M, call.heads, tiles.chunk, tiles.chunk) for _ in range(2))
    common: dict[str, Any] = {"q_ptr": q, "dh_ptr": dh, **call.sizes, **call.widths, **call.products}
    by_read: dict[str, Any] = {
        **common, "table_ptr": table, "r_ptr": r, "dd_ptr": dd, "scale": call.scale, **call.table,
    }  # fmt: skip
    tile = tiles.scores_backward
    columns = a.new_empty(M, call.heads, tiles.chunk // tile.blocks["B"], tiles.chunk)
    launch(
        kernels.scores_backward_kernel, call.grid(tiles.chunk // tile.blocks["B"]), **tile.compiled,
        k_ptr=k, v_ptr=v, a_ptr=a, A_ptr=A, dS_ptr=dS, rows_ptr=rows, columns_ptr=columns, BLOCK=tiles.block,
        **tile.blocks, **by_read,
    )  # fmt: skip

    ur, dn_read = (a.new_empty(M, call.heads, call.columns, width) for width in (tiles.chunk, call.dk))
    launch(
        kernels.shares_kernel, call.over_chunks, warps=8, stages=1,
        q_ptr=q, table_ptr=table, r_ptr=r, dd_ptr=dd, reads_ptr=at.reads, ur_ptr=ur, dn_read_ptr=dn_read,
        scale=call.scale, DK=call.dk, BD=min(64, padded(call.dk)), **call.sizes, **call.table,
    )  # fmt: skip
    dC, dn = torch.empty_like(C), torch.empty_like(n)
    tile = tiles.memories_backward
    programs = tile.across(call.dk, call.dv)
    links = G.new_empty(2, programs, call.memories, call.heads, dtype=torch.float32)
    ends: dict[str, Any] = {"G1_ptr": G1, "dC1_ptr": dC1, "dn1_ptr": dn1, "LEVELS": call.levels}

    def memories(begin: int, count: int, *, add: bool, read: bool, part: bool) -> None:
        if count > 0:
            launch(
                kernels.memories_backward_kernel, (count * programs, call.heads), **tile.compiled,
                C_ptr=C, n_ptr=n, G_ptr=G, order_ptr=at.order, parent_ptr=at.parent, final_ptr=at.final,
                readers_ptr=at.readers, dC_ptr=dC, dn_ptr=dn, link_ptr=links, ur_ptr=ur, dn_read_ptr=dn_read,
                begin=begin, N=call.memories, R=call.columns, ADD=add, READ=read, PART=part,
                **tile.blocks, **ends, **common,
            )  # fmt: skip

    large = len(counts) - 1 - SMALL
    memories(0, sum(counts[: max(large, 0)]), add=False, read=True, part=False)
    begin = 0
    for z, count in enumerate(counts):  # from the largest memories, of which others are part
        memories(begin, count, add=z < large, read=z >= large, part=True)
        begin += count
    memories(M, call.memories - M, add=False, read=True, part=True)

    tile = tiles.queries
    launch(
        kernels.queries_kernel, call.grid(tiles.chunk // tile.blocks["BT"]), **tile.compiled,
        k_ptr=k, dS_ptr=dS, read_ptr=at.read, reads_ptr=at.reads, C_ptr=C, n_ptr=n, dq_ptr=dq, rows_ptr=rows,
        **tile.blocks, **by_read,
    )  # fmt: skip
    written: dict[str, Any] = {
        "k_ptr": k, "a_ptr": a, "elapsed_ptr": elapsed, "G_ptr": G, "dC_ptr": dC, "ending_ptr": at.ending,
        "slot_steps_ptr": at.slot_steps, "slots": call.batch * call.levels, "G1_ptr": G1, "dC1_ptr": dC1,
        "LEVELS": call.levels, **call.sizes, **call.widths, **call.products,
    }  # fmt: skip
    tile = tiles.keys
    launch(
        kernels.keys_kernel, call.grid(tiles.chunk // tile.blocks["BS"]), **tile.compiled,
        q_ptr=q, v_ptr=v, dS_ptr=dS, dn_ptr=dn, dn1_ptr=dn1, dk_ptr=dk, kdk_ptr=kdk, **tile.blocks, **written,
    )  # fmt: skip
    tile = tiles.values
    launch(
        kernels.values_kernel, call.grid(tiles.chunk // tile.blocks["BS"] * -(-call.dv // tile.blocks["BV"])),
        **tile.compiled, dh_ptr=dh, A_ptr=A, dv_ptr=dv, **tile.blocks, **written,
    )  # fmt: skip

    sums, between = G.new_empty(call.heads, call.columns, M), torch.empty_like(a[..., 0])
    launch(
        gates_kernels.read_sums_kernel, call.over_chunks, warps=4, stages=1,
        rows_ptr=rows, reads_ptr=at.reads, sums_ptr=sums, H=call.heads, L=tiles.chunk, **call.table,
    )  # fmt: skip
    slots, sources = len(at.held), at.source.shape[1]
    launch(
        gates_kernels.between_kernel, (call.heads,), warps=8, stages=1,
        links_ptr=links, sums_ptr=sums, readers_ptr=at.readers, source_ptr=at.source, start_ptr=at.start,
        going_on_ptr=at.going_on, before_ptr=G.new_empty(call.heads, call.columns + 1, M + 1),
        parts_ptr=G.new_empty(call.heads, 2, call.memories), between_ptr=between,
        M=M, N=call.memories, H=call.heads, ROWS=call.batch, R=call.columns, S=sources, SLOTS=slots,
        PROGRAMS=programs, READS=padded(call.columns + 1), SOURCES=padded(sources), KEPT=padded(slots) if slots else 0,
        BLOCK=min(SUMMED, padded(M)),
    )  # fmt: skip
    launch(
        gates_kernels.gates_backward_kernel, call.over_chunks, warps=4, stages=1,
        f_ptr=f, rows_ptr=rows, columns_ptr=columns, kdk_ptr=kdk, B=tiles.scores_backward.blocks["B"],
        place_ptr=at.place, reads_ptr=at.reads, between_ptr=between, di_ptr=di, df_ptr=df, dlevel_ptr=dlevel,
        LEVELS=call.levels, COLUMNS=padded(call.levels), **call.sizes, **call.table,
    )  # fmt: skip
    if initial and C0 is not None and n0 is not None:
        dC0, dn0, dm0 = initial
        for x, y in ((dC0, dC), (dn0, dn)):
            slots = y[M:].unflatten(0, at.held.shape)
            x.movedim(2, 0)[:-1] = slots[: call.levels - 1]
            x.movedim(2, 0)[-1] = slots[-1]
        dm0.copy_((dC0 * C0).sum((-1, -2)) + (dn0 * n0).sum(-1))
    return gradients


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, level: Tensor, *rest: Any) -> list[Tensor]:
    C0, n0, mask = rest[:3]
    return _gradients(q, k, v, i, f, level, C0, n0, mask, rest[-5])


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    level: Tensor,
    C0: Tensor | None,
    n0: Tensor | None,
    mask: Tensor | None,
    dC1: Tensor | None,
) -> list[Tensor]:
    # What gates receive by way of the final state may cancel with what they receive by its m, which is added later.
    gate = i.dtype if dC1 is None else torch.float32
    of_steps = ((q, q.dtype), (k, k.dtype), (v, v.dtype), (i, gate), (f, gate), (level, level.dtype))
    like = [(x.new_empty if mask is None else x.new_zeros)(x.shape, dtype=dtype) for x, dtype in of_steps]
    if C0 is None or n0 is None:
        return like
    return [*like, C0.new_empty(C0.shape), n0.new_empty(n0.shape), n0.new_empty(n0.shape[:-1])]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, tables, ctx.counts, ctx.chunk_size, _ = inputs
    h, C1, n1, _, _, *kept = output
    ctx.tables = len(tables)
    ctx.save_for_backward(*tables, *tensors, h, C1, n1, *kept)
    ctx.set_materialize_grads(False)  # of a final state that nothing reads


def _derivative(
    ctx: Any,
    dh: Tensor | None,
    dC1: Tensor | None,
    dn1: Tensor | None,
    dm1: Tensor | None,
    d_decay: Tensor | None,
    *_: Tensor,
) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    tables = saved[: ctx.tables]
    q, k, v, i, f, level, C0, n0, m0, _, mask, reset, begun, h, C1, n1, *kept = saved[ctx.tables :]
    dh = torch.zeros_like(h) if dh is None else dh.to(h.dtype)
    if dC1 is not None or dn1 is not None:
        dC1 = torch.zeros_like(C1) if dC1 is None else dC1
        dn1 = torch.zeros_like(n1) if dn1 is None else dn1
    of = (q, k, v, i, f, level, C0, n0, mask, h, *kept, dh, dC1, dn1)
    dq, dk, dv, di, df, dlevel, *initial = _backward(*of, tables, ctx.counts, ctx.chunk_size)
    dC0, dn0, dm0 = initial or (None, None, None)
    if any(x is not None for x in (dC1, dm1, d_decay)):
        # C and n are scaled by exp(-m): seen unscaled, m gets what is its own less what they get.
        dm = torch.zeros_like(n1[..., 0]) if dm1 is None else dm1
        if dC1 is not None and dn1 is not None:
            dm = dm - (dC1 * C1).sum((-1, -2)) - (dn1 * n1).sum(-1)
        held = Tables(*tables).held if tables else None
        to_i, to_f, to_m0 = through_final_m(dm, d_decay, i, f, m0, held, begun, mask, reset)
        di, df = di + to_i, df + to_f
        dm0 = None if dm0 is None else dm0 + to_m0
    di, df = di.to(i.dtype), df.to(f.dtype)
    return dq, dk, dv, di, df, dlevel, dC0, dn0, dm0, None, None, None, None, None, None, None, None


forward.register_autograd(_derivative, setup_context=_setup)
