"""Decoding one token after another, as fast as the weights can be read."""

import copy
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.layers.state import map_state
from exlstm.layers.step import can_emit, emit, read_state, write_state
from exlstm.models.backbone import Backbone, BackboneState
from exlstm.ops.checks import check_shape
from exlstm.ops.cpu import step as cpu
from exlstm.ops.program import WEIGHTS, Program, Weights
from exlstm.ops.triton import launch as triton
from exlstm.ops.triton.program import DTYPES, TritonProgram


class Decoder:
    """A `Backbone` that takes one step after another, with all that surrounds it, for inference.

        decoder = Decoder(backbone, embedding=embedding, head=head)
        decoder.load(state)                          # what backbone(embedding(prompt)) returned
        logits = decoder.step(tokens)                # int64 [B] to [B, numbers]

    A step is a single call of compiled code, in which every weight is read once: on a CPU in C++, in float32 or
    float64; on a GPU one CUDA graph of a few Triton kernels a block, in float32, float16 or bfloat16. It computes what
    the backbone computes in evaluation, and its state is the backbone's own, so that the two can take turns at every
    step. Elsewhere, and with LSTM or GRU blocks, the backbone itself is called instead.

    Weights are read when the decoder is made: after a change of the model make another one. A decoder serves one
    thread at a time.

    Args:
        backbone: not bidirectional.
        embedding: from tokens to what the backbone reads; None if `step` is given vectors.
        head: a linear map from what the backbone gives; None if `step` is to return that.
        batch: rows B, each with a state of its own.
        weights: "full", or how the large matrices are kept: "bfloat16" takes half the time to read that float32 does,
            "int8", with one scale for each output, a quarter. Both cost some accuracy. On a GPU "int8" serves a single
            row, and where the backbone itself is called weights stay as they are.

    Raises:
        ValueError: an argument is out of range, or the parts do not fit each other.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        embedding: nn.Embedding | None = None,
        head: nn.Linear | None = None,
        batch: int = 1,
        weights: Weights = "full",
    ) -> None:
        self._check_parts(backbone, embedding, head, batch, weights)
        parameter = next(backbone.parameters())
        self.batch, self.width, self.dtype, self.device = batch, backbone.width, parameter.dtype, parameter.device
        self.tokens = embedding.num_embeddings if embedding is not None else None
        # No inference tensors among what later steps write to.
        with torch.inference_mode(False), torch.no_grad():
            program = program_for(batch, self.dtype, self.device, weights) if can_emit(backbone) else None
            self._run = (
                _Module(backbone, embedding, head, batch)
                if program is None
                else _Compiled(program, backbone, embedding, head)
            )
        self._guarded = embedding is not None and program is not None and program.guarded
        # Where tokens are read while a GPU takes the step.
        self._reader = torch.cuda.Stream(self.device) if self._guarded and self.device.type == "cuda" else None

    @torch.no_grad()
    def step(self, x: Tensor, *, mask: Tensor | None = None, reset: Tensor | None = None) -> Tensor:
        """Take one step.

        Args:
            x: vectors [B, width]; with an embedding, tokens int64 [B].
            mask: bool [B]; a False row's state is untouched and its output 0, whatever x holds there.
            reset: bool [B]; the state of a True row, masked or not, is emptied before the step.

        Returns:
            [B, width], or [B, outputs of the head].

        Raises:
            ValueError: shapes, dtypes or devices do not fit, or a token is out of range.
        """
        self._check_input(x, mask, reset)
        if mask is not None:
            x = x.masked_fill(~(mask[:, None] if self.tokens is None else mask), 0)
        if self._reader is not None:
            self._reader.wait_stream(torch.cuda.current_stream(self.device))  # for x, not for the step
        # A guarded program changes nothing for a wrong token, so that a GPU need not wait for the check; but what a
        # reset empties would be lost.
        late = self._guarded and reset is None
        if not late:
            self._check_tokens(x)
        y = self._run.step(x, mask, reset)
        if late:
            self._check_tokens(x)
        return y if mask is None else y.masked_fill_(~mask[:, None], 0)

    @torch.no_grad()
    def load(self, state: BackboneState | None) -> None:
        """Continue from a state that the backbone, or `state()`, returned; from the beginning for None.

        Raises:
            ValueError: it is not the state of such a backbone and batch; ours is then as before.
        """
        if state is not None:
            _check_same(self._run.state(), state, self.batch)
        self._run.load(state)

    @torch.no_grad()
    def state(self) -> BackboneState:
        """A copy of the state, as the backbone would return it."""
        return self._run.state()

    @torch.no_grad()
    def select(self, rows: Tensor) -> None:
        """Give row b the state of row `rows[b]`, for beam search; int64 [B].

        Raises:
            ValueError: shape or dtype do not fit, or a row is out of range.
        """
        check_shape("rows", rows, (self.batch,), "[B]")
        if rows.dtype != torch.int64 or bool(((rows < 0) | (rows >= self.batch)).any()):
            raise ValueError(f"rows must be int64 from 0 to {self.batch - 1}, got {rows.dtype} {rows.tolist()}")
        self._run.select(rows)

    def _check_input(self, x: Tensor, mask: Tensor | None, reset: Tensor | None) -> None:
        if self.tokens is None:
            check_shape("x", x, (self.batch, self.width), "[B, width]")
            kind = self.dtype
        else:
            check_shape("x", x, (self.batch,), "[B], one token a row,")
            kind = torch.int64
        for name, value, dtype in (("x", x, kind), ("mask", mask, torch.bool), ("reset", reset, torch.bool)):
            if value is None:
                continue
            if value.dtype != dtype or value.device != self.device:
                raise ValueError(
                    f"{name} must be {dtype} on {self.device} as this decoder is, got {value.dtype} on {value.device}; "
                    f"convert it with .to({str(self.device)!r}, {dtype})"
                )
            if name != "x":
                check_shape(name, value, (self.batch,), "[B]")

    def _check_tokens(self, x: Tensor) -> None:
        if self.tokens is None:
            return
        with nullcontext() if self._reader is None else torch.cuda.stream(self._reader):
            given = x.tolist()  # from a GPU all at once
        if min(given) < 0 or max(given) >= self.tokens:
            raise ValueError(f"tokens must be from 0 to {self.tokens - 1}, as the embedding has them, got {given}")

    @staticmethod
    def _check_parts(
        backbone: Backbone, embedding: nn.Embedding | None, head: nn.Linear | None, batch: int, weights: str
    ) -> None:
        if not isinstance(backbone, Backbone):
            raise ValueError(f"backbone must be an exlstm Backbone, got {type(backbone).__name__}; give model.backbone")
        if backbone.bidirectional:
            raise ValueError(
                "a decoder needs a backbone that reads forwards, got a bidirectional one; "
                "make one with bidirectional=False"
            )
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
        parts = [part for part in (backbone, embedding, head) if part is not None]
        found = {(p.dtype, p.device) for part in parts for p in part.parameters()}
        if len(found) > 1:
            listed = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in found))
            raise ValueError(f"all weights must be of one dtype and on one device, got {listed}; use .to(...)")
        if embedding is not None and embedding.embedding_dim != backbone.width:
            raise ValueError(f"embedding must give width {backbone.width}, got {embedding.embedding_dim}")
        if head is not None and head.in_features != backbone.width:
            raise ValueError(f"head must take width {backbone.width}, got {head.in_features}")


def program_for(batch: int, dtype: torch.dtype, device: torch.device, weights: Weights = "full") -> Program | None:
    """An empty program for steps on `device`; None if there is none, or EXLSTM_BACKEND asks for other kernels there."""
    if dtype in (torch.float32, torch.float64) and cpu.obstacle(device) is None:
        return cpu.CPUProgram(batch, dtype, weights=weights)
    wanted = (os.environ.get("EXLSTM_BACKEND") or "auto") in ("auto", "triton")
    if wanted and device.type == "cuda" and dtype in DTYPES and triton.obstacle(device) is None:
        return TritonProgram(batch, dtype, device=device, weights=weights)
    return None


class _Compiled:
    """The model as a program."""

    def __init__(
        self, program: Program, backbone: Backbone, embedding: nn.Embedding | None, head: nn.Linear | None
    ) -> None:
        if embedding is None:
            x = self._input = program.register(backbone.width)
        else:
            self._input = program.register(dtype=torch.int64)
            x = program.embed(self._input, embedding.weight)
        states = []
        for block in backbone.blocks:
            x, state = emit(block, program, x)
            states.append(state)
        x, _ = emit(backbone.norm, program, x)
        self._output = x if head is None else program.linear(x, head.weight, head.bias)
        self._program, self._state = program, tuple(states)

    def step(self, x: Tensor, mask: Tensor | None, reset: Tensor | None) -> Tensor:
        self._input.copy_(x)
        if reset is not None:
            for part in _leaves(self._state):
                part.masked_fill_(reset.view(-1, *[1] * (part.dim() - 1)), 0)
        self._program.run(mask)
        return self._output.clone()

    def load(self, state: BackboneState | None) -> None:
        if state is not None:
            return write_state(self._state, state)
        for part in _leaves(self._state):
            part.zero_()
        return None

    def state(self) -> BackboneState:
        return read_state(self._state)

    def select(self, rows: Tensor) -> None:
        for part in _leaves(self._state):
            part.copy_(part[rows])


class _Module:
    """The model itself, called with sequences of one step."""

    def __init__(self, backbone: Backbone, embedding: nn.Embedding | None, head: nn.Linear | None, batch: int) -> None:
        # Modules of our own, to be in evaluation whatever the model's are in, with the model's weights.
        shared: dict[int, Any] = {id(weight): weight for weight in backbone.parameters()}
        self._backbone, self._embedding, self._head = copy.deepcopy(backbone, shared).eval(), embedding, head
        parameter = next(backbone.parameters())
        nothing = parameter.new_zeros(batch, 1, backbone.width)
        self._empty = self._backbone(nothing, mask=nothing[..., 0] != 0)[1]
        self._state: BackboneState = self._empty

    def step(self, x: Tensor, mask: Tensor | None, reset: Tensor | None) -> Tensor:
        if self._embedding is not None:
            x = self._embedding(x)
        mask, reset = (None if steps is None else steps[:, None] for steps in (mask, reset))
        y, self._state = self._backbone(x[:, None], self._state, mask=mask, reset=reset)
        return y[:, 0] if self._head is None else self._head(y[:, 0])

    def load(self, state: BackboneState | None) -> None:
        device = next(self._backbone.parameters()).device
        self._state = self._empty if state is None else map_state(lambda part: part.to(device, copy=True), state)

    def state(self) -> BackboneState:
        return map_state(Tensor.clone, self._state)

    def select(self, rows: Tensor) -> None:
        self._state = map_state(lambda part: part[rows], self._state)


def _leaves(state: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples."""
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state or ():
            yield from _leaves(part)


def _check_same(own: Any, state: Any, batch: int, where: str = "state") -> None:
    """Raise ValueError unless `state` has the structure and shapes of `own`, and floats or not where it has."""
    if isinstance(own, Tensor) and isinstance(state, Tensor):
        if state.shape == own.shape and state.is_floating_point() == own.is_floating_point():
            return
    elif type(own) is type(state) and (own is None or len(own) == len(state)):
        names = getattr(own, "_fields", range(len(own or ())))
        for name, a, b in zip(names, own or (), state or (), strict=True):
            _check_same(a, b, batch, f"{where}.{name}")
        return
    raise ValueError(
        f"state must be the one that this backbone returned for a batch of {batch}: "
        f"{where} must be {_description(own)}, got {_description(state)}"
    )


def _description(part: Any) -> str:
    if isinstance(part, Tensor):
        return f"{part.dtype} {tuple(part.shape)}"
    return f"a tuple of {len(part)}" if type(part) is tuple else type(part).__name__
