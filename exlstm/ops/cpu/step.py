"""A step program on a CPU: its instructions are interpreted by a single call of compiled code."""

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.cpu.build import load, obstacle_of, parallel_for, real_of
from exlstm.ops.hmlstm import HMLSTMState
from exlstm.ops.mlstm import MLSTMState
from exlstm.ops.program import WEIGHTS, Activation, Program, Ring, Weights
from exlstm.ops.slstm import SLSTMState

_SOURCE = Path(__file__).with_name("step.cpp")
# In the order of the enumerations of step.cpp.
_OPCODES = (
    "embed", "linear", "small_blocks", "norm", "conv", "gate", "multiply_add", "soft_cap",
    "mlstm", "hmlstm", "slstm", "attend",
)  # fmt: skip
_ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "sigmoid")
_PER_WORD = {"full": 1, "bfloat16": 2, "int8": 4}

obstacle = functools.partial(obstacle_of, _SOURCE)


class _Operand(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("row", ctypes.c_int64))


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("opcode", ctypes.c_int64),
        ("sizes", ctypes.c_int64 * 5),
        ("number", ctypes.c_double),
        ("operands", _Operand * 12),
    )


class CPUProgram(Program):
    """A `Program` in C++. Weights are copied.

    Args:
        batch: rows B.
        dtype: of registers and states, float32 or float64.
        weights: how the matrices of `linear` are kept: "full" (in `dtype`), "bfloat16", or "int8" with one scale for
            each output.
    """

    def __init__(self, batch: int, dtype: torch.dtype, *, weights: Weights = "full") -> None:
        self.batch, self.dtype, self.state_dtype, self.weights = batch, dtype, dtype, weights
        self.device = torch.device("cpu")
        self._library = load(_SOURCE, real_of(dtype))
        self._instructions: list[_Instruction] = []
        self._code: Any = None
        self._alive: list[Tensor] = []  # what instructions point to

    def run(self, mask: Tensor | None = None) -> None:
        if self._code is None:
            self._code = (_Instruction * len(self._instructions))(*self._instructions)
        mask = None if mask is None else mask.contiguous()
        self._library.exlstm_step(
            parallel_for(),
            ctypes.c_int64(self.batch),
            None if mask is None else ctypes.c_void_p(mask.data_ptr()),
            self._code,
            ctypes.c_int64(len(self._instructions)),
        )

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        width = table.shape[1]
        return self._append("embed", (width,), [tokens, self._own(table), y := self.register(width)], y)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        add: Tensor | None = None,
        out: Tensor | None = None,
        stride: int | None = None,
        exact: bool = False,
    ) -> Tensor:
        weight = weight if weight.dim() == 3 else weight[None]
        blocks, outputs, inputs = weight.shape
        kind: Weights = "full" if exact else self.weights
        packed, scale = self._pack(weight, kind)
        y = self.register(blocks * outputs) if out is None else out
        shift = None if bias is None else self._own(self._padded(bias.reshape(blocks, outputs)))
        sizes = (blocks, inputs, outputs, stride or outputs, WEIGHTS.index(kind))
        return self._append("linear", sizes, [x, packed, shift, scale, add, y], y)

    def headwise(self, x: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
        blocks, size, _ = weight.shape
        return self._append("small_blocks", (blocks, size), [x, self._own(weight), out], out)

    def norm(self, x: Tensor, weight: Tensor, eps: float, *, heads: int = 1, centred: bool = True) -> Tensor:
        y = self.register(x.shape[1])
        return self._append("norm", (heads, x.shape[1] // heads, centred), [x, self._own(weight), y], y, eps)

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> Tensor:
        width, kernel = weight.shape
        y = self.register(width)
        return self._append("conv", (width, kernel), [x, self._own(weight.t()), self._own(bias), past, y], y)

    def gate(self, kind: Activation, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.register(x.shape[1])
        return self._append("gate", (x.shape[1], _ACTIVATIONS.index(kind)), [x, other, y], y)

    def multiply_add(self, x: Tensor, other: Tensor, weight: Tensor | None = None) -> Tensor:
        y = self.register(x.shape[1])
        factor = None if weight is None else self._own(weight)
        return self._append("multiply_add", (x.shape[1],), [x, other, y, factor], y)

    def shift(self, x: Tensor, bias: Tensor) -> Tensor:
        y = self.register(x.shape[1])
        return self._append("multiply_add", (x.shape[1],), [x, self._own(bias), y], y)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        y = self.register(x.shape[1])
        return self._append("soft_cap", (x.shape[1],), [x, None, y], y, cap)

    def mlstm(self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState) -> Tensor:
        return self._memory("mlstm", (q, k, v, i, f), (), state)

    def hmlstm(
        self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, level: Tensor, state: HMLSTMState
    ) -> Tensor:
        return self._memory("hmlstm", (q, k, v, i, f), (level,), state)

    def slstm(self, gates: Tensor, state: SLSTMState, *, forget_cap: float | None = None) -> Tensor:
        cap = math.inf if forget_cap is None else forget_cap
        heads, width = state.h.shape[1:]
        return self._append("slstm", (heads, width), [gates, *state], state.h.flatten(1), cap)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ring: Ring, base: float = 10_000.0) -> Tensor:
        heads, slots, width = ring.k.shape[1:]
        half = width // 2
        frequency = base ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
        angle = torch.arange(1, slots + 1, dtype=torch.float64, device="cpu")[:, None] * frequency
        tables = [self._own(angle.cos()), self._own(angle.sin())]
        scores, y = self.register(heads * (slots + 1)), self.register(heads * width)
        return self._append("attend", (heads, width, slots), [q, k, v, *ring, *tables, scores, y], y)

    def _memory(
        self, opcode: str, inputs: Sequence[Tensor], level: Sequence[Tensor], state: MLSTMState | HMLSTMState
    ) -> Tensor:
        (heads, *levels), (dk, dv) = state.m.shape[1:], state.C.shape[-2:]
        y = self.register(heads * dv)
        return self._append(opcode, (heads, dk, dv, *levels), [*inputs, y, *level, *state], y)

    def _append(
        self,
        opcode: str,
        sizes: Sequence[int],
        operands: Sequence["Tensor | _Operand | None"],
        y: Tensor,
        number: float = 0.0,
    ) -> Tensor:
        code = _Instruction(
            _OPCODES.index(opcode),
            (ctypes.c_int64 * 5)(*sizes),
            number,
            (_Operand * 12)(*(self._operand(x) for x in operands)),
        )
        self._instructions.append(code)
        return y

    def _operand(self, x: "Tensor | _Operand | None") -> "_Operand":
        if x is None:
            return _Operand(None, 0)
        if isinstance(x, _Operand):
            return x
        assert x.shape[0] == self.batch
        assert x[0].is_contiguous()
        self._alive.append(x)
        return _Operand(x.data_ptr(), x.stride(0))

    def _weight(self, x: Tensor) -> "_Operand":
        """What all rows share."""
        self._alive.append(x)
        return _Operand(x.data_ptr(), 0)

    def _own(self, x: Tensor) -> "_Operand":
        """A contiguous copy of our dtype, which later changes of the weight do not reach."""
        return self._weight(x.detach().to("cpu", self.dtype, copy=True).contiguous())

    def _padded(self, x: Tensor) -> Tensor:
        """x [blocks, out] with zeros up to whole vectors."""
        return pad(x, (0, -x.shape[1] % self._library.exlstm_lanes()))

    def _pack(self, weight: Tensor, kind: Weights) -> tuple["_Operand", "_Operand | None"]:
        """[blocks, out, in] in the order of step_linear.h, and what int8 weights are scaled by [blocks, out]."""
        weight, scale = weight.detach().to("cpu", self.dtype), None
        if kind == "int8":
            largest = weight.abs().amax(-1)
            step = torch.where(largest > 0, largest / 127, 1.0)
            weight, scale = weight / step[..., None], self._own(self._padded(step / 2**24))
        lanes, per_word = self._library.exlstm_lanes(), _PER_WORD[kind]
        outputs, panel = weight.shape[1], self._library.exlstm_panel_vectors() // per_word
        count = math.ceil(outputs / (lanes * per_word))
        words = pad(weight, (0, 0, 0, count * lanes * per_word - outputs)).unflatten(1, (count, per_word, lanes))
        words = _IN_WORDS[kind](words.permute(0, 1, 4, 3, 2).contiguous()).squeeze(-1)  # [blocks, count, in, lanes]
        whole = count // panel * panel
        panels = words[:, :whole].unflatten(1, (-1, panel)).transpose(2, 3).flatten(1)
        rest = words[:, whole:].transpose(1, 2).flatten(1)
        return self._weight(torch.cat([panels, rest], 1)), scale


def _bytes_in_words(x: Tensor) -> Tensor:
    """Numbers from -127 to 127 [..., 4] as four int8 to a word: int32 [..., 1].

    step_linear.h reads each with all bytes below it as its fraction, which saves shifts, so it is rounded with regard
    to that fraction; the error stays within a half.
    """
    word = torch.zeros(x.shape[:-1], dtype=torch.int64, device="cpu")
    for byte in range(4):
        whole = (x[..., byte].double() - word / 2.0 ** (8 * byte)).round().long()
        word += (whole & 0xFF) << (8 * byte)
    return word.to(torch.int32)[..., None]


_IN_WORDS: dict[Weights, Callable[[Tensor], Tensor]] = {
    "full": lambda x: x,
    "bfloat16": lambda x: x.to(torch.bfloat16).view(torch.int32),
    "int8": _bytes_in_words,
}
