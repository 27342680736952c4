"""One step of a whole model as a program: instructions on vectors that lie ready, run by a single call.

A `Program` knows operators, not layers. Its registers are tensors [B, width], views of them included; instructions
are appended by methods that return the register of the result, and `run` executes them all. What a processor has to
say of them is in the subclasses: `exlstm.ops.cpu.step` and `exlstm.ops.triton.program`.
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.hmlstm import HMLSTMState
from exlstm.ops.mlstm import MLSTMState
from exlstm.ops.slstm import SLSTMState

Weights = Literal["full", "bfloat16", "int8"]
Activation = Literal["silu", "gelu", "sigmoid"]

WEIGHTS: tuple[Weights, ...] = ("full", "bfloat16", "int8")


class Ring(NamedTuple):
    """The last steps that attention sees, the oldest of row b in slot `first[b]`."""

    k: Tensor  # [B, H, window - 1, D] keys, before rotation
    v: Tensor  # [B, H, window - 1, D] values
    held: Tensor  # bool [B, window - 1], False where there is nothing
    first: Tensor  # int64 [B]


class Program(ABC):
    """Instructions for one step of `batch` independent rows, and all the memory that they use.

    Inputs are written into registers by the caller. States are changed in place by `run`, and are otherwise the
    caller's to read and write.

    Attributes:
        batch: rows B.
        dtype: of registers.
        state_dtype: of the memories of cells.
        device: of all.
        guarded: whether a run changes no state where a token is out of range; if not, there must be none.
    """

    batch: int
    dtype: torch.dtype
    state_dtype: torch.dtype
    device: torch.device
    guarded: bool = False

    def register(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A new register or state [B, *shape], of zeros."""
        return torch.zeros(self.batch, *shape, dtype=dtype or self.dtype, device=self.device)

    @abstractmethod
    def run(self, mask: Tensor | None = None) -> None:
        """Execute all instructions; rows that `mask` (bool [B]) marks False leave the states as they are."""

    @abstractmethod
    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Rows [B, width] of `table` [numbers, width], chosen by `tokens` (int64 [B]), in range unless `guarded`."""

    @abstractmethod
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
        """add + bias + W x: x [B, blocks * in] by `weight` [blocks, out, in] or [out, in] to [B, blocks * out].

        Args:
            x: the register, of which every block maps its own part.
            weight: the matrices.
            bias: [blocks, out] or [out].
            add: a register that the result is added to, laid out as the result.
            out: where to write; `add` itself will do. None makes a register.
            stride: elements from one block of the result to the next; None if they lie side by side.
            exact: keep the weights in full, whatever the program's others are.
        """

    @abstractmethod
    def headwise(self, x: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
        """Small blocks by themselves: x [B, blocks * size] by `weight` [blocks, in, out], in = out = size, to `out`."""

    @abstractmethod
    def norm(self, x: Tensor, weight: Tensor, eps: float, *, heads: int = 1, centred: bool = True) -> Tensor:
        """Layer norm of each of `heads` parts of x [B, width], or, not `centred`, RMS norm; weight [width]."""

    @abstractmethod
    def conv(self, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> Tensor:
        """The filters `weight` [width, kernel] on the state `past` [B, kernel - 1, width] and x [B, width]."""

    @abstractmethod
    def gate(self, kind: Activation, x: Tensor, other: Tensor | None = None) -> Tensor:
        """activation(x) * other, or the activation alone."""

    @abstractmethod
    def multiply_add(self, x: Tensor, other: Tensor, weight: Tensor | None = None) -> Tensor:
        """x + weight * other, or x + other; weight [width]."""

    @abstractmethod
    def shift(self, x: Tensor, bias: Tensor) -> Tensor:
        """x + bias, for a weight `bias` [width]."""

    @abstractmethod
    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """cap * tanh(x / cap)."""

    @abstractmethod
    def mlstm(self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState) -> Tensor:
        """`exlstm.ops.mlstm`: q, k [B, H * DK], v [B, H * DV], gates [B, H] to [B, H * DV]."""

    @abstractmethod
    def hmlstm(
        self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, level: Tensor, state: HMLSTMState
    ) -> Tensor:
        """`exlstm.ops.hmlstm`, with level weights [B, H * levels]."""

    @abstractmethod
    def slstm(self, gates: Tensor, state: SLSTMState, *, forget_cap: float | None = None) -> Tensor:
        """Cells from pre-activations [B, H * 4 * D] (in each head i, f, z, o), recurrence included; state.h is it."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, ring: Ring, base: float = 10_000.0) -> Tensor:
        """Attention of q [B, H * D] to this step and those in the ring, with rotary positions; k, v enter the ring."""
