"""What a step program on a GPU consists of: nodes that read and write registers, and launch a kernel each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from exlstm.ops.hmlstm import HMLSTMState
from exlstm.ops.mlstm import MLSTMState
from exlstm.ops.program import Activation, Ring
from exlstm.ops.slstm import SLSTMState
from exlstm.ops.triton.launch import PROCESSORS, launch, padded
from exlstm.ops.triton.mlstm_step import launch_step, memory_tile

BLOCK = 1024  # elements of a vector, where nothing else decides
ENTRIES = 8192  # of a matrix, that a program reads at once: 16 KiB in half precision
AHEAD = 3  # such blocks on their way at once


class Node(Protocol):
    """One step of a program. A mask is uint8 [B]."""

    @property
    def reads(self) -> list[Tensor]: ...

    @property
    def writes(self) -> list[Tensor]: ...

    def run(self, mask: Tensor) -> None: ...


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [x for x in tensors if x is not None]


def _row(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


@dataclass(frozen=True, eq=False)
class Vector:
    """y = cap(norm(x) weight + factor other) activation(gate), of which any part may be missing; all [B, width]."""

    x: Tensor | None
    y: Tensor
    weight: Tensor | None = None
    """Of the norm; None for none."""
    eps: float = 0.0
    heads: int = 1
    centred: bool = True
    other: Tensor | None = None
    factor: Tensor | None = None
    cap: float | None = None
    gate: Tensor | None = None
    kind: Activation | None = None

    @property
    def reads(self) -> list[Tensor]:
        return _given(self.x, self.other, self.gate)

    @property
    def writes(self) -> list[Tensor]:
        return [self.y]

    @property
    def group(self) -> int:
        """How many elements are made together: those that are normed together."""
        return BLOCK if self.weight is None else self.y.shape[1] // self.heads

    @property
    def operands(self) -> dict[str, Any]:
        """What kernels need to make it."""
        norm = None if self.weight is None else "layer" if self.centred else "rms"
        return {
            "x_ptr": self.x, "weight_ptr": self.weight, "other_ptr": self.other, "factor_ptr": self.factor,
            "gate_ptr": self.gate, "eps": self.eps, "cap": self.cap, "NORM": norm, "KIND": self.kind,
            "WIDTH": self.group, "BLOCK": padded(self.group),
        }  # fmt: skip

    def run(self, mask: Tensor) -> None:
        from exlstm.ops.triton import program_kernels as kernels

        batch, columns = self.y.shape
        launch(
            kernels.vector_kernel, (-(-columns // self.group), batch), warps=4, stages=1,
            y_ptr=self.y, x_row=_row(self.x), other_row=_row(self.other), gate_row=_row(self.gate),
            y_row=_row(self.y), columns=columns, **self.operands,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Linear:
    """y = add + cap(bias + W x) in blocks, each with a matrix [outputs, inputs] and a part of x of its own."""

    x: Tensor
    matrix: Tensor  # [blocks, outputs, inputs]
    y: Tensor
    scale: Tensor | None = None  # [blocks, outputs], of a matrix of int8
    bias: Tensor | None = None  # [blocks, outputs]
    add: Tensor | None = None
    stride: int = 0
    """From the outputs of a block to those of the next, in y and `add`."""
    cap: float | None = None
    glu: Activation | None = None
    """Then half of the outputs, activated, times the other half is the result."""
    made: Vector | None = None
    """How x is made, which this node then does itself."""
    also: "Linear | None" = None
    """Another one of the same x, which this node runs as well."""

    @property
    def reads(self) -> list[Tensor]:
        made = [self.x] if self.made is None else self.made.reads
        return [*made, *_given(self.add), *([] if self.also is None else self.also.reads)]

    @property
    def writes(self) -> list[Tensor]:
        return [self.y, *([] if self.also is None else self.also.writes)]

    def run(self, mask: Tensor) -> None:
        if len(self.y) == 1:
            self._run_row()
        else:
            self._run_rows()

    def _run_row(self) -> None:
        """Every program reads some rows of the matrix, and makes x itself."""
        from exlstm.ops.triton import program_kernels as kernels

        blocks, outputs, inputs = self.matrix.shape
        outputs //= 1 if self.glu is None else 2
        made, also, halves = self.made or Vector(self.x, self.y), self.also, 1 if self.glu is None else 2
        operands = made.operands
        rows = _rows(outputs * blocks, operands["BLOCK"] * halves)
        if made.weight is None:  # then x can be made in parts of any size
            operands["WIDTH"] = operands["BLOCK"] = min(padded(inputs), ENTRIES // (rows * halves))
        tiles = -(-outputs // rows)
        more = 0 if also is None else -(-also.matrix.shape[1] // rows)
        launch(
            kernels.linear_kernel, (tiles + more, blocks), warps=4, stages=1,
            matrix_ptr=self.matrix, scale_ptr=self.scale, bias_ptr=self.bias, add_ptr=self.add, y_ptr=self.y,
            outputs=outputs, inputs=inputs, stride=self.stride, y_cap=self.cap, GLU=self.glu, ROWS=rows, tiles=tiles,
            STAGES=1 if operands["WIDTH"] >= inputs else AHEAD,
            matrix2_ptr=also and also.matrix, scale2_ptr=also and also.scale, bias2_ptr=also and also.bias,
            y2_ptr=also and also.y, outputs2=also and also.matrix.shape[1], y2_cap=also and also.cap, **operands,
        )  # fmt: skip

    def _run_rows(self) -> None:
        """A matrix product, as PyTorch has it."""
        x = self.x.to(self.matrix.dtype)
        blocks, _, inputs = self.matrix.shape
        y, add = self._in_blocks(self.y), None if self.add is None else self._in_blocks(self.add)
        if blocks == 1 and self.bias is None and y.dtype == x.dtype:
            matrix, out = self.matrix[0].t(), y[:, 0]
            torch.mm(x, matrix, out=out) if add is None else torch.addmm(add[:, 0], x, matrix, out=out)
            return
        product = torch.bmm(x.unflatten(1, (blocks, inputs)).transpose(0, 1), self.matrix.mT).transpose(0, 1)
        for more in _given(self.bias, add):
            product = product + more
        y.copy_(product)

    def _in_blocks(self, x: Tensor) -> Tensor:
        """The outputs in x, as [B, blocks, outputs]."""
        return x.as_strided((len(x), *self.matrix.shape[:2]), (x.stride(0), self.stride, 1))


def _rows(outputs: int, block: int) -> int:
    """How many outputs a program has that reads `block` entries of each at once."""
    rows = max(1, min(16, ENTRIES // block))
    while rows > 1 and outputs < 2 * PROCESSORS * rows:
        rows //= 2
    return rows


@dataclass(frozen=True, eq=False)
class Conv:
    """y = activation(bias + the filters on the past and x), and the past as it then is."""

    x: Tensor
    weight: Tensor  # [width, kernel]
    bias: Tensor  # [width]
    past: Tensor  # [B, kernel - 1, width]
    after: Tensor
    y: Tensor
    kind: Activation | None = None

    @property
    def reads(self) -> list[Tensor]:
        return [self.x, self.past]

    @property
    def writes(self) -> list[Tensor]:
        return [self.y, self.after]

    def run(self, mask: Tensor) -> None:
        from exlstm.ops.triton import program_kernels as kernels

        width, taps = self.weight.shape
        launch(
            kernels.conv_kernel, (-(-width // BLOCK), len(self.x)), warps=4, stages=1,
            x_ptr=self.x, weight_ptr=self.weight, bias_ptr=self.bias, past_ptr=self.past, mask_ptr=mask, y_ptr=self.y,
            past1_ptr=self.after, x_row=_row(self.x), y_row=_row(self.y), columns=width, TAPS=taps, KIND=self.kind,
            BLOCK=BLOCK,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Call:
    """Any function of a mask."""

    function: Callable[[Tensor], None]
    reads: list[Tensor]
    writes: list[Tensor]

    def run(self, mask: Tensor) -> None:
        self.function(mask)


def embed(tokens: Tensor, table: Tensor, y: Tensor, given: Tensor, present: Tensor, mask: Tensor) -> None:
    """Rows of a table; `present` becomes the mask `given`, or, if a token is out of range, one that has no row."""
    from exlstm.ops.triton import program_kernels as kernels

    numbers, width = table.shape
    launch(
        kernels.embed_kernel, (-(-width // BLOCK), len(y)), warps=4, stages=1,
        tokens_ptr=tokens, table_ptr=table, given_ptr=given, y_ptr=y, present_ptr=present, batch=len(y),
        numbers=numbers, tokens_row=_row(tokens), y_row=_row(y), columns=width, BATCH=padded(len(y)), BLOCK=BLOCK,
    )  # fmt: skip


def headwise(x: Tensor, weight: Tensor, y: Tensor, mask: Tensor) -> None:
    """Small blocks [blocks, in, out] by themselves."""
    from exlstm.ops.triton import program_kernels as kernels

    blocks, size, _ = weight.shape
    launch(
        kernels.headwise_kernel, (-(-blocks * size // BLOCK), len(x)), warps=4, stages=1,
        x_ptr=x, weight_ptr=weight, y_ptr=y, x_row=_row(x), y_row=_row(y), columns=blocks * size, SIZE=size,
        BLOCK=BLOCK,
    )  # fmt: skip


def mlstm(inputs: Sequence[Tensor], state: MLSTMState, h: Tensor, after: Sequence[Tensor], mask: Tensor) -> None:
    """q, k, v, i, f, all [B, ...], to h; C is changed in place, n and m are written to `after`."""
    launch_step(inputs, state, h, (state.C, *after), mask=mask)


def hmlstm(inputs: Sequence[Tensor], state: HMLSTMState, h: Tensor, after: Sequence[Tensor], mask: Tensor) -> None:
    """The same with level weights; n, m, log_decay and position are written to `after`."""
    from exlstm.ops.triton import hmlstm_step_kernels as kernels

    batch, heads, levels, dk, dv = state.C.shape
    block, columns = memory_tile(batch * heads, dk, dv)
    names = ("q", "k", "v", "i", "f", "level")
    launch(
        kernels.step_kernel, (-(-dv // columns), batch * heads), warps=4, stages=1,
        **{f"{name}_ptr": x for name, x in zip(names, inputs, strict=True)},
        **{f"{name}_row": _row(x) for name, x in zip(names, inputs, strict=True)},
        **{f"{name}_ptr": x for name, x in zip(("C", "n", "m", "decay", "position"), state, strict=True)},
        **{f"{name}1_ptr": x for name, x in zip(("n", "m", "decay", "position"), after, strict=True)},
        mask_ptr=mask, h_ptr=h, H=heads, scale=dk**-0.5,
        LEVELS=levels, SLOTS=1 << (levels - 1).bit_length(), DK=dk, DV=dv, BK=block, BV=columns,
    )  # fmt: skip


def slstm(gates: Tensor, state: SLSTMState, cap: float | None, mask: Tensor) -> None:
    """Cells, changed in place."""
    from exlstm.ops.triton import program_kernels as kernels

    batch, heads, width = state.h.shape
    launch(
        kernels.slstm_kernel, (-(-heads * width // BLOCK), batch), warps=4, stages=1,
        gates_ptr=gates, **{f"{name}_ptr": x for name, x in state._asdict().items()}, mask_ptr=mask,
        gates_row=_row(gates), columns=heads * width, cap=cap, D=width, BLOCK=BLOCK,
    )  # fmt: skip


def attend(q: Tensor, k: Tensor, v: Tensor, ring: Ring, turns: tuple[Tensor, Tensor], y: Tensor, mask: Tensor) -> None:
    """Attention to a ring and this step, which enters it.

    `turns` are cosine and sine [slots, D / 2] of rotations by 1, 2, ... steps. A query and a key some steps apart meet
    as if the query alone had turned by them.
    """
    heads, slots, width = ring.k.shape[1:]
    q, k, v = (x.unflatten(1, (heads, width)) for x in (q, k, v))
    slot, row = torch.arange(slots, device=q.device), torch.arange(len(q), device=q.device)
    distance = (ring.first[:, None] - slot - 1) % max(slots, 1)  # one less than steps ago
    cosine, sine = (x[distance][:, None] for x in turns)  # [B, 1, slots, D / 2]
    (qa, qb), (ka, kb) = (x.float().chunk(2, -1) for x in (q[:, :, None], ring.k))
    products = (cosine * (qa * ka + qb * kb) + sine * (qa * kb - qb * ka)).sum(-1)
    products = products.masked_fill(~ring.held[:, None], -torch.inf)
    itself = (q.float() * k.float()).sum(-1, keepdim=True)
    weights = (torch.cat([products, itself], -1) * width**-0.5).softmax(-1)
    values = torch.cat([ring.v, v[:, :, None]], 2).float()
    y.copy_((weights[:, :, None] @ values).flatten(1))
    if slots:
        present = mask != 0
        for past, new in ((ring.k, k), (ring.v, v)):
            past[row, :, ring.first] = torch.where(present[:, None, None], new, past[row, :, ring.first])
        ring.held[row, ring.first] |= present
        ring.first.copy_((ring.first + present) % slots)
