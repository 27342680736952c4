"""What the kernels of the chunkwise mLSTM share: the sizes of a call, its gates, and its memories."""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.triton.launch import as_bytes, launch, padded, precision
from exlstm.ops.triton.mlstm_tiles import Tile, for_few, segments_of, tiles_of

FEW_CHUNKS, MANY_CHUNKS = 64, 1024  # whose stabilisers are chained at once, in one of two kernels
START_BLOCK = 1024  # entries of memories that are chained at once

_Memory = tuple[Tensor | None, Tensor | None]  # C and n


class Call:
    """The sizes of a call and what its launches have in common."""

    def __init__(self, q: Tensor, v: Tensor, chunk_size: int, sigmoid: bool) -> None:
        self.batch, time, self.heads, self.dk = q.shape
        self.dv, self.scale, self.normalised = v.shape[-1], q.shape[-1] ** -0.5, not sigmoid
        self.tiles = tiles_of(q.dtype, self.dk, self.dv, time, chunk_size)
        self.rows, self.chunks = self.batch * self.heads, -(-time // self.tiles.chunk)
        self.over_chunks = (self.chunks, self.rows)
        self.sizes = {"T": time, "H": self.heads, "N": self.chunks, "L": self.tiles.chunk}
        self.products: dict[str, Any] = {
            "DK": self.dk, "DV": self.dv, "NORMALISED": self.normalised, "PRECISION": precision(q.dtype)
        }  # fmt: skip

    def gates(
        self,
        i: Tensor,
        f: Tensor,
        mask: Tensor | None,
        reset: Tensor | None,
        m0: Tensor | None,
        m1: Tensor,
        steps: Tensor,
        kept: Tensor,
        document: Tensor | None,
    ) -> None:
        """Write a, F, M, u, w of all steps, how much of a memory each chunk keeps, and, with resets, the documents.

        And the stabiliser m1 after the last step.
        """
        from exlstm.ops.triton import mlstm_kernels as kernels

        a, F, M, u, w, _ = steps
        reach, m = torch.empty_like(kept), kept.new_empty(self.rows, self.chunks + 1)  # m at the chunks' starts, too
        common: dict[str, Any] = {
            "document_ptr": document, "mask_ptr": as_bytes(mask), "kept_ptr": kept, "SIGMOID": not self.normalised,
            **self.sizes,
        }  # fmt: skip
        launch(
            kernels.gates_kernel, self.over_chunks, warps=4, stages=1,
            i_ptr=i, f_ptr=f, reset_ptr=as_bytes(reset), a_ptr=a, F_ptr=F, top_ptr=M, reach_ptr=reach, **common,
        )  # fmt: skip
        if self.normalised:
            launch(
                kernels.stabilisers_kernel, (self.rows,), warps=4, stages=1,
                kept_ptr=kept, reach_ptr=reach, m0_ptr=m0, m_ptr=m, m1_ptr=m1, N=self.chunks,
                BLOCK=FEW_CHUNKS if self.chunks <= FEW_CHUNKS else MANY_CHUNKS,
            )  # fmt: skip
        else:
            m.zero_()
            m1.zero_()
        launch(
            kernels.weights_kernel, self.over_chunks, warps=4, stages=1,
            a_ptr=a, F_ptr=F, top_ptr=M, m_ptr=m, M_ptr=M, u_ptr=u, w_ptr=w, **common,
        )  # fmt: skip

    def blocks(self, size: int) -> int:
        """How many blocks of `size` steps make a chunk."""
        return self.tiles.chunk // size

    def pairs(self, q: Tensor) -> Tensor:
        """Room for a number of each two steps of a chunk."""
        return q.new_empty(self.rows, self.chunks, self.tiles.chunk, self.tiles.chunk)

    def weight(self, x: Tensor, weighted: Tensor, by: Tensor, total: Tensor, total_by: Tensor) -> None:
        """Rows of a sequence times their weights, and their sums over chunks by other weights."""
        from exlstm.ops.triton import mlstm_kernels as kernels

        launch(
            kernels.weighted_kernel, self.over_chunks, warps=8, stages=1,
            x_ptr=x, by_ptr=by, sum_by_ptr=total_by, out_ptr=weighted, sum_ptr=total,
            D=self.dk, BD=min(64, padded(self.dk)), SUM=self.normalised, **self.sizes,
        )  # fmt: skip

    def carry(
        self,
        kw: Tensor,
        v: Tensor,
        nw: Tensor,
        kept: Tensor,
        C0: Tensor | None,
        n0: Tensor | None,
        C: Tensor | None,
        n: Tensor | None,
        C1: Tensor | None,
        n1: Tensor | None,
        *,
        reverse: bool,
    ) -> None:
        """A memory from chunk to chunk: C0, n0 before all, C, n before each, or None, and C1, n1 after all."""
        inputs: dict[str, Any] = {"kw_ptr": kw, "v_ptr": v, "nw_ptr": nw, "kept_ptr": kept, "REVERSE": reverse}
        tile = self.tiles.states
        segments = segments_of(tile, self.rows, self.dk, self.dv, self.chunks)
        if segments == 1:
            tile = for_few(tile, self.rows, self.dk, self.dv)
        else:
            made, keep = self._memories(v, segments), kept.new_empty(self.rows, segments)
            nothing = dict.fromkeys(("C0_ptr", "n0_ptr", "C_ptr", "n_ptr"))
            self._walk(tile, segments, **inputs, **nothing, C1_ptr=made[0], n1_ptr=made[1], keep1_ptr=keep)
            if C is None:
                self._chain((C0, n0), made, keep, (None, None), (C1, n1))
                return
            before = self._memories(v, segments)
            self._chain((C0, n0), made, keep, before, (None, None))
            C0, n0 = before
        self._walk(tile, segments, **inputs, C0_ptr=C0, n0_ptr=n0, C_ptr=C, n_ptr=n, C1_ptr=C1, n1_ptr=n1)

    def _walk(self, tile: Tile, segments: int, **arguments: Any) -> None:
        """From chunk to chunk, in so many segments at once."""
        from exlstm.ops.triton import mlstm_kernels as kernels

        programs = -(-self.dk // tile.rows) * tile.across(self.dv), self.rows * segments
        launch(
            kernels.states_kernel, programs, **tile.compiled,
            CHUNKS=-(-self.chunks // segments), SEGMENTS=segments, BL=tile.inner, BK=tile.rows, BV=tile.columns,
            **({"keep1_ptr": None} | arguments), **self.sizes, **self.products,
        )  # fmt: skip

    def _chain(self, first: _Memory, made: _Memory, keep: Tensor, before: _Memory, last: _Memory) -> None:
        """C and n before each segment, and after all, from those before all and what each segment makes and keeps."""
        from exlstm.ops.triton import mlstm_kernels as kernels

        for x0, of_segment, x, x1 in zip(first, made, before, last, strict=True):
            if of_segment is not None:
                size = of_segment[0, 0].numel()
                launch(
                    kernels.starts_kernel, (-(-size // START_BLOCK), self.rows), warps=4, stages=1,
                    x0_ptr=x0, made_ptr=of_segment, keep_ptr=keep, x_ptr=x, x1_ptr=x1, SEGMENTS=keep.shape[1],
                    SIZE=size, BLOCK=START_BLOCK,
                )  # fmt: skip

    def _memories(self, v: Tensor, segments: int) -> _Memory:
        """Room for C and n of every segment."""
        shape = self.rows, segments, self.dk
        C = v.new_empty(*shape, self.dv, dtype=torch.float32)
        return C, v.new_empty(shape, dtype=torch.float32) if self.normalised else None

    def gate_outputs(self, v: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Room for what `gates` writes; a sixth number of all steps is for d."""
        real, steps = torch.float32, self.chunks * self.tiles.chunk
        return (
            v.new_empty(6, self.rows, steps, dtype=real),
            v.new_empty(self.rows, self.chunks, dtype=real),
            v.new_empty((0,) if reset is None else (self.batch, steps), dtype=torch.int32),
        )

    def memory(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Room for C, n and m after all steps."""
        shape, real = (self.batch, self.heads), torch.float32
        n = (v.new_empty if self.normalised else v.new_zeros)(*shape, self.dk, dtype=real)
        return v.new_empty(*shape, self.dk, self.dv, dtype=real), n, v.new_empty(shape, dtype=real)

    def outputs(self, v: Tensor, reset: Tensor | None) -> tuple[Tensor, ...]:
        """Room for the results of the forward op."""
        # Sums over all steps: float16 could not hold them.
        memory = torch.bfloat16 if v.dtype == torch.bfloat16 else torch.float32
        n_starts = (self.rows, self.chunks, self.dk) if self.normalised else (0,)
        return (
            v.new_empty(v.shape),
            *self.memory(v),
            *self.gate_outputs(v, reset),
            v.new_empty(self.rows, self.chunks, self.dk, self.dv, dtype=memory),
            v.new_empty(n_starts, dtype=torch.float32),
        )
